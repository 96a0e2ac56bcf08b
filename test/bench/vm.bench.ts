/**
 * First writes after a snapshot through csnap, dm-snapshot and LVM thin, in a virtual machine whose disk is slower than
 * its emulated processors: what they ask of the disk, exactly, and how long that takes. Run by `scripts/bench vm`, which
 * sets CSNAP_BENCH_OUT; the rows go there at the end, and each run as it comes to CSNAP_BENCH_RUNS, where that is set.
 */
import { execFileSync, spawn } from "node:child_process";
import {
  appendFileSync,
  closeSync,
  fsyncSync,
  mkdirSync,
  openSync,
  rmSync,
  statSync,
  truncateSync,
  writeSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import tmp from "tmp";
import { describe, it } from "vitest";
import { type Run, rowsOf } from "./vm/rows.js";

const { CSNAP_BENCH_OUT: out, CSNAP_BENCH_RUNS: each, CSNAP_BENCH_DIR: parent } = process.env;
const rounds = Number(process.env.CSNAP_BENCH_ROUNDS ?? 15);
const writes = Number(process.env.CSNAP_BENCH_WRITES ?? 400);
/** At 500 the emulated processors decide, not the disk: `disk_busy` is 0.6 under csnap. */
const iops = process.env.CSNAP_BENCH_IOPS ?? "200";
const depth = process.env.CSNAP_BENCH_DEPTH ?? "16";
const kernel = process.env.CSNAP_BENCH_KERNEL ?? "6.12";
const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const MIB = 2 ** 20;
const REGION_BYTES = 64 * 1024;
/** Regions of a round shall lie apart also where there are few rounds. */
const ORIGIN_MIB_MIN = 256;
/** csnap's six origins are the first things on the disk. */
const FILLED_ORIGINS = 6;
const LVM_HEAD_BYTES = MIB;
/** Sparse: only what is used takes room. */
const DISK_BYTES = 64 * 1024 * MIB;

/** A chunk of zeros would cost csnap nothing, so there are none where its origins will be. */
function makeDisk(path: string, originMib: number): void {
  const fd = openSync(path, "wx");
  const block = Buffer.alloc(MIB);
  const upto = LVM_HEAD_BYTES + FILLED_ORIGINS * originMib * MIB;
  for (let at = LVM_HEAD_BYTES; at < upto; at += block.length) {
    block.fill(((at / block.length) & 0xff) | 1);
    writeSync(fd, block, 0, block.length, at);
  }
  fsyncSync(fd); // nothing of it shall be on its way to the disk while the machine measures
  closeSync(fd);
  truncateSync(path, DISK_BYTES);
}

async function inMachine(disk: string, loader: string, originMib: number): Promise<Run[]> {
  const settings = {
    CSNAP_BENCH_ROUNDS: String(rounds),
    CSNAP_BENCH_WRITES: String(writes),
    CSNAP_BENCH_ORIGIN_MIB: String(originMib),
    CSNAP_BENCH_IOPS: iops,
    CSNAP_BENCH_DEPTH: depth,
    CSNAP_BENCH_ONLY: process.env.CSNAP_BENCH_ONLY ?? "",
    CSNAP_BENCH_LOADER: loader,
  };
  const environment = Object.entries(settings).flatMap(([name, value]) => ["--env", `${name}=${value}`]);
  const machine = ["--kernel", kernel, "--timeout", "0", "--throttled-disk", `${disk},${iops}`];
  const shared = ["--share", dirname(loader)];
  const child = spawn(
    "scripts/vm",
    [...machine, ...shared, ...environment, "--", process.execPath, "test/bench/vm/guest.mjs"],
    { cwd: ROOT, stdio: ["ignore", "pipe", "inherit"] },
  );
  const runs: Run[] = [];
  const lines = createInterface({ input: child.stdout });
  lines.on("line", (line) => {
    runs.push(JSON.parse(line) as Run);
    if (each !== undefined) appendFileSync(each, `${line}\n`);
  });
  const [status] = await Promise.all([
    new Promise<number | null>((resolve) => child.once("exit", resolve)),
    new Promise((resolve) => lines.once("close", resolve)),
  ]);
  if (status !== 0) throw new Error(`the machine ended with ${status}`);
  return runs;
}

describe.skipIf(out === undefined)("first writes on a slow disk", () => {
  it("csnap, dm-snapshot and LVM thin", { timeout: 0 }, async () => {
    const directory = tmp.dirSync({
      prefix: "csnap-bench-",
      ...(parent !== undefined && { tmpdir: parent }),
    }).name;
    try {
      const loader = join(directory, "shared", "first-writes");
      mkdirSync(dirname(loader));
      const source = join(ROOT, "test/bench/vm/first-writes.c");
      execFileSync("cc", ["-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", "-o", loader, source]);
      const originMib = Math.max(ORIGIN_MIB_MIN, Math.ceil((rounds * writes * REGION_BYTES) / MIB / 4) * 4);
      const disk = join(directory, "disk");
      makeDisk(disk, originMib);
      const runs = await inMachine(disk, loader, originMib);
      const rows: object[] = [
        { iops: Number(iops), kernel, first_writes: writes, depth: Number(depth) },
        ...rowsOf(runs),
      ];
      appendFileSync(out ?? "", rows.map((row) => `${JSON.stringify(row)}\n`).join(""));
      console.error(`the disk's image took ${Math.round((statSync(disk).blocks * 512) / MIB)} MiB`);
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
  });
});
