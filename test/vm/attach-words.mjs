/**
 * What the commands say and do at the edges: nothing there to work with, devices in use, servers that stay away, file
 * systems to mount. Run by attach.test.ts, or by hand:
 *     scripts/vm [--kernel 6.12] -- node test/vm/attach-words.mjs
 * Its last line is "N passed, N failed". The nbd module must not be loaded when it begins.
 */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import * as rig from "./attach-rig.mjs";
import {
  agent,
  finish,
  now,
  ok,
  readBlock,
  refusedLine,
  run,
  startAgent,
  startServer,
  stop,
  test,
  until,
  writeBlock,
} from "./attach-rig.mjs";

const NOBODY = 65534;
/** What the kernel runs to load a module by itself. */
const MODPROBE = "/proc/sys/kernel/modprobe";
const onOrigin = `${rig.work}/origin`;
const onSnapshot = `${rig.work}/snapshot`;
await run("mkdir", [onOrigin, onSnapshot]);
await run("chmod", ["755", rig.work]);

// --- nothing to work with --------------------------------------------------------------------------------------------

rig.initVolume("disk1", 32, 64);
await test("without the nbd module: the agent runs without devices, attach says why", async () => {
  assert.doesNotMatch(readFileSync("/proc/modules", "utf8"), /^nbd /m);
  const modprobe = readFileSync(MODPROBE, "utf8");
  writeFileSync(MODPROBE, "/bin/false");
  await refusedLine(["attach", "disk1"], /^csnap: no agent runs on this host: start `csnap agent` as root/);
  const lone = await startAgent();
  await refusedLine(["attach", "disk1"], /^csnap: the kernel has no nbd netlink family: `modprobe nbd`/);
  await stop(lone, "SIGTERM");
  writeFileSync(MODPROBE, modprobe);
});
await run("modprobe", ["nbd"]);
await test("without root: one line from the agent", () =>
  refusedLine(["agent"], /^csnap: .*root/, { user: NOBODY }));
let daemon = await startAgent();
await test("without root, and a second agent: one line from each command", () =>
  Promise.all([
    ...[["attach", "disk1"], ["detach", "disk1"], ["devices"]].map((words) =>
      refusedLine(words, /^csnap: you may not use the agent's socket .*: run as root/, { user: NOBODY }),
    ),
    refusedLine(["agent"], new RegExp(`an agent runs on this host already, process ${daemon.pid}`)),
  ]));
await test("attach of what is not there: unknown, not served, no such snapshot; detach of it", async () => {
  await Promise.all([
    refusedLine(["attach", "nothing"], /^csnap: nothing can't be attached: .*csnap serve nothing/),
    refusedLine(["attach", "disk1"], /^csnap: disk1 can't be attached: .*csnap serve disk1/),
    refusedLine(["detach", onOrigin], /is where nothing of this host's agent is mounted/),
  ]);
  await startServer();
  await Promise.all([
    refusedLine(["attach", "disk1@no"], /^csnap: disk1@no can't be attached: .*no export named/),
    refusedLine(["detach", "disk1"], /^csnap: disk1 is not attached on this host/),
  ]);
  assert.deepEqual(await agent.devices(), []);
  assert.deepEqual(rig.configured(), []);
});

// --- in use ----------------------------------------------------------------------------------------------------------

await test("detach of a device in use names the mount or the process; --force takes it", async () => {
  const path = await ok(["attach", "disk1", "--device", "/dev/nbd5", "--on-lost", "hang"]);
  assert.equal(path, "/dev/nbd5");
  const [{ attachment }] = await agent.devices();
  const opener = spawn("sh", ["-c", `exec 9<${path}; echo open; exec sleep 1000`], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  await once(opener.stdout, "data");
  await refusedLine(["detach", "disk1"], /\/dev\/nbd5 is in use: process \d+ \(.+\) has it open/);
  const gone = once(opener, "exit");
  opener.kill();
  await gone;
  await run("mkfs.ext4", ["-q", path]);
  await run("mount", [path, onOrigin]);
  await refusedLine(["detach", "disk1"], new RegExp(`is in use: ${path} is mounted at ${onOrigin}`));
  await refusedLine(["attach", "disk1@x", "--device", path], /\/dev\/nbd5 is in use: choose another/);
  await rig.inState(attachment, "attached");
  await run("touch", [`${onOrigin}/still-works`]);
  await ok(["detach", "--force", "disk1"]);
  assert.deepEqual(await agent.devices(), []);
  await run("umount", [onOrigin]);
  await until("the device is free", () => rig.configured().length === 0);
});

await test("--mount, and detach of the directory; --read-only keeps writers away", async () => {
  await ok(["attach", "disk1", "--mount", onOrigin]);
  await ok(["detach", onOrigin]);
  assert.deepEqual(rig.configured(), []);
  const path = await ok(["attach", "disk1", "--read-only"]);
  assert.equal(readFileSync(`/sys/block/${path.slice(5)}/ro`, "utf8").trim(), "1");
  assert.equal((await readBlock(path)).status, 0);
  assert.notEqual((await writeBlock(path)).status, 0);
  assert.equal((await rig.server().status()).hold, null);
  assert.match(await ok(["devices"]), / ro +attached/);
  await agent.detach(path, false);
});

// --- file systems ----------------------------------------------------------------------------------------------------

for (const [type, sizeMb] of [
  ["ext4", 32],
  ["xfs", 320],
])
  await test(`--mount of a snapshot of ${type} while its origin is mounted and written to`, async () => {
    const volume = `disk-${type}`;
    rig.initVolume(volume, sizeMb, 64);
    const server = await startServer(volume);
    const origin = await rig.attach(volume);
    await run(`mkfs.${type}`, ["-q", origin.device]);
    await run("mount", ["-t", type, origin.device, onOrigin]);
    await run("sh", ["-c", `echo then >${onOrigin}/file && sync`]);
    // A journal is not replayed from a snapshot: what XFS has only there is seen after a freeze.
    await ok(["snapshot", `${volume}@then`, "--freeze", onOrigin]);
    await run("sh", ["-c", `echo now >${onOrigin}/file && sync`]);
    await ok(["attach", `${volume}@then`, "--mount", onSnapshot]);
    assert.equal(readFileSync(`${onSnapshot}/file`, "utf8"), "then\n");
    assert.equal(readFileSync(`${onOrigin}/file`, "utf8"), "now\n");
    assert.match(readFileSync("/proc/mounts", "utf8"), new RegExp(`${onSnapshot} ${type} ro,`));
    await run("umount", [onSnapshot, onOrigin]);
    for (const { attachment } of await agent.devices()) await agent.detach(attachment, false);
    assert.deepEqual(rig.configured(), []);
    await stop(server, "SIGTERM");
  });
await test("--mount of what holds no file system: one line, and no device is left", async () => {
  rig.initVolume("blank", 8, 64);
  const server = await startServer("blank");
  await refusedLine(["attach", "blank", "--mount", onOrigin], /holds no file system/);
  assert.deepEqual(rig.configured(), []);
  await stop(server, "SIGTERM");
});

// --- a server that stays away ----------------------------------------------------------------------------------------

await test("--on-lost error:3s: errors after 3 s, not before; `devices` says so; another device waits on", async () => {
  rig.initVolume("away", 8, 64);
  let server = await startServer("away");
  await rig.snapshot("old", "away");
  const path = await ok(["attach", "away", "--on-lost", "error:3s"]);
  const patient = await rig.attach("away@old");
  const { attachment } = (await agent.devices()).find(({ device }) => device === path);
  await stop(server, "SIGKILL");
  const began = now();
  const { status } = await writeBlock(path);
  const took = now() - began;
  console.log(`    an error after ${took.toFixed(1)} s`);
  assert.notEqual(status, 0);
  assert.ok(took >= 2.5 && took < 15, `${took} s`);
  const failed = await rig.inState(attachment, "failed");
  assert.match(failed.reason, /no server came back in time \(--on-lost error\)/);
  assert.match(await ok(["devices"]), /failed: no server came back in time/);
  assert.notEqual((await writeBlock(path)).status, 0);
  const waiting = await rig.deviceOf(patient.attachment);
  assert.ok(!["failed", "attached"].includes(waiting.state) && waiting.reason, `${waiting.state}`);
  // Back within the time: as if nothing had been. The one that failed stays so until it is detached.
  server = await startServer("away");
  await rig.inState(patient.attachment, "attached");
  assert.equal((await readBlock(patient.device)).status, 0);
  assert.equal((await rig.deviceOf(attachment)).state, "failed");
  await stop(daemon, "SIGTERM");
  daemon = await startAgent();
  assert.equal((await rig.deviceOf(attachment)).state, "failed");
  await agent.detach(attachment, false);
  await agent.detach(patient.attachment, false);
  await agent.detach((await rig.attach("away")).attachment, false);
  assert.deepEqual(rig.configured(), []);
  await stop(server, "SIGTERM");
});
finish();
