/**
 * How long a client waits when the service of its volume moves or is lost. Three hosts in network namespaces share a store,
 * three etcd members rule; a user-space client writes 4 KiB every 5 ms and checks at the end that nothing acknowledged is
 * missing. Run by `scripts/bench failover`, which sets CSNAP_BENCH_OUT: a JSON line for each fault goes there, then one for
 * each kind.
 */
import { appendFileSync } from "node:fs";
import { setTimeout as pause } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Broker } from "../../src/broker/broker.js";
import type * as Open from "../../src/broker/open.js";
import { importBuilt } from "../support/built.js";
import { gone, HostCluster, until, VOLUME } from "../support/host-cluster.js";
import { addressOf, NbdClient } from "../support/nbd-client.js";
import { signalled } from "../support/network-node.js";
import { seededRandom, testSeed } from "../support/random.js";
import { monotonicMs } from "../support/term-spans.js";
import { VerifiedClient } from "../support/verified-client.js";
import { type Answer, type FaultRow, type RecordAt, rowOf, summaryOf, tableOf } from "./failover-rows.js";
import { RecordWatch } from "./record-watch.js";

const { CSNAP_BENCH_OUT: out, CSNAP_BENCH_COUNT: count = "200", CSNAP_BENCH_KINDS } = process.env;
const ALL_KINDS = ["moved", "server killed", "host lost"] as const;
type Holder = NonNullable<RecordAt["holder"]>;
type Kind = (typeof ALL_KINDS)[number];
const wanted: readonly string[] = CSNAP_BENCH_KINDS?.split(",") ?? ALL_KINDS;
const kinds = ALL_KINDS.filter((kind) => wanted.includes(kind));
const FAULTS = Number(count);
const BLOCKS = 400;
const PACE_MS = 5;
/** Of load before a fault and after it, for the median and for a stall that comes late. */
const BESIDE_MS = 1000;
/** A server that ends sooner counts as one that does not start, and is started again ever later (AR4). */
const SETTLED_MS = 10_500;
const RECOVERY_LIMIT_MS = 60_000;
const FAULT_LIMIT_MS = 120_000;
const seed = testSeed(Math.floor(Math.random() * 2 ** 31));

const { openBroker } = await importBuilt<typeof Open>("broker/open.js");

describe.skipIf(out === undefined)("failover", () => {
  let cluster: HostCluster;
  let broker: Broker;
  let history: RecordWatch;
  let client: VerifiedClient;
  const random = seededRandom(seed);
  const rows: FaultRow[] = [];
  const answers: Answer[] = [];

  beforeAll(async () => {
    cluster = await HostCluster.start(["alpha", "beta", "gamma"]);
    const url = cluster.etcd.url("insecure=1");
    broker = openBroker(url, { stateDir: "/nonexistent" });
    for (const host of cluster.hosts) await host.startAgent();
    await cluster.served();
    history = await RecordWatch.follow(url, VOLUME);
    client = new VerifiedClient(broker, VOLUME, 0, 1, BLOCKS, seededRandom(seed + 1), {
      paceMs: PACE_MS,
      reads: 0,
      answered: (epoch, ms) => answers.push({ epoch: BigInt(epoch), ms }),
    });
    client.start();
  });
  afterAll(async () => {
    history?.close();
    await broker?.close();
    await cluster?.close();
  });

  /** Each ends the term that is served; what it needs for the next one is made good by repair(). */
  const faults: Readonly<Record<Kind, (holder: Holder) => Promise<void> | void>> = {
    moved: async ({ host }) => {
      const others = cluster.hosts.filter(({ hostName }) => hostName !== host);
      await broker.move(VOLUME, others[Math.floor(random() * others.length)]?.hostName ?? "");
    },
    "server killed": ({ pid }) => signalled(pid, "SIGKILL"),
    "host lost": ({ host }) => cluster.host(host).isolate(),
  };

  async function repair({ host: name }: Holder): Promise<void> {
    const host = cluster.host(name);
    host.heal();
    if (!host.agent) return;
    await gone(host.agent);
    await host.startAgent();
  }

  /** From the first word of its address on. */
  async function settled(): Promise<void> {
    const epoch = answers.at(-1)?.epoch;
    const published = history.records.find(
      (record) => record.epoch === epoch && record.state === "published",
    );
    const servedMs = monotonicMs() - (published?.ms ?? monotonicMs());
    await pause(Math.max(0, SETTLED_MS - BESIDE_MS - servedMs));
  }

  async function measured(kind: Kind): Promise<FaultRow> {
    const from = answers.length;
    const heard = history.records.length;
    await pause(BESIDE_MS);
    const { holder, epoch } = history.records.at(-1) ?? {};
    if (!holder || epoch === undefined || answers.at(-1)?.epoch !== epoch)
      throw new Error(`not served when ${kind} was due:\n${cluster.logs().slice(-10_000)}`);
    // Its phase among renewals and polls is of the measure.
    await pause(random() * 1000);
    const faultMs = monotonicMs();
    await faults[kind](holder);
    await until(
      () => (answers.at(-1)?.epoch ?? 0n) > epoch,
      () => `no service after ${kind}:\n${cluster.logs().slice(-10_000)}`,
      RECOVERY_LIMIT_MS,
    );
    if (kind === "host lost") await repair(holder);
    await pause(BESIDE_MS);
    const times = {
      kind,
      faultMs,
      epoch,
      acknowledged: answers.slice(from),
      records: history.records.slice(heard),
    };
    return rowOf(times);
  }

  it(`stalls of each kind of fault (CSNAP_SEED=${seed})`, {
    timeout: FAULTS * kinds.length * FAULT_LIMIT_MS,
  }, async () => {
    const tell = (row: object) => appendFileSync(out ?? "", `${JSON.stringify(row)}\n`);
    for (let i = 0; i < FAULTS; i++)
      for (const kind of kinds) {
        if (kind === "server killed") await settled();
        const row = await measured(kind);
        rows.push(row);
        tell(row);
        console.error(
          `${i + 1}/${FAULTS} ${kind}: ${row.stall_ms} ms = ${row.detect_ms} + ${row.release_ms} + ${row.start_ms} + ${row.reconnect_ms}`,
        );
      }
    await client.stop();
    const { uris } = await cluster.served();
    const reader = await NbdClient.open(addressOf(uris.find((uri) => uri.startsWith("nbd://")) ?? ""), {
      export: VOLUME,
    });
    await client.verifyAll(reader);
    await reader.disconnect();
    expect(client.problems).toEqual([]);
    const summaries = kinds.map((kind) => summaryOf(kind, rows));
    for (const summary of summaries) tell(summary);
    console.error(`\n${tableOf(summaries)}\n`);
  });
});
