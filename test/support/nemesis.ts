/**
 * Seeded faults, one after the other; each leaves the cluster able to recover. They come in rounds, each in an order of its
 * own, so that a short run meets all of them. A snapshot is taken every now and then.
 */
import { setTimeout as pause } from "node:timers/promises";
import type { Broker } from "../../src/broker/broker.js";
import { ControlClient } from "../../src/control/client.js";
import { gone, type Host, type HostCluster, VOLUME } from "./host-cluster.js";
import { part, sh, signalled } from "./network-node.js";
import type { WallClock } from "./wall-clock.js";

const SNAPSHOTS_MAX = 5;
const FAULTS_PER_SNAPSHOT = 3;
const CONTROL_LIMIT_MS = 5000;
const HOUR_S = 3600;

export interface SnapshotWatcher {
  added(name: string): void;
  removed(name: string): void;
}

export class Nemesis {
  readonly done: Record<string, number> = {};
  snapshotsTaken = 0;
  readonly #snapshots: string[] = [];
  /** what is left of this round */
  #round: string[] = [];
  #steps = 0;

  constructor(
    private readonly cluster: HostCluster,
    private readonly broker: Broker,
    private readonly clocks: ReadonlyMap<string, WallClock>,
    private readonly snapshots: SnapshotWatcher,
    private readonly random: () => number,
  ) {}

  async step(): Promise<void> {
    if (this.#steps++ % FAULTS_PER_SNAPSHOT === 0) await this.#snapshot();
    if (this.#round.length === 0) this.#round = Object.keys(this.#faults);
    const name = this.#pick(this.#round);
    this.#round = this.#round.filter((other) => other !== name);
    this.done[name] = (this.done[name] ?? 0) + 1;
    this.cluster.note(name);
    await this.#faults[name]?.();
    await pause(this.random() * 3000);
  }

  /** Ends what may last: links, clocks, hosts without an agent. */
  async quiet(): Promise<void> {
    for (const node of this.#nodes) node.heal();
    for (const clock of this.clocks.values()) clock.step(0);
    for (const host of this.cluster.hosts) await this.#revive(host);
  }

  get #nodes() {
    const { hosts, clients, etcdNodes } = this.cluster;
    return [...hosts, ...clients, ...etcdNodes];
  }

  #pick<T>(all: readonly T[]): T {
    const found = all[Math.floor(this.random() * all.length)];
    if (found === undefined) throw new Error("nothing to pick from");
    return found;
  }

  async #holder(): Promise<{ readonly host: Host; readonly pid: number } | undefined> {
    const view = await this.broker.describe(VOLUME).catch(() => undefined);
    if (!view?.holder) return undefined;
    return { host: this.cluster.host(view.holder.host), pid: view.holder.pid };
  }

  async #holderOrAny(): Promise<Host> {
    return (await this.#holder())?.host ?? this.#pick(this.cluster.hosts);
  }

  /** Up to so long beyond half a second. */
  #while(mostMs: number): Promise<void> {
    return pause(500 + this.random() * mostMs);
  }

  /** SIGSTOP, and SIGCONT after up to `mostMs`. */
  async #stopped(pids: readonly number[], mostMs: number): Promise<void> {
    for (const pid of pids) signalled(pid, "SIGSTOP");
    await this.#while(mostMs);
    for (const pid of pids) signalled(pid, "SIGCONT");
  }

  readonly #faults: Readonly<Record<string, () => Promise<void>>> = {
    "server killed": async () => {
      const held = await this.#holder();
      if (held) signalled(held.pid, "SIGKILL");
    },
    "server stopped for a while": async () => {
      const held = await this.#holder();
      if (held) await this.#stopped([held.pid], 6000);
    },
    "agent killed": async () => {
      const { agent, restart } = await this.#agentOfAny();
      signalled(agent, "SIGKILL");
      await restart();
    },
    "agent stopped for a while": async () => {
      const { agent } = await this.#agentOfAny();
      await this.#stopped([agent], 8000);
    },
    "whole host stopped for a while": async () => {
      const held = await this.#holder();
      if (!held) return;
      await this.#stopped(held.host.processes(), 8500);
      await this.#revive(held.host);
    },
    "host crashes": async () => {
      const host = await this.#holderOrAny();
      host.isolate();
      host.crash();
      await pause(this.random() * 9000);
      host.heal();
      await this.#revive(host);
    },
    "host cut off": async () => {
      const host = await this.#holderOrAny();
      host.isolate();
      await this.#while(9000);
      host.heal();
      await this.#revive(host);
    },
    "host can't send to etcd": async () => {
      const host = await this.#holderOrAny();
      host.loseTo(...this.cluster.etcdNodes);
      await this.#while(9000);
      host.heal();
      await this.#revive(host);
    },
    "etcd can't send to host": async () => {
      const host = await this.#holderOrAny();
      for (const node of this.cluster.etcdNodes) node.loseTo(host);
      await this.#while(9000);
      for (const node of this.cluster.etcdNodes) node.heal();
      await this.#revive(host);
    },
    "host loses one member": async () => {
      const host = this.#pick(this.cluster.hosts);
      host.loseTo(this.#pick(this.cluster.etcdNodes));
      await pause(3000);
      host.heal();
    },
    "connections to etcd reset": async () => {
      const host = await this.#holderOrAny();
      for (const { address } of this.cluster.etcdNodes)
        sh(`ip netns exec ${host.name} ss --kill --tcp dst ${address} >/dev/null`);
    },
    "client can't send to servers": async () => {
      const client = this.#pick(this.cluster.clients);
      client.loseTo(...this.cluster.hosts);
      await this.#while(4000);
      client.heal();
    },
    "servers can't send to client": async () => {
      const client = this.#pick(this.cluster.clients);
      for (const host of this.cluster.hosts) host.loseTo(client);
      await this.#while(4000);
      for (const host of this.cluster.hosts) host.heal();
    },
    "client cut off from its server": async () => {
      const held = await this.#holder();
      const client = this.#pick(this.cluster.clients);
      if (!held) return;
      part([client], [held.host]);
      await this.#while(4000);
      client.heal();
      held.host.heal();
    },
    "client cut off from etcd": async () => {
      const client = this.#pick(this.cluster.clients);
      part([client], this.cluster.etcdNodes);
      await this.#while(4000);
      client.heal();
      for (const node of this.cluster.etcdNodes) node.heal();
    },
    "etcd leader stopped": async () => {
      const leader = await this.cluster.etcd.leader();
      this.cluster.etcd.signal(leader, "SIGSTOP");
      await this.#while(3000);
      this.cluster.etcd.signal(leader, "SIGCONT");
    },
    "etcd leader killed": async () => this.#restarted([await this.cluster.etcd.leader()]),
    "etcd member killed": async () =>
      this.#restarted([Math.floor(this.random() * this.cluster.etcdNodes.length)]),
    "all members of etcd killed": async () => this.#restarted(this.cluster.etcdNodes.map((_, i) => i)),
    "etcd leader cut off": async () => {
      const node = this.cluster.etcdNodes[await this.cluster.etcd.leader()];
      node?.isolate();
      await this.#while(4000);
      node?.heal();
    },
    /** The leader and the holder's host on one side, a majority of members and the other hosts on the other. */
    "split: the holder with the minority of etcd": async () => {
      const { hosts, etcdNodes } = this.cluster;
      const lonely = etcdNodes[await this.cluster.etcd.leader()];
      const host = await this.#holderOrAny();
      if (!lonely) return;
      part(
        [lonely, host],
        [...etcdNodes.filter((node) => node !== lonely), ...hosts.filter((other) => other !== host)],
      );
      await this.#while(9000);
      for (const node of this.#nodes) node.heal();
      await this.#revive(host);
    },
    "split: the holder with the majority of etcd": async () => {
      const { hosts, etcdNodes } = this.cluster;
      const lonely = this.#pick(etcdNodes);
      const host = await this.#holderOrAny();
      part(
        [lonely, ...hosts.filter((other) => other !== host)],
        [...etcdNodes.filter((node) => node !== lonely), host],
      );
      await this.#while(9000);
      for (const node of this.#nodes) node.heal();
    },
    "wall clock jumps": async () => {
      const [, clock] = this.#pick([...this.clocks]);
      clock.step(this.#pick([-HOUR_S, 0, HOUR_S]));
    },
    moved: async () => {
      const held = await this.#holder();
      const to = this.#pick(this.cluster.hosts.filter((host) => host !== held?.host));
      await this.broker.move(VOLUME, to.hostName).catch(() => {});
    },
  };

  async #snapshot(): Promise<void> {
    const held = await this.#holder();
    if (!held) return;
    const limit = pause(CONTROL_LIMIT_MS);
    // Without an answer it may be there or not: then it is one that nobody watches.
    await Promise.race([limit, this.#takeSnapshot(held.host).catch(() => {})]);
  }

  async #takeSnapshot(host: Host): Promise<void> {
    const control = new ControlClient(host.controlSocket, VOLUME);
    const there = (await control.snapshots()).map(({ name }) => name);
    const unknown = there.filter((name) => !this.#snapshots.includes(name));
    const surplus = this.#snapshots.splice(0, Math.max(0, this.#snapshots.length + 1 - SNAPSHOTS_MAX));
    for (const name of surplus) this.snapshots.removed(name);
    const doomed = [...unknown, ...surplus.filter((name) => there.includes(name))];
    if (doomed.length > 0) await control.deleteSnapshots(doomed, false);
    const name = `s${++this.snapshotsTaken}`;
    await control.createSnapshot({ name, pinned: false, priority: 50, labels: {} });
    this.#snapshots.push(name);
    this.snapshots.added(name);
  }

  async #restarted(members: readonly number[]): Promise<void> {
    for (const index of members) await this.cluster.etcd.kill(index);
    await pause(this.random() * 2000);
    for (const index of members) this.cluster.etcd.restart(index);
  }

  /** Some host's agent, and how it is started again. */
  async #agentOfAny(): Promise<{ readonly agent: number; readonly restart: () => Promise<void> }> {
    const host = this.#pick(this.cluster.hosts);
    await this.#revive(host);
    const { agent } = host;
    if (agent?.pid === undefined) throw new Error(`${host.hostName} has no agent`);
    const restart = async () => {
      await gone(agent);
      await host.startAgent();
    };
    return { agent: agent.pid, restart };
  }

  /** A host whose processes were fenced away starts again, as after a reboot. */
  async #revive(host: Host): Promise<void> {
    if (!host.isAgentAlive) await host.startAgent();
  }
}
