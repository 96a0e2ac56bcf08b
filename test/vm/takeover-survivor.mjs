/**
 * ext4 on an attached origin whose server's host is lost: the application sees a stall and no error, and this host serves
 * on. Started by takeover.test.ts in a machine of its own, beside takeover-lost.mjs; its
 * last line is "N passed, N failed".
 *     takeover-survivor.mjs SHARE ADDRESS
 */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import * as rig from "./attach-rig.mjs";
import { agent, finish, now, run, test, until } from "./attach-rig.mjs";
import { offer, said, say, share } from "./takeover-rig.mjs";

const WRITER = fileURLToPath(new URL("attach-writer.mjs", import.meta.url));
const directory = `${rig.work}/mnt`;
const records = `${directory}/records`;
/** 4.6 s of silence, the fence, start and reconnect; a request under way is repeated after about 1.1 s. Emulated, on a
 * machine with other work, everything takes several times as long. */
const STALL_LIMIT_S = 45;
const NEEDED_RECORDS = 100;

const completions = [];
let lastNumber = 0;
let writer;
let writerEnd;
let device;
const evil = rig.watchKernel();

let isWhole = true;
/** A test that only means something after those before it. */
const step = (what, body, limitS) =>
  test(
    what,
    async () => {
      assert.ok(isWhole, "a step before has failed");
      isWhole = false;
      await body();
      isWhole = true;
    },
    limitS,
  );

/** Asks the test, which has the machines' power switch, and takes its word. */
function fenceCommand() {
  const path = `${rig.work}/fence`;
  const script = `#!/bin/sh
: >${share}/fence-$CSNAP_FENCE_HOST
for i in $(seq 500); do
  [ ! -e ${share}/fenced-$CSNAP_FENCE_HOST ] || exit 0
  sleep 0.1
done
echo "the power switch does not answer" >&2
exit 1
`;
  writeFileSync(path, script, { mode: 0o755 });
  return `command=${path}`;
}

function startWriter() {
  writer = spawn(process.execPath, [WRITER, records, "write"], { stdio: ["ignore", "pipe", "inherit"] });
  writer.once("exit", (status, signal) => (writerEnd = signal ?? status));
  let rest = "";
  writer.stdout.setEncoding("utf8").on("data", (text) => {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const [number, time] = line.split(" ").map(Number);
      lastNumber = number;
      completions.push(time);
    }
  });
}

/** So many more records. */
function written(count) {
  const from = completions.length;
  const isThere = () => {
    assert.equal(writerEnd, undefined, "the application has ended");
    return completions.length >= from + count;
  };
  return until(`${count} records`, isThere, 100);
}

async function shown() {
  return JSON.parse(await rig.ok(["volume", "show", "disk1", "--json"]));
}

await step(
  "the other host serves the volume, this one has it as a device with ext4",
  async () => {
    await run("modprobe", ["nbd"]);
    await run("mkdir", [directory]);
    await rig.ok(["init", "disk1", "--origin", "/dev/vda", "--store", "/dev/vdb"]);
    await rig.ok(["volume", "define", "disk1", "--store-class", "shared-block", "--fence", fenceCommand()]);
    say("declared");
    await said("served", 280);
    await offer();
    device = await rig.attach("disk1");
    await run("mkfs.ext4", ["-q", device.device]);
    await run("mount", [device.device, directory]);
    startWriter();
    await written(NEEDED_RECORDS);
    const { host, agents } = await shown();
    assert.equal(host, "alpha");
    assert.deepEqual(agents.toSorted(), ["alpha", "beta"]);
  },
  300,
);

await step(
  "the other host's power goes: the application waits, and goes on",
  async () => {
    const before = now();
    say("crash");
    await said("crashed", 20);
    await until("this host serves it", async () => (await shown()).host === "beta", 100);
    await written(NEEDED_RECORDS);
    const around = [
      completions.findLast((time) => time < before),
      ...completions.filter((time) => time >= before),
    ];
    const gaps = around.slice(1).map((time, i) => time - around[i]);
    const stall = Math.max(...gaps);
    console.log(`    stall ${stall.toFixed(2)} s; ${completions.length} synced records`);
    assert.ok(stall > 1, "nothing was lost");
    assert.ok(stall < STALL_LIMIT_S, `it took ${stall} s`);
    assert.equal(await said("fence-alpha", 1), "", "the fence was asked");
  },
  200,
);

await step(
  "nothing acknowledged is missing, the file system is clean, and the kernel saw no error",
  async () => {
    const ended = once(writer, "close");
    writer.kill("SIGKILL");
    await ended;
    await run("umount", [directory]);
    writeFileSync("/proc/sys/vm/drop_caches", "3");
    await run("e2fsck", ["-fn", device.device]);
    await run("mount", ["-o", "ro", device.device, directory]);
    console.log(`    ${(await run(process.execPath, [WRITER, records, "verify", `${lastNumber}`])).trim()}`);
    await run("umount", [directory]);
    await agent.detach("disk1", false);
    assert.deepEqual(rig.configured(), []);
    assert.deepEqual(evil(), []);
  },
  200,
);

await step(
  "the store is whole",
  async () => {
    await rig.ok(["volume", "disable", "disk1"]);
    await until("it is not served", async () => !(await shown()).alive, 100);
    await rig.ok(["check", "disk1", "--data"]);
  },
  200,
);

finish();
