/**
 * The part of `scripts/bench vm` in the machine: csnap, dm-snapshot and LVM thin on the one throttled disk, in
 * interleaved rounds. Everything is made once; each round writes to regions that nobody has written since the snapshots
 * were taken, so no round finds more to do than another. Prints a JSON line for each run: what the whole disk was asked
 * for, and how long it took. vm.bench.ts starts it.
 *
 * BV1 A run counts what the disk does until it has been quiet: nothing is left for the next one.
 * BV2 Every write of a run is a first write. csnap tells so itself (copy-outs); the others by regions used once.
 * BV3 Nobody begins with data of the origin in the page cache.
 */
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import * as rig from "../../vm/attach-rig.mjs";

const DISK = "vda";
const GROUP = "bench";
const MIB = 1 << 20;
const REGION_BYTES = 64 * 1024;
const QUIET_S = 1.2;
const QUIET_LIMIT_S = 120;
/** At the least --iops that makes sense. */
const SETTLED_LIMIT_S = 600;
const [rounds, writes, depth, originMib, iops] = ["ROUNDS", "WRITES", "DEPTH", "ORIGIN_MIB", "IOPS"].map(
  (name) => Number(process.env[`CSNAP_BENCH_${name}`]),
);
const only = process.env.CSNAP_BENCH_ONLY ?? "";
const loader = process.env.CSNAP_BENCH_LOADER;
const run = promisify(execFile);

// --- the disk --------------------------------------------------------------------------------------------------------

/** Since boot, of the whole disk or of a logical volume ("dm-1"): Documentation/block/stat.rst. */
function diskCounts(disk = DISK) {
  const fields = readFileSync(`/sys/block/${disk}/stat`, "utf8").trim().split(/\s+/).map(Number);
  return {
    reads: fields[0],
    readBytes: fields[2] * 512,
    writes: fields[4],
    writtenBytes: fields[6] * 512,
    flushes: fields[15],
    busyS: fields[9] / 1000,
  };
}

/** Of both processors together, since boot: s. */
function processorS() {
  const [user, nice, system, , , irq, softirq] = readFileSync("/proc/stat", "utf8")
    .split("\n", 1)[0]
    .trim()
    .split(/\s+/)
    .slice(1)
    .map((ticks) => Number(ticks) / 100);
  return user + nice + system + irq + softirq;
}

const requests = ({ reads, writes, flushes }) => reads + writes + flushes;

/** BV1 */
async function quietDisk() {
  const limit = rig.now() + QUIET_LIMIT_S;
  let [last, since] = [requests(diskCounts()), rig.now()];
  while (rig.now() - since < QUIET_S) {
    await sleep(100);
    const seen = requests(diskCounts());
    if (seen !== last) [last, since] = [seen, rig.now()];
    if (rig.now() > limit) throw new Error(`the disk is not quiet after ${QUIET_LIMIT_S} s`);
  }
}

// --- LVM, which has no udev here -------------------------------------------------------------------------------------

const lvmConfig = `
devices { use_devicesfile = 0 obtain_device_list_from_udev = 0 external_device_info_source = "none" global_filter = [ "a|^/dev/${DISK}$|", "r|.*|" ] }
activation { udev_sync = 0 udev_rules = 0 monitoring = 0 }
backup { backup = 0 archive = 0 }
global { event_activation = 0 }
`;
const lvm = (...words) => run("lvm", words, { env: { ...process.env, LVM_SYSTEM_DIR: "/run/bench-lvm" } });

async function makeGroup() {
  for (const module of ["dm_mod", "dm_snapshot", "dm_thin_pool", "nbd"]) await run("modprobe", [module]);
  mkdirSync("/run/bench-lvm");
  writeFileSync("/run/bench-lvm/lvm.conf", lvmConfig);
  await lvm("pvcreate", "-q", `/dev/${DISK}`);
  await lvm("vgcreate", "-q", GROUP, `/dev/${DISK}`);
}

const device = (name) => `/dev/${GROUP}/${name}`;
const makeVolume = (name, mib) =>
  lvm("lvcreate", "-qq", "-y", "-Wn", "-Zn", "-L", `${mib}m`, "-n", name, GROUP);
/** Its name in /sys/block; its node in /dev has its minor number. */
function kernelName(name) {
  const { rdev } = statSync(device(name));
  return `dm-${(rdev & 0xff) | ((rdev >>> 12) & 0xfff00)}`;
}
/** Of content that all rounds may copy once. */
const copiedMib = (chunkBytes) => Math.ceil((rounds * writes * chunkBytes) / MIB);

// --- who takes part --------------------------------------------------------------------------------------------------

/**
 * The contract: begin() returns the device to write to; settled(), called once the device is synced, waits until all that
 * a write owes is on the disk, and returns when that was, unless it was at the sync. `parts`, if it has any, are the
 * logical volumes that share what the disk is asked for.
 */
class Csnap {
  constructor(chunkKib, snapshots) {
    this.name = `csnap ${chunkKib}k`;
    this.chunkKib = chunkKib;
    this.snapshots = snapshots;
    this.volume = `c${chunkKib}x${snapshots}`;
    this.parts = { origin: this.volume, store: `${this.volume}-store` };
  }
  /** First of all: its content is what the host has written to the disk's beginning. */
  prepareOrigin() {
    return makeVolume(this.volume, originMib);
  }
  async prepare() {
    const storeMib = 2 * copiedMib(this.chunkKib * 1024) + 256;
    await makeVolume(this.parts.store, storeMib);
    await rig.ok([
      ...["init", this.volume, "--origin", device(this.parts.origin), "--store", device(this.parts.store)],
      ...["--chunk-size", `${this.chunkKib}k`, "--on-full", "refuse-writes", "--progress", "none", "--force"],
    ]);
    const server = await rig.startServer(this.volume);
    for (let i = 0; i < this.snapshots; i++) await rig.snapshot(`s${i}`, this.volume);
    await rig.stop(server, "SIGTERM");
  }
  async begin() {
    this.server = await rig.startServer(this.volume);
    const { device } = await rig.attach(this.volume);
    this.copied = (await this.counters()).copied;
    return device;
  }
  async counters() {
    const { store, counters } = await rig.server(this.volume).status();
    return { staged: store.staged, copied: counters.copy_outs };
  }
  /** Nothing is staged any more, and everything is copied out (BV2). */
  async settled() {
    const nothingLeft = async () => {
      const { staged, copied } = await this.counters();
      return staged === 0 && copied - this.copied >= writes;
    };
    await rig.until("nothing is staged any more", nothingLeft, SETTLED_LIMIT_S);
    const at = rig.now();
    assert.equal(
      (await this.counters()).copied - this.copied,
      writes,
      `${this.name}: not all were first writes`,
    );
    return at;
  }
  async end() {
    await rig.agent.detach(this.volume, false);
    await rig.stop(this.server, "SIGTERM");
  }
}

class DmSnapshot {
  name = "dm-snapshot 16k";
  chunkKib = 16;
  constructor(snapshots) {
    this.snapshots = snapshots;
  }
  async prepare() {
    const origin = `d${this.snapshots}`;
    await makeVolume(origin, originMib);
    const mib = Math.ceil(1.1 * copiedMib(this.chunkKib * 1024)) + 8;
    for (let i = 0; i < this.snapshots; i++)
      await lvm(
        "lvcreate",
        "-qq",
        "-y",
        "-s",
        "-c",
        "16k",
        "-L",
        `${mib}m`,
        "-n",
        `${origin}s${i}`,
        `${GROUP}/${origin}`,
      );
  }
  begin() {
    return device(`d${this.snapshots}`);
  }
  settled() {}
  end() {}
}

/** One pool; its chunks can't be smaller than 64 KiB. */
class LvmThin {
  name = "LVM thin 64k";
  chunkKib = 64;
  static #pool;
  constructor(snapshots) {
    this.snapshots = snapshots;
  }
  static #makePool() {
    const mib = 3 * (originMib + copiedMib(REGION_BYTES)) + 64;
    return lvm(
      ...["lvcreate", "-qq", "-y", "--type", "thin-pool", "-c", "64k", "-L", `${mib}m`],
      ...["--poolmetadatasize", "32m", "-n", "pool", GROUP],
    );
  }
  /** What was never written has no chunk to be copied: all of the origin is, before its snapshots. */
  async prepare() {
    LvmThin.#pool ??= LvmThin.#makePool();
    await LvmThin.#pool;
    const origin = `t${this.snapshots}`;
    await lvm("lvcreate", "-qq", "-y", "-Wn", "-V", `${originMib}m`, "-T", `${GROUP}/pool`, "-n", origin);
    await run("dd", [
      "if=/dev/zero",
      `of=${device(origin)}`,
      "bs=1M",
      `count=${originMib}`,
      "oflag=direct",
      "conv=fsync",
    ]);
    for (let i = 0; i < this.snapshots; i++)
      await lvm("lvcreate", "-qq", "-y", "-s", "-n", `${origin}s${i}`, `${GROUP}/${origin}`);
  }
  begin() {
    return device(`t${this.snapshots}`);
  }
  settled() {}
  end() {}
}

// --- rounds ----------------------------------------------------------------------------------------------------------

/** Every region once, over all rounds, in an order that is the same in each run of the benchmark. */
function regionOrder() {
  const order = Array.from({ length: (originMib * MIB) / REGION_BYTES }, (_, i) => i);
  let state = 1;
  for (let i = order.length - 1; i > 0; i--) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0; // Numerical Recipes' generator
    const other = Math.floor((state / 2 ** 32) * (i + 1));
    [order[i], order[other]] = [order[other], order[i]];
  }
  return order;
}

async function load(target, offsets) {
  const child = spawn(loader, [target, String(depth)], { stdio: ["pipe", "pipe", "inherit"] });
  child.stdin.end(offsets.join("\n"));
  let said = "";
  child.stdout.setEncoding("utf8").on("data", (text) => (said += text));
  const [status] = await new Promise((resolve) => child.once("close", (...how) => resolve(how)));
  assert.equal(status, 0, `first-writes ended with ${status}`);
  return said.trim().split(" ").map(Number);
}

async function runOnce(one, round, offsets) {
  const target = await one.begin();
  await run("sync");
  writeFileSync("/proc/sys/vm/drop_caches", "3"); // BV3
  await quietDisk();
  const partNames = Object.entries(one.parts ?? {}).map(([part, name]) => [part, kernelName(name)]);
  const partCounts = () => partNames.map(([, name]) => diskCounts(name));
  const [before, partsBefore, processorBefore] = [diskCounts(), partCounts(), processorS()];
  const [start, acknowledged, flushed] = await load(target, offsets);
  const end = (await one.settled()) ?? flushed;
  const [atEnd, processorEnd] = [diskCounts(), processorS()];
  await quietDisk();
  const [after, partsAfter] = [diskCounts(), partCounts()];
  await one.end();
  await quietDisk();
  const closed = diskCounts();
  const count = (from, to) => ({
    reads: to.reads - from.reads,
    readBytes: to.readBytes - from.readBytes,
    writes: to.writes - from.writes,
    writtenBytes: to.writtenBytes - from.writtenBytes,
    flushes: to.flushes - from.flushes,
  });
  const seconds = end - start;
  return {
    contestant: one.name,
    snapshots: one.snapshots,
    round,
    firstWrites: offsets.length,
    seconds,
    acknowledgedS: acknowledged - start,
    disk: count(before, after),
    parts: Object.fromEntries(partNames.map(([part], i) => [part, count(partsBefore[i], partsAfter[i])])),
    closing: count(after, closed),
    diskBusy: (atEnd.busyS - before.busyS) / seconds,
    processorBusy: (processorEnd - processorBefore) / (2 * seconds),
    ofLimit: (atEnd.reads - before.reads + atEnd.writes - before.writes) / seconds / iops,
  };
}

const all = [1, 4, 16].flatMap((snapshots) => [
  new Csnap(16, snapshots),
  new DmSnapshot(snapshots),
  new Csnap(64, snapshots),
  new LvmThin(snapshots),
]);
const taking = all.filter(({ name, snapshots }) => `${name} ${snapshots}`.includes(only));

async function measure() {
  await makeGroup();
  mkdirSync(rig.stateDir, { recursive: true });
  await rig.startAgent();
  for (const one of taking) await one.prepareOrigin?.();
  for (const one of taking) {
    await one.prepare();
    console.error(`bench: ${one.name}, ${one.snapshots} snapshots: ready`);
  }
  const order = regionOrder();
  for (let round = 0; round < rounds; round++) {
    const offsets = order.slice(round * writes, (round + 1) * writes).map((region) => region * REGION_BYTES);
    for (let i = 0; i < taking.length; i++)
      console.log(JSON.stringify(await runOnce(taking[(i + round) % taking.length], round, offsets)));
  }
}

try {
  await measure();
} catch (error) {
  console.error(`${error.stack}\n${rig.said().slice(-4000)}`);
  process.exit(1);
}
process.exit(0);
