/**
 * ext4 on an attached origin under fio with verification and a writer that syncs every record, while server and agent are
 * killed and restarted: no error may reach the file system, nothing acknowledged may be lost. Prints how long I/O stood
 * still. Run by attach.test.ts, or by hand:
 *     scripts/vm [--kernel 6.12] --timeout 0 -- node test/vm/attach-restarts.mjs
 * Its last line is "N passed, N failed". CSNAP_TIER=full: 20 rounds of each kind, else 3.
 *
 * The stall of an event is the longest gap between two completions of the writer that touches the time from the signal to
 * the third completion after everything is ready again; the outage is from the signal to the last `ready` line.
 */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import * as rig from "./attach-rig.mjs";
import { agent, finish, now, run, startAgent, startServer, stop, test, until } from "./attach-rig.mjs";

const ROUNDS = rig.isFull ? 20 : 3;
/**
 * After a crash requests that were under way are repeated by the kernel's timer of about a second. The full tier has
 * the machine for itself; beside other suites an emulated processor's tenths of seconds say nothing.
 */
const CRASH_LIMIT_S = rig.isFull ? 1.2 : 30;
const PLANNED_LIMIT_S = rig.isFull ? 0.4 : 30;
const WRITER = fileURLToPath(new URL("attach-writer.mjs", import.meta.url));
const directory = `${rig.work}/mnt`;

await run("modprobe", ["nbd"]);
await run("mkdir", [directory]);
rig.initVolume("disk1", 192, 128);
const evil = rig.watchKernel();
let server = await startServer();
let daemon = await startAgent();
const device = await rig.attach("disk1");
await run("mkfs.ext4", ["-q", device.device]);
await run("mount", [device.device, directory]);
await rig.snapshot("before");

// --- the load --------------------------------------------------------------------------------------------------------

/** Completions of the writer: seconds, in order. */
const completions = [];
let lastNumber = 0;
const writer = spawn(process.execPath, [WRITER, `${directory}/records`, "write"], {
  stdio: ["ignore", "pipe", "inherit"],
});
let writerEnd;
writer.once("exit", (status, signal) => (writerEnd = signal ?? status));
{
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

const fioWords = (seed, more) => [
  "--name=load",
  `--filename=${directory}/fio`,
  "--size=24m",
  "--rw=randwrite",
  "--bsrange=4k-64k",
  "--ioengine=libaio",
  "--iodepth=8",
  "--direct=1",
  "--fsync=16",
  "--verify=crc32c",
  "--verify_fatal=1",
  `--randseed=${seed}`,
  ...more,
];
let passes = 0;
let ending = false;
/** fio passes one after the other, each writes all and verifies all; the last one's seed. */
async function load() {
  while (!ending) {
    passes++;
    await run("fio", fioWords(passes, ["--end_fsync=1", "--do_verify=1"]), 300);
  }
  return passes;
}
let loadError;
const loading = load().catch((error) => {
  loadError = error;
});

// --- the events ------------------------------------------------------------------------------------------------------

const table = [];

async function steady() {
  const from = completions.length;
  await until(
    "I/O goes on",
    () => {
      if (loadError) throw loadError;
      assert.equal(writerEnd, undefined, "the writer has ended");
      return completions.length >= from + 3;
    },
    100,
  );
}

/** @param act sends the signals; resolves when all is ready again */
async function event(act) {
  await steady();
  const began = now();
  await act();
  const ready = now();
  await steady();
  // The next event begins from a whole attachment.
  await rig.inState(device.attachment, "attached");
  const inWindow = completions.filter((time) => time >= began);
  const before = completions.findLast((time) => time < began);
  let stall = 0;
  let last = before;
  for (const time of inWindow) {
    stall = Math.max(stall, time - last);
    last = time;
  }
  return { outage: ready - began, stall };
}

const median = (values) => values.toSorted((a, b) => a - b)[Math.floor((values.length - 1) / 2)];

async function rounds(kind, act, isOutage) {
  const seen = [];
  for (let round = 0; round < ROUNDS; round++) seen.push(await event(act));
  const over = seen.map(({ stall, outage }) => stall - (isOutage ? outage : 0));
  const row = {
    kind,
    rounds: seen.length,
    outageMedian: median(seen.map(({ outage }) => outage)),
    stallMedian: median(seen.map(({ stall }) => stall)),
    stallMax: Math.max(...seen.map(({ stall }) => stall)),
    overMedian: median(over),
    overMax: Math.max(...over),
  };
  table.push(row);
  return row;
}

async function restartServer(signal) {
  await stop(server, signal);
  server = await startServer();
}
async function restartAgent() {
  await stop(daemon, "SIGKILL");
  daemon = await startAgent();
}

const limit = ROUNDS * 60;
await test(
  `a server ended with SIGTERM and started, ${ROUNDS} times`,
  async () => {
    const row = await rounds("planned", () => restartServer("SIGTERM"), true);
    assert.ok(row.overMedian <= PLANNED_LIMIT_S, `${row.overMedian} s more than the outage`);
  },
  limit,
);
await test(
  `a server killed and started, ${ROUNDS} times`,
  async () => {
    const row = await rounds("crash", () => restartServer("SIGKILL"), true);
    assert.ok(row.overMedian <= CRASH_LIMIT_S, `${row.overMedian} s more than the outage`);
  },
  limit,
);
await test(
  `the agent killed and started, ${ROUNDS} times: nothing stands still for it`,
  async () => {
    const row = await rounds("agent killed", restartAgent, false);
    assert.ok(row.stallMedian < row.outageMedian, "I/O waits for the agent");
  },
  limit,
);
await test(
  `both killed and started, ${ROUNDS} times`,
  () => rounds("both killed", () => Promise.all([restartServer("SIGKILL"), restartAgent()]), true),
  limit,
);

console.log("kind          rounds  outage(med)  stall(med)  stall(max)  over outage(med)  (max)   [s]");
for (const row of table) {
  const s = (value, width) => value.toFixed(2).padStart(width);
  console.log(
    row.kind.padEnd(14) +
      String(row.rounds).padStart(6) +
      s(row.outageMedian, 13) +
      s(row.stallMedian, 12) +
      s(row.stallMax, 12) +
      s(row.overMedian, 18) +
      s(row.overMax, 7),
  );
}
// --- what became of it -----------------------------------------------------------------------------------------------

await test("fio has verified what it wrote, the writer had no error", async () => {
  ending = true;
  await loading;
  if (loadError) throw loadError;
  assert.equal(writerEnd, undefined);
  const ended = once(writer, "close");
  writer.kill("SIGKILL");
  await ended;
  console.log(`    ${passes} passes of fio, ${completions.length} synced records`);
}, 300);
await test("unmounted, caches dropped, mounted: the data is there, the file system is clean", async () => {
  await run("umount", [directory]);
  writeFileSync("/proc/sys/vm/drop_caches", "3");
  await run("e2fsck", ["-fn", device.device]);
  await run("mount", [device.device, directory]);
  console.log(
    `    ${(await run(process.execPath, [WRITER, `${directory}/records`, "verify", `${lastNumber}`])).trim()}`,
  );
  await run("fio", fioWords(passes, ["--verify_only"]), 300);
  await run("umount", [directory]);
});
await test("detached; the kernel's log has no error", async () => {
  await agent.detach("disk1", false);
  assert.deepEqual(rig.configured(), []);
  assert.deepEqual(evil(), []);
});
await test("the store is whole", async () => {
  await stop(server, "SIGTERM");
  await rig.ok(["check", "disk1", "--data"]);
});

finish();
