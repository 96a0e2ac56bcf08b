/**
 * Fencing by persistent reservations (F8) between two hosts that share two iSCSI disks: alpha and beta have a state and
 * paths to the disks of their own, in one machine; beta's agent has the volume attached, with ext4 and a writer that
 * syncs every record. Run by reservation.test.ts, or by hand:
 *     CSNAP_TIER=full scripts/vm [--kernel 6.12] --env CSNAP_TIER -- node test/vm/reservation.mjs
 * Its last line is "N passed, N failed". CSNAP_TIER=full: all of it, else what the devices do.
 */
import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { appendFileSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { AgentClient } from "../../dist/agent/service.js";
import { openBroker } from "../../dist/broker/open.js";
import { ownIdentity } from "../../dist/broker/process_identity.js";
import { reservationKey } from "../../dist/broker/reservation.js";
import { native } from "../../dist/native.js";
import * as rig from "./attach-rig.mjs";
import { csnap, finish, run, startDaemon, statusOf } from "./attach-rig.mjs";

const VOLUME = "disk1";
const DISK_MB = 96;
/** Of what takes seconds where nothing else runs. */
const LIMIT_S = 300;
const test = (what, body) => rig.test(what, body, LIMIT_S);
const until = (what, ask) => rig.until(what, ask, LIMIT_S);
const WRITER = fileURLToPath(new URL("attach-writer.mjs", import.meta.url));
const mountPoint = `${rig.work}/mnt`;
const port = { etcd: 2379, peer: 2380, alpha: 10811, beta: 10812 };
/** Emulated, a busy machine answers late: a shorter grant would be lost for nothing. */
const GRANT_S = 15;
const broker = `etcd://127.0.0.1:${port.etcd}?grant=${GRANT_S}`;

// --- the disks -------------------------------------------------------------------------------------------------------

const paths = { alpha: {}, beta: {} };
const shared = execFileSync(
  "sh",
  [fileURLToPath(new URL("shared-disks.sh", import.meta.url)), rig.work, `${DISK_MB}`],
  { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] },
);
for (const line of shared.trim().split("\n")) {
  const [host, disk, device] = line.split(" ");
  paths[host][disk] = device;
}

/** One block past the page cache; what dd says of it. */
const write = (device) =>
  statusOf("dd", ["if=/dev/zero", `of=${device}`, "bs=4096", "count=1", "oflag=direct", "status=none"]);
const REFUSED = /Invalid exchange/;
const [ALPHA, BETA, GAMMA] = [0xa1n, 0xben, 0xc0n];

await test("a device refuses the writes of a host that another has shut out", async () => {
  const [a, b] = [paths.alpha.origin, paths.beta.origin];
  await native.probeReservation(a);
  assert.equal((await write(a)).status, 0, "a probe reserves nothing");
  await native.fenceDevices([a], { key: ALPHA, others: [] });
  assert.equal((await write(a)).status, 0);
  assert.match((await write(b)).text, REFUSED);
  await native.probeReservation(a);
  await native.probeReservation(b);
  assert.equal((await write(a)).status, 0, "a probe changes no registration");
  // Twice: the first try's answer may have been lost.
  for (let tries = 0; tries < 2; tries++) await native.fenceDevices([b], { key: BETA, others: [ALPHA] });
  assert.equal((await write(b)).status, 0);
  assert.match((await write(a)).text, REFUSED);
  // RV3: that a key is not registered proves nothing to a host that doesn't hold the reservation.
  await assert.rejects(native.fenceDevices([a], { key: ALPHA, others: [GAMMA] }), {
    code: "FENCED",
    message: new RegExp(`^${a} is reserved for another host`),
  });
  assert.match((await write(a)).text, REFUSED, "what could not reserve is not left registered");
  // A host that comes by another path takes over from itself.
  await native.fenceDevices([a], { key: BETA, others: [] });
  assert.equal((await write(a)).status, 0);
  assert.match((await write(b)).text, REFUSED);
  await native.clearReservations([b], GAMMA);
  assert.equal((await write(b)).status, 0);
});

await test("a device that is in use on this host is not fenced from here", async () => {
  const holder = spawn("sh", [
    "-c",
    `mkfs.ext4 -q ${paths.beta.origin} && mount ${paths.beta.origin} /mnt && echo up`,
  ]);
  await until("the mount", () => holder.exitCode === 0);
  await assert.rejects(native.fenceDevices([paths.beta.origin], { key: BETA, others: [ALPHA] }), {
    code: "BUSY",
  });
  await run("umount", ["/mnt"]);
});

await test("what takes no reservation is refused in one line", async () => {
  await run("modprobe", ["loop"]);
  await run("truncate", ["-s", "16M", `${rig.work}/file`]);
  const loop = (await run("losetup", ["--find", "--show", `${rig.work}/file`])).trim();
  for (const [device, why] of [
    [loop, /^\/dev\/loop\d+ takes no persistent reservations: use a .*, or declare --fence command=CMD$/],
    [`${rig.work}/file`, /is no block device, and can't be reserved/],
    ["/dev/none", /^\/dev\/none does not exist/],
  ])
    await assert.rejects(native.probeReservation(device), { message: why });
  await run("losetup", ["-d", loop]);
  await run("addpart", [paths.alpha.store, "1", "2048", "2048"]);
  const partition = `${paths.alpha.store}1`;
  await until("the partition", () => readdirSync("/dev").includes(partition.slice(5)));
  await assert.rejects(native.probeReservation(partition), { message: /is a partition/ });
  await run("delpart", [paths.alpha.store, "1"]);
});

// --- two hosts -------------------------------------------------------------------------------------------------------

// Servers, agents and etcd in one emulated machine that shares its processors: a grant may end for want of them.
if (process.env.CSNAP_TIER !== "full") finish();

function host(name) {
  const env = {
    CSNAP_HOST: name,
    CSNAP_BROKER: broker,
    CSNAP_STATE_DIR: `${rig.work}/${name}`,
    CSNAP_RUN_DIR: `${rig.work}/${name}.run`,
  };
  return { name, env, ...paths[name] };
}
const alpha = host("alpha");
const beta = host("beta");
const attached = new AgentClient(`${beta.env.CSNAP_RUN_DIR}/_agent.control`);

async function on({ name, env }, ...words) {
  const { status, stdout, stderr } = await csnap(words, { env });
  assert.equal(status, 0, `${name}: csnap ${words.join(" ")}: ${stderr}`);
  return stdout;
}

/** All of its processes: they have its state directory in their environment. */
const processesOf = ({ env }) =>
  readdirSync("/proc").filter((pid) => {
    try {
      return /^\d+$/.test(pid) && readFileSync(`/proc/${pid}/environ`, "utf8").includes(env.CSNAP_STATE_DIR);
    } catch {
      return false;
    }
  });
const signalAll = (of, signal) => {
  for (const pid of processesOf(of)) process.kill(Number(pid), signal);
};
/** Their processor time, in ticks of 10 ms. */
const ticksOf = (of) =>
  processesOf(of)
    .map((pid) => readFileSync(`/proc/${pid}/stat`, "utf8").replace(/.*\) /, "").split(" "))
    .reduce((sum, fields) => sum + Number(fields[11]) + Number(fields[12]), 0);

/** Its agent, and the spare server that this keeps ready: both have started when they are quiet. */
async function startHost(which) {
  await startDaemon(["agent"], "agent: ready", which.env);
  await until("its spare", () => processesOf(which).length > 1);
  let before = 0;
  await until("a quiet host", async () => {
    const former = before;
    before = ticksOf(which);
    await sleep(1000);
    return before - former < 20;
  });
}

const directory = openBroker(broker, { stateDir: alpha.env.CSNAP_STATE_DIR });
const show = () => directory.describe(VOLUME);
/** Published by a live holder, with an epoch above this one. */
const served = (above = 0n) =>
  until("a server", async () => {
    // A busy machine's etcd may leave one question unanswered.
    const { state, holder, epoch } = (await show().catch(() => undefined)) ?? {};
    return (
      state === "published" && holder.alive && epoch > above && { epoch, host: holder.host, pid: holder.pid }
    );
  });

async function isShutOut({ origin, store }) {
  for (const device of [origin, store]) assert.match((await write(device)).text, REFUSED);
}

const writer = { last: 0, status: undefined };
/** The writer comes on by this many records. */
async function progress(records = 10) {
  const from = writer.last;
  await until(`${records} records`, () => writer.last >= from + records || writer.status !== undefined);
  assert.equal(writer.status, undefined, "the writer has ended");
}

await test("a volume is declared to be fenced by reservations, and served so", async () => {
  mkdirSync(mountPoint);
  const [client, peer] = [`http://127.0.0.1:${port.etcd}`, `http://127.0.0.1:${port.peer}`];
  const words = ["--name=m", `--data-dir=${rig.work}/etcd`, "--logger=zap", "--log-level=error"];
  words.push(`--listen-client-urls=${client}`, `--advertise-client-urls=${client}`);
  words.push(
    `--listen-peer-urls=${peer}`,
    `--initial-advertise-peer-urls=${peer}`,
    `--initial-cluster=m=${peer}`,
  );
  spawn("etcd", words, { stdio: "ignore" });
  const health = () =>
    fetch(`${client}/health`).then(
      (answer) => answer.ok,
      () => false,
    );
  await until("etcd", health);
  await on(alpha, "init", VOLUME, "--origin", alpha.origin, "--store", alpha.store);
  await on(beta, "import", beta.store, "--name", VOLUME, "--origin", beta.origin);
  for (const { name, env } of [alpha, beta])
    appendFileSync(
      `${env.CSNAP_STATE_DIR}/volumes/${VOLUME}.toml`,
      `\n[serve]\nlisten = ["127.0.0.1:${port[name]}"]\n`,
    );
  await on(alpha, "volume", "define", VOLUME, "--store-class", "shared-block", "--fence", "scsi-pr");
  await startDaemon(["serve", VOLUME], `${VOLUME} ready`, alpha.env);
  assert.equal((await served()).host, "alpha");
  await isShutOut(beta);
});

await test("a file system of the other host is on it", async () => {
  await run("modprobe", ["nbd"]);
  await startHost(beta);
  const any = { snapshot: null, read_only: false, device: null, error_after_ms: null };
  const { device } = await attached.attach({ volume: VOLUME, ...any });
  await run("mkfs.ext4", ["-q", device]);
  await run("mount", [device, mountPoint]);
  const stdio = ["ignore", "pipe", "inherit"];
  writer.child = spawn(process.execPath, [WRITER, `${mountPoint}/records`, "write"], { stdio });
  writer.child.once("exit", (status, signal) => (writer.status = signal ?? status));
  let rest = "";
  writer.child.stdout.setEncoding("utf8").on("data", (text) => {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    if (lines.length > 0) writer.last = Number(lines.at(-1).split(" ")[0]);
  });
  // More than it has slots for, or it could not be verified.
  await progress(100);
});

const evil = rig.watchKernel();

await test("a host that is silent is fenced by its successor, and can't write when it is back", async () => {
  const first = await served();
  assert.equal(first.host, "alpha");
  const began = rig.now();
  signalAll(alpha, "SIGSTOP");
  const second = await served(first.epoch);
  console.log(`    taken over within ${(rig.now() - began).toFixed(1)} s`);
  assert.equal(second.host, "beta");
  assert.match(rig.said(), new RegExp(`${VOLUME}: its devices are reserved for this host, no other`));
  await progress();
  await isShutOut(alpha);
  signalAll(alpha, "SIGCONT");
  await until("the end of the former server", () => processesOf(alpha).length === 0);
  await isShutOut(alpha);
  await progress();
  assert.equal((await show()).epoch, second.epoch);
});

await test("a planned move needs no fence, and leaves the former host shut out", async () => {
  const first = await served();
  assert.equal(first.host, "beta");
  await startHost(alpha);
  const before = rig.said().length;
  const began = rig.now();
  await directory.move(VOLUME, "alpha");
  const second = await served(first.epoch);
  console.log(`    moved within ${(rig.now() - began).toFixed(1)} s`);
  assert.equal(second.host, "alpha");
  assert.doesNotMatch(rig.said().slice(before), /reserving its devices/);
  await isShutOut(beta);
  await progress();
});

await test("a server whose devices are taken from it ends, and no client sees an error", async () => {
  const first = await served();
  assert.equal(first.host, "alpha");
  // As by a fence that was late: the server's own grant is good.
  const { volumeUuid } = (await show()).spec;
  const { machine } = ownIdentity();
  const keyOf = (name) => reservationKey(volumeUuid, { host: name, machine });
  const before = rig.said().length;
  await native.fenceDevices([beta.store, beta.origin], { key: keyOf("beta"), others: [keyOf("alpha")] });
  await until("its word", () => /another host has reserved it/.test(rig.said().slice(before)));
  const second = await served(first.epoch);
  console.log(`    epoch ${first.epoch} on ${first.host}, then ${second.epoch} on ${second.host}`);
  await progress();
});

await test("all that was acknowledged is there, and the volume is sound", async () => {
  writer.child.kill("SIGKILL");
  await until("the writer's end", () => writer.status !== undefined);
  await run(process.execPath, [WRITER, `${mountPoint}/records`, "verify", String(writer.last)]);
  await run("umount", [mountPoint]);
  await attached.detach(VOLUME, false);
  assert.deepEqual(evil(), []);
  await directory.setAdminState(VOLUME, "disabled");
  await until("the end", async () => (await show()).state === "vacant");
  await on(alpha, "check", VOLUME, "--data");
  await on(beta, "check", VOLUME, "--data");
});

await test("declared otherwise, its devices are free again", async () => {
  await on(beta, "volume", "define", VOLUME, "--store-class", "shared-block", "--fence", "command=true");
  for (const device of [alpha.origin, beta.origin]) assert.equal((await write(device)).status, 0);
});

finish();
