/** The snapshot that every chunk was copied for is deleted while copied chunks are written as fast as it goes. */
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { LoggedLoad, type Span } from "./latency-log.js";
import { amountRow, rateRow, ratioRow } from "./rows.js";
import type { Circumstances, Scenario } from "./scenario.js";
import { quantile, ratioOf } from "./statistics.js";
import { small } from "./workload.js";

const NAME = "delete of a large snapshot under load";
/** Reclaiming may be over sooner than writes can be counted. */
const LEAST_MS = 500;

interface Round {
  readonly rate: Readonly<Record<"before" | "during", number>>;
  /** p99 of the writes, ms */
  readonly p99: Readonly<Record<"before" | "during", number>>;
  readonly reclaimMs: number;
}

async function round({ csnap, directory, seconds }: Circumstances): Promise<Round> {
  const running = await csnap.start("unix");
  try {
    await csnap.copyAll();
    const load = small("randwrite", 16);
    const writes = new LoggedLoad(running.uri, load, csnap.bytes, join(directory, "delete"));
    await csnap.written();
    const begun = Date.now();
    await pause(Math.max(LEAST_MS, 1000 * seconds));
    const deleted = Date.now();
    await csnap.deleteNewest();
    await csnap.reclaimed();
    const reclaimMs = Date.now() - deleted;
    await pause(Math.max(0, LEAST_MS - reclaimMs));
    const log = await writes.stop();
    const before: Span = { from: begun, to: deleted };
    const during: Span = { from: deleted, to: deleted + Math.max(LEAST_MS, reclaimMs) };
    const p99 = (span: Span) => quantile(log.during(span), 0.99);
    return {
      rate: { before: log.rate(before), during: log.rate(during) },
      p99: { before: p99(before), during: p99(during) },
      reclaimMs,
    };
  } finally {
    await running.stop();
  }
}

async function run(circumstances: Circumstances): Promise<object[]> {
  const rounds: Round[] = [];
  while (rounds.length < circumstances.rounds) rounds.push(await round(circumstances));
  const label = { workload: NAME, server: "csnap" };
  const rates = (when: "before" | "during") => rounds.map(({ rate }) => rate[when]);
  const p99 = (when: "before" | "during") => rounds.map((one) => one.p99[when]);
  return [
    ...(["before", "during"] as const).flatMap((when) => [
      rateRow({ ...label, measure: `writes ${when}` }, "requests/s", rates(when)),
      amountRow({ ...label, measure: `p99 of the writes ${when}` }, "ms", p99(when)),
    ]),
    ratioRow(
      { ...label, measure: "writes during" },
      "writes before",
      ratioOf(rates("during"), rates("before")),
      {},
    ),
    amountRow(
      { ...label, measure: "until its space was free" },
      "ms",
      rounds.map(({ reclaimMs }) => reclaimMs),
    ),
  ];
}

export const deleteUnderLoad: Scenario = { name: NAME, ours: "csnap, delete", run };
