/**
 * The data path beside the servers that people use today, in interleaved rounds: each round runs every contestant once,
 * in an order that turns. Run by `scripts/bench data`, which sets CSNAP_BENCH_OUT: a JSON line for each contestant of a
 * workload goes there, then one for each comparison.
 */
import { appendFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import tmp from "tmp";
import { afterAll, beforeAll, describe, it } from "vitest";
import { addressOf, NbdClient } from "../support/nbd-client.js";
import { type Contestant, contestants, type Running } from "./data/contestants.js";
import { fio, type Load, type Outcome, offsetsFile } from "./data/fio.js";
import { median, ratioOf } from "./data/statistics.js";
import { type Workload, workloads } from "./data/workloads.js";

const { CSNAP_BENCH_OUT: out, CSNAP_BENCH_ONLY: only, CSNAP_BENCH_DIR: parent } = process.env;
const rounds = Number(process.env.CSNAP_BENCH_ROUNDS ?? 15);
const seconds = process.env.CSNAP_BENCH_SECONDS;
const sizeBytes = Number(process.env.CSNAP_BENCH_MIB ?? 1024) * 2 ** 20;
const REGION_BYTES = 64 * 1024;

interface Run extends Outcome {
  /** of the workload's unit */
  readonly rate: number;
}

const directory = tmp.dirSync({
  prefix: "csnap-bench-",
  ...(parent !== undefined && { tmpdir: parent }),
}).name;
const offsets = join(directory, "offsets");
const all = contestants(directory, sizeBytes);

/** The clock runs from the first write on, so a flush that follows is time of the same work. */
async function measured(
  one: Contestant,
  running: Running,
  { load, unit, toTheFlush }: Workload,
): Promise<Run> {
  const timed: Load = seconds === undefined ? load : { ...load, seconds: Number(seconds) };
  const outcome = await fio(running.uri, timed, sizeBytes, running.pids);
  if (unit === "MB/s") return { ...outcome, rate: outcome.bytesPerSecond / 1e6 };
  if (toTheFlush !== true) return { ...outcome, rate: outcome.perSecond };
  const name = new URL(running.uri).pathname.slice(1);
  const client = await NbdClient.open(addressOf(running.uri), { export: name, timeoutMs: 120_000 });
  const start = performance.now();
  await client.flush();
  const flushS = (performance.now() - start) / 1000;
  await client.disconnect();
  if (outcome.requests === 0) throw new Error(`${one.name} wrote nothing`);
  return { ...outcome, rate: outcome.requests / (outcome.requests / outcome.perSecond + flushS) };
}

async function runOnce(one: Contestant, workload: Workload): Promise<Run> {
  if (workload.before === "share" && one.live !== true) await one.shareAll?.();
  if (workload.before === "drop-cache") await one.dropCache();
  const running = await one.start();
  try {
    if (workload.before === "share" && one.live === true) await one.shareAll?.();
    return await measured(one, running, workload);
  } finally {
    await running.stop();
  }
}

function report(workload: Workload, runs: ReadonlyMap<string, readonly Run[]>): void {
  const say = (row: object) => appendFileSync(out ?? "", `${JSON.stringify(row)}\n`);
  const of = (name: string, figure: keyof Run) => (runs.get(name) ?? []).map((run) => run[figure]);
  for (const name of runs.keys())
    say({
      workload: workload.name,
      server: name,
      unit: workload.unit,
      rate: rounded(median(of(name, "rate"))),
      p50_us: rounded(median(of(name, "p50Us"))),
      p99_us: rounded(median(of(name, "p99Us"))),
      max_us: rounded(Math.max(...of(name, "maxUs"))),
      server_cpu_us_per_request: rounded(median(of(name, "serverCpuUs"))),
      rounds,
    });
  for (const { peer, least, aim } of workload.peers) {
    const ratio = ratioOf(of(workload.ours, "rate"), of(peer, "rate"));
    const cpu = ratioOf(of(workload.ours, "serverCpuUs"), of(peer, "serverCpuUs"));
    say({
      workload: workload.name,
      server: workload.ours,
      against: peer,
      ratio: rounded(ratio.median),
      low95: ratio.low === null ? null : rounded(ratio.low),
      high95: ratio.high === null ? null : rounded(ratio.high),
      least: least ?? null,
      aim: aim ?? null,
      cpu_ratio: rounded(cpu.median),
      rounds,
    });
  }
}

const rounded = (value: number) => Number(value.toPrecision(4));

describe.skipIf(out === undefined)("the data path", () => {
  const prepared = new Set<Contestant>();

  beforeAll(() => offsetsFile(offsets, REGION_BYTES, sizeBytes / REGION_BYTES, 1));
  afterAll(async () => {
    for (const one of prepared) await one.close();
    rmSync(directory, { recursive: true, force: true });
  });

  async function contestant(name: string): Promise<Contestant> {
    const one = all.get(name);
    if (!one) throw new Error(`no contestant ${name}`);
    if (!prepared.has(one)) {
      prepared.add(one);
      await one.prepare();
    }
    return one;
  }

  const chosen = workloads(offsets).filter(({ name }) => only === undefined || name.includes(only));
  for (const workload of chosen)
    it(workload.name, { timeout: 0 }, async () => {
      const names = [workload.ours, ...workload.peers.map(({ peer }) => peer)];
      const taking: Contestant[] = [];
      for (const name of names) taking.push(await contestant(name));
      const runs = new Map<string, Run[]>(names.map((name) => [name, []]));
      for (let round = 0; round < rounds; round++)
        for (let i = 0; i < taking.length; i++) {
          const one = taking[(i + round) % taking.length];
          if (one) runs.get(one.name)?.push(await runOnce(one, workload));
        }
      report(workload, runs);
    });
});
