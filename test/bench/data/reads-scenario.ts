/** A snapshot is read while the origin is written; the writes are first writes until its chunks have been copied. */
import type { Csnap } from "./csnap.js";
import { fio, type Outcome } from "./fio.js";
import { rateRow, ratioRow } from "./rows.js";
import type { Circumstances, Scenario } from "./scenario.js";
import { ratioOf } from "./statistics.js";
import { small } from "./workload.js";

const NAME = "4k random reads of a snapshot beside writes of the origin, QD16";
const STATES = ["reads alone", "writes alone", "both"] as const;

type Rates = Readonly<Record<"reads" | "writes", number>>;

/** Begins with a snapshot just taken, whatever is measured, so that reads and writes find the same. */
async function measure(csnap: Csnap, state: (typeof STATES)[number], seconds: number): Promise<Rates> {
  const running = await csnap.start("unix");
  try {
    await csnap.shareAll();
    const side = async (uri: string, rw: "randread" | "randwrite", wanted: boolean) =>
      wanted ? rateOf(await fio(uri, { ...small(rw, 16), seconds }, csnap.bytes, running.pids)) : 0;
    const [reads, writes] = await Promise.all([
      side(csnap.snapshotUri(csnap.newest), "randread", state !== "writes alone"),
      side(running.uri, "randwrite", state !== "reads alone"),
    ]);
    return { reads, writes };
  } finally {
    await running.stop();
  }
}

const rateOf = ({ requests, seconds }: Outcome) => requests / seconds;

async function run({ csnap, rounds, seconds }: Circumstances): Promise<object[]> {
  const all = new Map<string, Rates[]>(STATES.map((state) => [state, []]));
  for (let round = 0; round < rounds; round++)
    for (let i = 0; i < STATES.length; i++) {
      const state = STATES[(i + round) % STATES.length] ?? "both";
      all.get(state)?.push(await measure(csnap, state, seconds));
    }
  const label = { workload: NAME, server: "csnap" };
  return (["reads", "writes"] as const).flatMap((kind) => {
    const of = (state: (typeof STATES)[number]) => (all.get(state) ?? []).map((rates) => rates[kind]);
    const alone = of(`${kind} alone`);
    return [
      rateRow({ ...label, measure: `${kind} alone` }, "requests/s", alone),
      rateRow({ ...label, measure: `${kind} beside` }, "requests/s", of("both")),
      ratioRow({ ...label, measure: `${kind} beside` }, `${kind} alone`, ratioOf(of("both"), alone), {}),
    ];
  });
}

export const readsBesideWrites: Scenario = { name: NAME, ours: "csnap, reads beside writes", run };
