/**
 * Three etcd members, three hosts that share a store and two client hosts, all in network namespaces, with a verified load
 * and a seeded nemesis. Prints its seed and takes CSNAP_SEED; CSNAP_NEMESIS_S sets its length.
 */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Broker } from "../../src/broker/broker.js";
import type * as Open from "../../src/broker/open.js";
import { importBuilt } from "../support/built.js";
import type { ClientSetup } from "../support/client-host.js";
import { GrantWatch } from "../support/grant-watch.js";
import { HostCluster, until, VOLUME } from "../support/host-cluster.js";
import { Nemesis } from "../support/nemesis.js";
import { seededRandom, testSeed } from "../support/random.js";
import { recordHistory } from "../support/record-history.js";
import { TermSpans } from "../support/term-spans.js";
import { WallClock } from "../support/wall-clock.js";

const SECONDS = Number(process.env.CSNAP_NEMESIS_S ?? (process.env.CSNAP_TIER === "full" ? 1800 : 180));
const BLOCKS = 400;
const QUIET_LIMIT_MS = 60_000;

const { openBroker } = await importBuilt<typeof Open>("broker/open.js");
const seed = testSeed(Math.floor(Math.random() * 2 ** 31));

/** Network namespaces and loop devices need root. */
describe.skipIf(process.getuid?.() !== 0)("hosts that share a store", () => {
  let cluster: HostCluster;
  let broker: Broker;
  const clocks = new Map<string, WallClock>();

  beforeAll(async () => {
    cluster = await HostCluster.start(["alpha", "beta", "gamma"], {
      clients: 2,
      env: (host, directory) => {
        const clock = new WallClock(host, directory);
        clocks.set(host, clock);
        return clock.env;
      },
    });
    broker = openBroker(cluster.etcd.url("insecure=1"), { stateDir: "/nonexistent" });
    for (const host of cluster.hosts) await host.startAgent();
  });
  afterAll(async () => {
    await broker?.close();
    await cluster?.close();
  });

  it(`nothing acknowledged is lost, and no error is seen, whatever the nemesis does (CSNAP_SEED=${seed})`, {
    timeout: (SECONDS + 300) * 1000,
  }, async () => {
    await cluster.served();
    const setup = (role: ClientSetup["role"], own: number): ClientSetup => ({
      role,
      broker: cluster.etcd.url("insecure=1"),
      volume: VOLUME,
      blocks: BLOCKS,
      seed: seed + own,
      hosts: cluster.hosts.map(({ address }) => address),
    });
    const [writing, watching] = cluster.clients;
    if (!writing || !watching) throw new Error("no client hosts");
    writing.startClient(setup("writer", 1));
    watching.startClient(setup("watcher", 2));
    const grants = new GrantWatch(
      cluster.hosts.map(({ controlSocket }) => controlSocket),
      VOLUME,
    );
    const watcher = {
      added: (snapshot: string) => watching.order({ kind: "add", snapshot }),
      removed: (snapshot: string) => watching.order({ kind: "remove", snapshot }),
    };
    const nemesis = new Nemesis(cluster, broker, clocks, watcher, seededRandom(seed));
    await until(
      () => cluster.clients.every(({ answers }) => answers > 0),
      () => `the clients do not start:\n${cluster.logs().slice(-20_000)}`,
    );
    const end = performance.now() + SECONDS * 1000;
    while (performance.now() < end) await nemesis.step();
    await nemesis.quiet();
    const quiet = performance.now();
    const before = cluster.clients.map(({ answers }) => answers);
    await until(
      () => cluster.clients.every(({ answers }, i) => answers > (before[i] ?? 0) + 20),
      () => `service did not return:\n${cluster.logs().slice(-20_000)}`,
      QUIET_LIMIT_MS,
    );
    const returnedMs = Math.round(performance.now() - quiet);
    const { uris } = await cluster.served();
    const uri = uris.find((one) => one.startsWith("nbd://")) ?? "";
    const reports = [await writing.report(uri), await watching.report(uri)];
    await grants.stop();
    // Stopped for good, the store is whole.
    const last = cluster.host((await cluster.served()).host);
    await last.must("volume", "disable", VOLUME);
    await until(
      async () => !(await last.show()).alive,
      () => "it is still served",
    );
    await last.must("check", VOLUME, "--data");

    const history = await recordHistory(cluster.etcd, `/csnap/default/svc/${VOLUME}`, cluster.fenced());
    const acknowledged = new TermSpans();
    for (const span of reports.flatMap(({ spans }) => spans)) acknowledged.add(span);
    const stalls = reports.flatMap((report) => report.stalls).sort((a, b) => a - b);
    const compared = reports.reduce((sum, report) => sum + report.compared, 0);
    console.log(
      `CSNAP_SEED=${seed}: ${SECONDS} s, ${acknowledged.answers} answers, ${history.epochs} epochs in ${history.revisions} records, ${grants.valid.answers} grants seen valid and ${grants.ended} ended, fenced ${cluster.fenced().length} times, ${nemesis.snapshotsTaken} snapshots compared ${compared} times, service back after ${returnedMs} ms; stalls over 500 ms: ${stalls.length}, median ${stalls[stalls.length >> 1]}, longest ${stalls.at(-1)} ms`,
      nemesis.done,
    );
    const problems = [
      ...reports.flatMap((report) => report.problems),
      ...acknowledged.stale("an answer of a former term"),
      ...grants.valid.stale("two servers with valid grants"),
      ...history.problems,
    ];
    if (problems.length > 0) console.log(cluster.logs());
    expect(problems).toEqual([]);
    expect(acknowledged.answers).toBeGreaterThan(SECONDS);
    expect(grants.valid.answers).toBeGreaterThan(SECONDS);
  });
});
