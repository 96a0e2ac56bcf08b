// SimWorld: three hosts with shipped agents, servers and clients over a simulated network, etcd, shared
// store and power switch, all from one seed. Run by test/schedules.
//
// SW1 One event at a time; before the next one every promise has settled that can. The same seed makes
//     the same events, whatever else runs in this process.
// SW2 After the faults comes a quiet phase: service must come back within quietLimitMs, with exactly
//     one server and no process left over, and stay.
import type { ServiceSpec } from "../../../src/broker/broker.js";
import type { FenceTarget } from "../../../src/broker/fence.js";
import { fenceLimitMs } from "../../../src/broker/fence.js";
import {
  type NativeGates,
  type RenewalJob,
  RenewingLeaseKeeper,
  type RunningRenewal,
} from "../../../src/broker/lease_keeper.js";
import { type Liveness, SilenceLiveness } from "../../../src/broker/liveness.js";
import { RecordBroker } from "../../../src/broker/record_broker.js";
import { Renewal } from "../../../src/broker/renewal.js";
import { SimAgent } from "./agent.js";
import { SimClient } from "./client.js";
import { SimEtcd, SimRecords } from "./etcd.js";
import { Faults } from "./faults.js";
import { SimHost, type SimProcess, type Universe } from "./machine.js";
import { Rules } from "./rules.js";
import { SharedStore } from "./shared-store.js";
import { Chance, VirtualTime } from "./virtual-time.js";

export const VOLUME = "vol";
export const EVENTS_MIN = 500;
/** From the moment that all is well and every host is up. */
const quietLimitMs = 30_000;
const stableMs = 3_000;
/** Rates may differ by as much as lease.ts allows for. */
const RATE_MAX = 1.2;

/** What a negative control does wrong. */
export type Mistake =
  | "stamps one slot"
  | "publishes without a probe"
  | "issues past the gate"
  | "acknowledges past the gate"
  | "starts without a claim"
  | "fences without waiting"
  | "takes a failed fence for a confirmed one"
  | "takes silence for death"
  | "hears silence at once"
  | "renews from the answer";

export interface Outcome {
  readonly violation: string | undefined;
  readonly events: number;
  readonly acks: number;
  readonly takeovers: number;
  readonly virtualMs: number;
  /** how long service took to return in the quiet phase */
  readonly returnedMs: number;
  readonly faults: number;
}

export class World {
  readonly universe: Universe;
  readonly uuid = "00000000-0000-4000-8000-000000000001";
  readonly rules: Rules;
  readonly etcd: SimEtcd;
  readonly store: SharedStore;
  readonly faults: Faults;
  readonly hosts: readonly SimHost[];
  readonly clientHosts: readonly SimHost[];
  readonly admin: RecordBroker;
  fencesFail = false;
  private readonly agents: readonly SimAgent[];
  private readonly clients: readonly SimClient[];
  private readonly time = new VirtualTime();

  constructor(
    seed: number,
    readonly mistakes: ReadonlySet<Mistake> = new Set(),
    trace: (line: string) => void = () => {},
  ) {
    const chance = new Chance(seed);
    this.universe = {
      time: this.time,
      chance,
      nextId: 1,
      trace: (line) => trace(`${this.time.nowMs.toFixed(1)} ${line}`),
    };
    this.rules = new Rules(this.universe);
    this.etcd = new SimEtcd(this.universe, (before, after, by) => this.rules.committed(before, after, by));
    this.store = new SharedStore(this.universe, (epoch, by) => this.rules.landed(epoch, by));
    this.rules.stamped = () => this.store.epoch;
    this.rules.latest = () => this.etcd.latest?.record;
    this.faults = new Faults(this);
    const rate = () => chance.pick([1, RATE_MAX, chance.between(1, RATE_MAX)]);
    this.hosts = ["a", "b", "c"].map((name) => new SimHost(this.universe, name, rate()));
    this.clientHosts = ["x", "y"].map((name) => new SimHost(this.universe, name, rate()));
    this.admin = this.brokerOf(new SimHost(this.universe, "admin", 1).start("csnap"), undefined);
    this.agents = this.hosts.map((host) => new SimAgent(host, this));
    this.clients = this.clientHosts.map((host) => new SimClient(host, this));
  }

  /** Runs the schedule to its end or to the first rule that is broken. */
  async run(): Promise<Outcome> {
    const { time, chance } = this.universe;
    this.define();
    for (const agent of this.agents) time.after(chance.between(0, 500), () => agent.start());
    this.faults.begin();
    const faultsMs = chance.between(8_000, 24_000);
    await this.runUntil(() => time.nowMs >= faultsMs && time.events >= EVENTS_MIN);
    const returnedMs = await this.quiet();
    return {
      violation: this.rules.violation,
      events: time.events,
      acks: this.rules.acks,
      takeovers: this.rules.takeovers,
      virtualMs: time.nowMs,
      returnedMs,
      faults: this.faults.count,
    };
  }

  /** Until it is written. */
  private define(): void {
    this.admin.define(spec(this.uuid)).on(({ type }) => {
      if (type === "failed") this.time.after(500, () => this.define());
    });
  }

  private async quiet(): Promise<number> {
    const { time } = this.universe;
    this.universe.trace("-- quiet");
    this.faults.heal();
    for (const host of this.hosts) if (!host.isOn) this.powerOn(host);
    const fromMs = time.nowMs;
    const limitMs = quietLimitMs + this.abandonedFenceMs();
    const epochBefore = () => this.etcd.latest?.record.epoch ?? 0n;
    let sinceMs = time.nowMs;
    let settled = 0n;
    await this.runUntil(() => {
      const epoch = this.missing() === undefined ? epochBefore() : 0n;
      if (epoch === 0n || epoch !== settled) sinceMs = time.nowMs;
      settled = epoch;
      return (settled > 0n && time.nowMs - sinceMs >= stableMs) || time.nowMs - fromMs > limitMs + stableMs;
    });
    const missing = this.missing();
    if (missing !== undefined)
      this.rules.broken("quiet", `after ${(time.nowMs - fromMs) / 1000} s without faults: ${missing}`);
    this.checkData();
    return sinceMs - fromMs;
  }

  /** AR6: a fence that was begun by an agent which is gone holds up the others for as long as it may take. */
  private abandonedFenceMs(): number {
    return this.etcd.latest?.record.slot.fencing ? fenceLimitMs + 5_000 : 0;
  }

  private missing(): string | undefined {
    const record = this.etcd.latest?.record;
    if (record?.slot.state !== "published")
      return `the slot is ${record?.slot.state}: ${record?.slot.reason}`;
    const started = [...this.rules.servers].filter(({ instance }) => instance !== "");
    const [server, ...others] = started;
    if (server?.instance !== record.slot.instance || !server.isServing) return "its holder does not serve";
    if (others.length > 0) return `${others[0]?.process.name} is left over`;
    for (const { process, answersOf } of this.clients)
      if ((answersOf.get(record.epoch) ?? 0) < 2) return `${process.name} is not served`;
    if (this.agents.some(({ process }) => process?.state !== "alive")) return "an agent does not run";
    return undefined;
  }

  /** Each acknowledged write can be read. */
  private checkData(): void {
    for (const { acknowledged, process } of this.clients)
      for (const [key, version] of acknowledged) {
        const found = this.store.data.get(key)?.version ?? 0;
        this.rules.must(
          found === version || found === version + 1,
          "W8",
          () => `${process.name} was told that ${version} of ${key} is written, and the store has ${found}`,
        );
      }
  }

  /** SW1 */
  private async runUntil(done: () => boolean): Promise<void> {
    while (this.rules.violation === undefined && !done()) {
      this.time.step(Number.POSITIVE_INFINITY);
      await new Promise<void>((resolve) => setImmediate(resolve));
    }
  }

  brokerOf(process: SimProcess, native: NativeGates | undefined): RecordBroker {
    const { host, main } = process;
    return new RecordBroker({
      store: new SimRecords(this.etcd, process, main),
      reach: "cluster",
      self: process.identity,
      liveness: this.livenessOf(process),
      leases: new RenewingLeaseKeeper({
        startRenewal: (job) => this.renew(process, job, native),
        native,
        runtime: main.runtime,
        clock: () => host.boottimeMs(),
      }),
      runtime: main.runtime,
      fence: (_command, target) => this.fence(process, target),
    });
  }

  private livenessOf({ host, identity }: SimProcess): Liveness {
    const shipped = new SilenceLiveness(
      identity,
      () => host.boottimeMs(),
      async (other) => host.isAlive(other),
    );
    const isDeaf = this.mistakes.has("hears silence at once");
    const isRash = this.mistakes.has("takes silence for death");
    if (!isDeaf && !isRash) return shipped;
    return {
      agent: (service, agent) => shipped.agent(service, agent),
      holder: async (service, record) => {
        const found = await shipped.holder(service, record);
        if (isDeaf && found.lookAgainMs !== undefined) return { life: "silent" };
        return isRash && found.life === "silent" ? { life: "gone" } : found;
      },
    };
  }

  /** The renewal thread: the shipped renewals, on a lane of their own. */
  private renew(process: SimProcess, job: RenewalJob, native: NativeGates | undefined): RunningRenewal {
    const { host, main, renewal: lane } = process;
    const { term, timing, claimSentMs, gate } = job;
    let deadline = claimSentMs + timing.grantMs;
    let hasEnded: () => void = () => {};
    const ended = new Promise<void>((resolve) => {
      hasEnded = resolve;
    });
    const renewal = new Renewal({
      term,
      timing,
      claimSentMs,
      records: new SimRecords(this.etcd, process, lane),
      runtime: lane.runtime,
      clock: () => host.boottimeMs(),
      extend: (validUntilMs) => {
        const late = this.mistakes.has("renews from the answer");
        deadline = late ? host.boottimeMs() + 2 * timing.grantMs : validUntilMs;
        if (gate !== undefined) native?.extendGate(gate, deadline);
      },
      lost: (why) => main.later(0, () => job.lost(why)),
    });
    const tell = () => main.later(0, hasEnded);
    lane.later(1, () => void renewal.run().then(tell, tell));
    return {
      validUntilMs: () => deadline,
      restore: (record) => lane.later(0, () => renewal.restore(record)),
      end: () => lane.later(0, () => renewal.end()),
      ended,
      cut: tell,
    };
  }

  /** A power switch: slow, or without an answer, or of no use, or effective and yet of no use. */
  private fence(by: SimProcess, target: FenceTarget): Promise<string | undefined> {
    const { time, chance, trace } = this.universe;
    const host = this.hosts.find(({ name }) => name === target.host);
    if (!host) throw new Error(`no host ${target.host}`);
    return new Promise((resolve) => {
      const fails = this.fencesFail || (this.faults.isActive && chance.is(0.1));
      const takesMs = this.faults.isActive && chance.is(0.15) ? chance.between(5000, fenceLimitMs) : 0;
      let isDone = false;
      const finish = () => {
        if (isDone) return;
        isDone = true;
        this.faults.slowFences.delete(finish);
        trace(`fence of ${host.name} by ${by.name}: ${fails ? "fails" : "confirmed"}`);
        if (!fails || chance.is(0.3)) this.powerOff(host);
        const isTaken = !fails || this.mistakes.has("takes a failed fence for a confirmed one");
        by.main.later(chance.between(1, 50), () => resolve(isTaken ? undefined : "no power switch answers"));
      };
      this.faults.slowFences.add(finish);
      if (this.mistakes.has("fences without waiting")) resolve(undefined);
      time.after(takesMs + chance.between(200, 2500), finish);
    });
  }

  powerOff(host: SimHost): void {
    if (!host.isOn) return;
    host.powerOff();
    const { time, chance } = this.universe;
    time.after(this.faults.isActive ? chance.between(2000, 20_000) : 2000, () => this.powerOn(host));
  }

  private powerOn(host: SimHost): void {
    if (host.isOn) return;
    host.powerOn();
    this.agents.find((agent) => agent.host === host)?.start();
  }

  serverAt(uri: string) {
    for (const server of this.rules.servers) if (server.uri === uri) return server;
    return undefined;
  }

  /** A message from host to host. */
  send(from: SimHost, to: SimHost, arrives: () => void): void {
    if (from.losesOut) return;
    this.time.after(this.universe.chance.between(0.1, 3), () => {
      if (!to.losesIn && to.isOn) arrives();
    });
  }

  /** Whether a server on the process's own host answers a handshake; rejects if it does not in time. */
  look(process: SimProcess, uri: string): Promise<void> {
    return new Promise((resolve, reject) => {
      const limit = process.main.runtime.after(2000, () => reject(new Error("no answer")));
      const server = this.serverAt(uri);
      if (!server) return;
      server.process.main.later(1, () => {
        if (!server.isListening) return;
        process.main.later(1, () => {
          limit.cancel();
          resolve();
        });
      });
    });
  }
}

function spec(volumeUuid: string): ServiceSpec {
  return {
    service: VOLUME,
    kind: "csnap",
    instances: { max: 1, min: 1 },
    volumeUuid,
    storeClass: "shared-block",
    fencing: { policy: "command", command: "the power switch" },
    hosts: [],
  };
}
