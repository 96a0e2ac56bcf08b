/**
 * The data path beside the servers that people use today, in interleaved rounds: each round runs every contestant once,
 * in an order that turns. Then what happens now and then, under load. Run by `scripts/bench data`, which sets
 * CSNAP_BENCH_OUT: rows go there as they are measured.
 */
import { rmSync } from "node:fs";
import { join } from "node:path";
import tmp from "tmp";
import { afterAll, beforeAll, describe, it } from "vitest";
import type { Contestant } from "./data/contestant.js";
import { contestants } from "./data/contestants.js";
import { Csnap } from "./data/csnap.js";
import { offsetsFile } from "./data/fio.js";
import { measure, type Run } from "./data/measure.js";
import { rateRow, ratioRow, say } from "./data/rows.js";
import { scenarios } from "./data/scenarios.js";
import { median, ratioOf } from "./data/statistics.js";
import type { Workload } from "./data/workload.js";
import { workloads } from "./data/workloads.js";

const { CSNAP_BENCH_OUT: out = "", CSNAP_BENCH_ONLY: only = "", CSNAP_BENCH_DIR: parent } = process.env;
const rounds = Number(process.env.CSNAP_BENCH_ROUNDS ?? 15);
const seconds = process.env.CSNAP_BENCH_SECONDS;
const sizeBytes = Number(process.env.CSNAP_BENCH_MIB ?? 1024) * 2 ** 20;
const REGION_BYTES = 64 * 1024;
const SCENARIO_SECONDS = 2;

const directory = tmp.dirSync({
  prefix: "csnap-bench-",
  ...(parent !== undefined && { tmpdir: parent }),
}).name;
const offsets = { every: join(directory, "offsets"), some: join(directory, "offsets-some") };
const all = contestants(directory, sizeBytes);

function timed({ load, ...others }: Workload): Workload {
  return { ...others, load: seconds === undefined ? load : { ...load, seconds: Number(seconds) } };
}

const participants = ({ ours, peers }: Workload) => [ours, ...peers.map(({ peer }) => peer)];

function rowsOf(workload: Workload, runs: ReadonlyMap<string, readonly Run[]>): object[] {
  const of = (name: string, figure: (run: Run) => number) => (runs.get(name) ?? []).map(figure);
  const rate = (run: Run) => run.rate;
  const cpuUs = ({ serverCpuS, requests }: Run) => (serverCpuS * 1e6) / requests;
  const rates = [...runs.keys()].map((name) =>
    rateRow({ workload: workload.name, server: name }, workload.unit, of(name, rate), {
      requests: median(of(name, (run) => run.requests)),
      seconds: median(of(name, (run) => run.seconds)),
      p50_us: median(of(name, (run) => run.p50Us)),
      p99_us: median(of(name, (run) => run.p99Us)),
      max_us: Math.max(...of(name, (run) => run.maxUs)),
      server_cpu_us_per_request: median(of(name, cpuUs)),
    }),
  );
  const ratios = workload.peers.map(({ peer, ...asked }) =>
    ratioRow(
      { workload: workload.name, server: workload.ours },
      peer,
      ratioOf(of(workload.ours, rate), of(peer, rate)),
      asked,
      { cpu_ratio: ratioOf(of(workload.ours, cpuUs), of(peer, cpuUs)).median },
    ),
  );
  return [...rates, ...ratios];
}

describe.skipIf(out === "")("the data path", () => {
  const prepared = new Set<Contestant>();

  beforeAll(() => {
    const regions = Math.floor(sizeBytes / REGION_BYTES);
    offsetsFile(offsets.every, REGION_BYTES, regions, 1);
    offsetsFile(offsets.some, REGION_BYTES, Math.ceil(regions / 8), 1);
  });
  afterAll(async () => {
    for (const one of prepared) await one.close();
    rmSync(directory, { recursive: true, force: true });
  });

  async function contestant(name: string): Promise<Contestant> {
    const one = all.get(name);
    if (!one) throw new Error(`no contestant ${name}`);
    prepared.add(one);
    await one.prepare();
    return one;
  }

  /** Images are large: those that nobody will ask for any more go. */
  async function keepOnly(names: readonly string[]): Promise<void> {
    for (const one of prepared)
      if (!names.includes(one.name)) {
        await one.close();
        prepared.delete(one);
      }
  }

  const chosen = workloads(offsets).filter(({ name }) => name.includes(only));
  chosen.forEach((workload, i) => {
    it(workload.name, { timeout: 0 }, async () => {
      const taking: Contestant[] = [];
      for (const name of participants(workload)) taking.push(await contestant(name));
      const runs = new Map<string, Run[]>(taking.map(({ name }) => [name, []]));
      for (let round = 0; round < rounds; round++)
        for (let j = 0; j < taking.length; j++) {
          const one = taking[(j + round) % taking.length];
          if (one) runs.get(one.name)?.push(await measure(one, timed(workload), sizeBytes));
        }
      say(out, rowsOf(workload, runs));
      await keepOnly(chosen.slice(i + 1).flatMap(participants));
    });
  });

  for (const scenario of scenarios.filter(({ name }) => name.includes(only)))
    it(scenario.name, { timeout: 0 }, async () => {
      const csnap = await contestant(scenario.ours);
      if (!(csnap instanceof Csnap)) throw new Error(`${csnap.name} is not csnap`);
      const length = Number(seconds ?? SCENARIO_SECONDS);
      say(out, await scenario.run({ csnap, directory, offsets, rounds, seconds: length }));
      await keepOnly([]);
    });
});
