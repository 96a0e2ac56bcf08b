/** One run of fio's nbd engine (libnbd) against a server, and what it and the server's processes cost. */
import { execFile } from "node:child_process";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { promisify } from "node:util";
import { seededRandom } from "../../support/random.js";

const run = promisify(execFile);
const CLOCK_TICKS_PER_S = 100;
const LIMIT_MS = 300_000;

export interface Load {
  readonly rw: "randread" | "randwrite" | "randrw" | "read" | "write";
  /** Of randrw. */
  readonly readPercent?: number;
  readonly blockBytes: number;
  readonly depth: number;
  /** Each is a process of its own. */
  readonly connections: number;
  /** Length of a run; with `offsets` it also ends when each was written once. */
  readonly seconds: number;
  /** A file of offsetsFile(). */
  readonly offsets?: string;
  /** A flush after so many writes. */
  readonly flushEvery?: number;
  /** At most so many requests a second. */
  readonly perSecond?: number;
  /** The processors that client and server may use. */
  readonly pin?: { readonly client: string; readonly server: string };
}

export interface Outcome {
  /** Reads and writes; flushes are not counted. */
  readonly requests: number;
  readonly seconds: number;
  readonly bytesPerSecond: number;
  readonly p50Us: number;
  readonly p99Us: number;
  readonly maxUs: number;
  /** Processor time of the server's processes until the load ended, in seconds. */
  readonly serverCpuS: number;
}

interface Report {
  readonly jobs: readonly [
    {
      readonly error: number;
      /** Reads and writes together. */
      readonly mixed: {
        readonly total_ios: number;
        readonly iops: number;
        readonly bw_bytes: number;
        readonly clat_ns: { readonly max: number; readonly percentile?: Readonly<Record<string, number>> };
      };
    },
  ];
}

/** What fio is told for a load on `uri`. */
export function fioArguments(uri: string, load: Load, sizeBytes: number): string[] {
  const what =
    load.offsets === undefined
      ? [
          `--rw=${load.rw}`,
          `--bs=${load.blockBytes}`,
          "--norandommap",
          "--time_based",
          `--runtime=${load.seconds}`,
          ...(load.readPercent === undefined ? [] : [`--rwmixread=${load.readPercent}`]),
          ...(load.flushEvery === undefined ? [] : [`--fsync=${load.flushEvery}`]),
          ...(load.perSecond === undefined ? [] : [`--rate_iops=${Math.round(load.perSecond)}`]),
        ]
      : [`--read_iolog=${load.offsets}`, "--replay_no_stall=1", `--runtime=${load.seconds}`];
  return [
    `--name=${JOB}`,
    "--ioengine=nbd",
    `--uri=${uri}`,
    `--size=${sizeBytes}`,
    `--iodepth=${load.depth}`,
    `--numjobs=${load.connections}`,
    "--group_reporting",
    "--unified_rw_reporting=mixed",
    "--randrepeat=0",
    "--output-format=json",
    ...what,
  ];
}

/**
 * Throws with what fio said where it could not run or a request failed.
 *
 * fio 3.33 doesn't wait for the last requests of a list of offsets: when it has submitted the last one it closes the
 * connection, and counts all. As many as may have been under way then, all but one of the depth, are not counted here.
 */
export async function fio(
  uri: string,
  load: Load,
  sizeBytes: number,
  pids: readonly number[],
): Promise<Outcome> {
  if (load.pin) for (const pid of pids) await run("taskset", ["-apc", load.pin.server, String(pid)]);
  const [command = "fio", ...words] = load.pin ? ["taskset", "-c", load.pin.client, "fio"] : ["fio"];
  const before = cpuSeconds(pids);
  const { stdout, stderr } = await run(command, [...words, ...fioArguments(uri, load, sizeBytes)], {
    timeout: LIMIT_MS,
    maxBuffer: 1 << 24,
  });
  const spent = cpuSeconds(pids) - before;
  const { jobs } = JSON.parse(stdout.slice(stdout.indexOf("{"))) as Report;
  const [{ error, mixed }] = jobs;
  if (error !== 0 || mixed.total_ios === 0) throw new Error(`fio against ${uri} failed: ${stderr}${stdout}`);
  const requests = mixed.total_ios - (load.offsets === undefined ? 0 : load.depth - 1);
  const us = (percent: string) => (mixed.clat_ns.percentile?.[percent] ?? Number.NaN) / 1000;
  return {
    requests,
    seconds: mixed.total_ios / mixed.iops,
    bytesPerSecond: mixed.bw_bytes,
    p50Us: us("50.000000"),
    p99Us: us("99.000000"),
    maxUs: mixed.clat_ns.max / 1000,
    serverCpuS: spent,
  };
}

const JOB = "bench";

/** An order of writes for fio: 4 KiB into each of the first `regions` regions, once, in a seeded random order. */
export function offsetsFile(path: string, regionBytes: number, regions: number, seed: number): void {
  const random = seededRandom(seed);
  const order = Array.from({ length: regions }, (_, i) => i);
  for (let i = order.length - 1; i > 0; i--) {
    const other = Math.floor(random() * (i + 1));
    [order[i], order[other]] = [order[other] ?? 0, order[i] ?? 0];
  }
  // The name is that of fio's first job and file.
  const file = `${JOB}.0.0`;
  const writes = order.map((region) => `${file} write ${region * regionBytes} 4096\n`);
  writeFileSync(
    path,
    ["fio version 2 iolog\n", `${file} add\n${file} open\n`, ...writes, `${file} close\n`].join(""),
  );
}

/** User and system time of the processes with all their threads and the children that they waited for. */
function cpuSeconds(pids: readonly number[]): number {
  let ticks = 0;
  for (const pid of pids) {
    const fields = statFields(pid);
    for (const time of fields?.slice(11, 15) ?? []) ticks += Number(time);
  }
  return ticks / CLOCK_TICKS_PER_S;
}

/** From the state on; undefined: it has ended. */
function statFields(pid: number): string[] | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    return stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  } catch {
    return undefined;
  }
}

/** The process and its descendants. */
export function processTree(root: number): number[] {
  const parents = new Map<number, number>();
  for (const name of readdirSync("/proc")) {
    if (/^\d+$/.test(name)) parents.set(Number(name), Number(statFields(Number(name))?.[1]));
  }
  const tree = [root];
  for (const pid of tree) for (const [child, parent] of parents) if (parent === pid) tree.push(child);
  return tree;
}
