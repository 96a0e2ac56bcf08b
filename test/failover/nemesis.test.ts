/**
 * Three etcd members, three hosts that share a store, clients with a verified load, and a seeded nemesis: servers, agents
 * and members killed and stopped, hosts cut off on either side, planned moves. Prints its seed and takes CSNAP_SEED;
 * CSNAP_NEMESIS_S sets its length.
 */
import { setTimeout as pause } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Broker } from "../../src/broker/broker.js";
import type * as Open from "../../src/broker/open.js";
import { importBuilt } from "../support/built.js";
import { gone, type Host, HostCluster, signalled, until, VOLUME } from "../support/host-cluster.js";
import { addressOf, NbdClient } from "../support/nbd-client.js";
import { seededRandom, testSeed } from "../support/random.js";
import { type Acknowledged, VerifiedClient } from "../support/verified-client.js";

const SECONDS = Number(process.env.CSNAP_NEMESIS_S ?? (process.env.CSNAP_TIER === "full" ? 1800 : 100));
/** One attachment holds the origin. */
const CLIENTS = 1;
const BLOCKS = 400;
const QUIET_LIMIT_MS = 60_000;

const { openBroker } = await importBuilt<typeof Open>("broker/open.js");
const seed = testSeed(Math.floor(Math.random() * 2 ** 31));

let cluster: HostCluster;
let broker: Broker;

/** What the nemesis does; each leaves the cluster able to recover. */
class Nemesis {
  readonly done: Record<string, number> = {};

  constructor(private readonly random: () => number) {}

  #pick<T>(all: readonly T[]): T {
    const found = all[Math.floor(this.random() * all.length)];
    if (found === undefined) throw new Error("nothing to pick from");
    return found;
  }

  async #holder(): Promise<{ readonly host: Host; readonly pid: number } | undefined> {
    const view = await broker.describe(VOLUME).catch(() => undefined);
    if (!view?.holder) return undefined;
    return { host: cluster.host(view.holder.host), pid: view.holder.pid };
  }

  readonly faults: Readonly<Record<string, () => Promise<void>>> = {
    "server killed": async () => {
      const held = await this.#holder();
      if (held) signalled(held.pid, "SIGKILL");
    },
    "server stopped for a while": async () => {
      const held = await this.#holder();
      if (!held) return;
      signalled(held.pid, "SIGSTOP");
      await pause(500 + this.random() * 6000);
      signalled(held.pid, "SIGCONT");
    },
    "agent killed": async () => {
      const host = this.#pick(cluster.hosts);
      if (!host.agent) return;
      host.agent.kill("SIGKILL");
      for (const pid of host.processes()) if (pid === host.agent.pid) signalled(pid, "SIGKILL");
      await gone(host.agent);
      await host.startAgent();
    },
    "whole host stopped for a while": async () => {
      const held = await this.#holder();
      if (!held) return;
      const frozen = held.host.processes();
      for (const pid of frozen) signalled(pid, "SIGSTOP");
      await pause(1000 + this.random() * 8000);
      for (const pid of frozen) signalled(pid, "SIGCONT");
      await this.#revive(held.host);
    },
    "host crashes": async () => {
      const held = await this.#holder();
      const host = held?.host ?? this.#pick(cluster.hosts);
      host.isolate();
      host.crash();
      await pause(this.random() * 9000);
      host.heal();
      await this.#revive(host);
    },
    "host cut off": async () => {
      const host = (await this.#holder())?.host ?? this.#pick(cluster.hosts);
      host.isolate();
      await pause(500 + this.random() * 9000);
      host.heal();
      await this.#revive(host);
    },
    "host can't send to etcd": async () => {
      const host = (await this.#holder())?.host ?? this.#pick(cluster.hosts);
      for (const { address } of cluster.etcdNodes) host.loseTo(address);
      await pause(500 + this.random() * 9000);
      host.heal();
      await this.#revive(host);
    },
    "host loses one member": async () => {
      const host = this.#pick(cluster.hosts);
      host.loseTo(this.#pick(cluster.etcdNodes).address);
      await pause(3000);
      host.heal();
    },
    "etcd leader stopped": async () => {
      const leader = await cluster.etcd.leader();
      cluster.etcd.signal(leader, "SIGSTOP");
      await pause(500 + this.random() * 3000);
      cluster.etcd.signal(leader, "SIGCONT");
    },
    "etcd member killed": async () => {
      const index = Math.floor(this.random() * cluster.etcdNodes.length);
      await cluster.etcd.kill(index);
      await pause(this.random() * 2000);
      cluster.etcd.restart(index);
    },
    "etcd leader cut off": async () => {
      const node = cluster.etcdNodes[await cluster.etcd.leader()];
      node?.isolate();
      await pause(500 + this.random() * 4000);
      node?.heal();
    },
    moved: async () => {
      const held = await this.#holder();
      const to = this.#pick(cluster.hosts.filter((host) => host !== held?.host));
      await broker.move(VOLUME, to.hostName).catch(() => {});
    },
  };

  /** A host whose processes were fenced away starts again, as after a reboot. */
  async #revive(host: Host): Promise<void> {
    if (host.agent && host.agent.exitCode === null && host.agent.signalCode === null) return;
    await host.startAgent();
  }

  async step(): Promise<void> {
    const name = this.#pick(Object.keys(this.faults));
    this.done[name] = (this.done[name] ?? 0) + 1;
    cluster.note(name);
    await this.faults[name]?.();
    await pause(this.random() * 3000);
  }
}

/** Acknowledgements of a term end before those of the next begin: none under a stale epoch (I1). */
function overlaps(acknowledged: readonly Acknowledged[]): string[] {
  const spans = new Map<bigint, { first: number; last: number }>();
  for (const { epoch, ms } of acknowledged) {
    const span = spans.get(epoch) ?? { first: ms, last: ms };
    spans.set(epoch, { first: Math.min(span.first, ms), last: Math.max(span.last, ms) });
  }
  const inOrder = [...spans].sort(([a], [b]) => (a < b ? -1 : 1));
  return inOrder.slice(1).flatMap(([epoch, { first }], i) => {
    const [former, span] = inOrder[i] ?? [0n, { first: 0, last: 0 }];
    return span.last < first
      ? []
      : [`epoch ${former} acknowledged ${span.last - first} ms into epoch ${epoch}`];
  });
}

/** Network namespaces and loop devices need root. */
describe.skipIf(process.getuid?.() !== 0)("hosts that share a store", () => {
  beforeAll(async () => {
    cluster = await HostCluster.start(["alpha", "beta", "gamma"]);
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
    const random = seededRandom(seed);
    const clients = Array.from(
      { length: CLIENTS },
      (_, i) => new VerifiedClient(broker, VOLUME, i, CLIENTS, BLOCKS, seededRandom(seed + 1 + i)),
    );
    await cluster.served();
    for (const client of clients) client.start();
    const nemesis = new Nemesis(random);
    const end = performance.now() + SECONDS * 1000;
    while (performance.now() < end) await nemesis.step();
    // Quiet: service returns.
    for (const host of cluster.hosts) {
      host.heal();
      if (!host.agent || host.agent.exitCode !== null || host.agent.signalCode !== null)
        await host.startAgent();
    }
    const quiet = performance.now();
    const before = clients.map(({ acknowledged }) => acknowledged.length);
    await until(
      () => clients.every(({ acknowledged }, i) => acknowledged.length > (before[i] ?? 0) + 20),
      () => `service did not return:\n${cluster.logs().slice(-20_000)}`,
      QUIET_LIMIT_MS,
    );
    const returnedMs = Math.round(performance.now() - quiet);
    for (const client of clients) await client.stop();
    const { uris, epoch } = await cluster.served();
    const reader = await NbdClient.open(addressOf(uris.find((uri) => uri.startsWith("nbd://")) ?? ""), {
      export: VOLUME,
    });
    for (const client of clients) await client.verifyAll(reader);
    await reader.disconnect();
    const stalls = clients.flatMap((client) => client.stalls).sort((a, b) => a - b);
    const all = clients.flatMap(({ acknowledged }) => acknowledged).sort((a, b) => a.ms - b.ms);
    console.log(
      `CSNAP_SEED=${seed}: ${SECONDS} s, ${all.length} acknowledged, ${epoch} epochs, fenced ${cluster.fenced().length} times, service back after ${returnedMs} ms; stalls over 500 ms: ${stalls.length}, median ${stalls[stalls.length >> 1]}, longest ${stalls.at(-1)} ms`,
      nemesis.done,
    );
    const problems = [...clients.flatMap((client) => client.problems), ...overlaps(all)];
    if (problems.length > 0) console.log(cluster.logs());
    expect(problems).toEqual([]);
    expect(all.length).toBeGreaterThan(SECONDS);
    // Stopped for good, the store is whole.
    const last = cluster.host((await cluster.served()).host);
    await last.must("volume", "disable", VOLUME);
    await until(
      async () => !(await last.show()).alive,
      () => "it is still served",
    );
    await last.must("check", VOLUME, "--data");
  });
});
