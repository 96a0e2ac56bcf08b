// The broker over any store of records with compare-and-swap: `local:` keeps them in the state
// directory, `etcd:` in a cluster (open.ts).
//
// RB1 On one kernel "exactly one" is the kernel's: the lock that the server holds on the store (claim
//     C1). The records say who it is and where, and make epochs that grow. Between hosts the grant
//     ends in time (lease.ts), and the gate in the core with it (F2).
// RB2 A holder that died is recognised by its process; its address is withdrawn by whoever looks, and
//     its slot taken by the next claim at once. One on another host that is silent is not (TR3).
// RB3 Nothing here waits on the caller's turn (BR1): storage is only touched asynchronously.
import { CsnapError, messageOf } from "../volume/errors.js";
import { AgentRunner } from "./agent_runner.js";
import type {
  AdminState,
  AgentRegistration,
  Broker,
  BrokerState,
  ClaimOptions,
  Epoch,
  Grant,
  InstanceAgent,
  ServiceRequest,
  ServiceSpec,
  ServiceView,
  Ticket,
} from "./broker.js";
import { type Fence, runFence } from "./fence.js";
import type { LeaseKeeper } from "./lease_keeper.js";
import { type HolderLife, KernelLiveness, type Liveness } from "./liveness.js";
import { ownIdentity, type ProcessIdentity } from "./process_identity.js";
import { newRecord, type ServiceRecord, type Versioned } from "./record.js";
import { RecordGrant } from "./record_grant.js";
import type { RecordStore } from "./records.js";
import { nodeRuntime, type Runtime, sleep, wallText } from "./runtime.js";
import { aliveAgents, ServiceFeed, type Sight } from "./service_feed.js";
import { stateOf, viewOf, whyNotValid } from "./sight.js";
import { type Reach, specProblem } from "./spec_rules.js";
import { LiveTicket } from "./ticket.js";
import {
  adoptedEpoch,
  behindStore,
  claimed,
  type Found,
  fenceConfirmed,
  heldError,
  isHeld,
  moved,
  specConflict,
} from "./transitions.js";

const changeAttemptsMax = 1000;
const observeEveryMs = 100;

/** What a change makes of a record; no `record`: it stays as it is. */
export interface Change<T> {
  readonly record?: ServiceRecord;
  readonly value: T;
}

export interface RecordBrokerOptions {
  readonly store: RecordStore;
  readonly reach: Reach;
  readonly self?: ProcessIdentity;
  readonly liveness?: Liveness;
  /** where grants end in time: what renews them */
  readonly leases?: LeaseKeeper;
  readonly runtime?: Runtime;
  readonly fence?: Fence;
}

export class RecordBroker implements Broker {
  readonly self: ProcessIdentity;
  readonly leases: LeaseKeeper | undefined;
  readonly runtime: Runtime;
  readonly runFence: Fence;
  private readonly store: RecordStore;
  private readonly liveness: Liveness;
  private readonly reach: Reach;
  private readonly feeds = new Map<string, ServiceFeed>();
  private readonly tickets = new Set<LiveTicket>();
  private readonly runners = new Map<LiveTicket, AgentRunner>();
  private held = 0;
  private closing = false;

  constructor({
    store,
    reach,
    self = ownIdentity(),
    liveness,
    leases,
    runtime = nodeRuntime,
    fence = runFence,
  }: RecordBrokerOptions) {
    this.store = store;
    this.reach = reach;
    this.self = self;
    this.liveness = liveness ?? new KernelLiveness();
    this.leases = leases;
    this.runtime = runtime;
    this.runFence = fence;
  }

  get state(): BrokerState {
    const states = [...this.feeds.values()].map((feed) => feed.state);
    if (states.includes("unreachable")) return "unreachable";
    return states.includes("degraded") ? "degraded" : "connected";
  }

  define(spec: ServiceSpec): Ticket {
    const ticket = this.newTicket(spec.service);
    const failed = (code: "SPEC_CONFLICT" | "DENIED" | "BROKER", detail: string) =>
      ticket.set({ type: "failed", code, detail, final: true });
    const problem = specProblem(spec, this.self.host, this.reach);
    if (problem !== undefined) {
      failed("DENIED", problem);
      return ticket;
    }
    this.change(spec.service, (found) => {
      const record = found.record ?? newRecord(null, found.at);
      const conflict = specConflict(found, spec);
      if (conflict) return { value: conflict };
      return { record: { ...record, spec }, value: undefined };
    }).then(
      (conflict) =>
        conflict ? failed("SPEC_CONFLICT", conflict.message) : ticket.set({ type: "defined", spec }),
      (error: unknown) => failed("BROKER", messageOf(error)),
    );
    return ticket;
  }

  request({ service, expect, deadlineMs }: ServiceRequest): Ticket {
    const ticket = this.follow(service, ({ found }) => {
      const spec = found?.record.spec;
      if (!spec || !expect) return undefined;
      if (expect.max !== undefined && expect.max !== spec.instances.max)
        return `${service}: at most ${spec.instances.max} server is declared, and ${expect.max} expected: ask for what is declared`;
      if (expect.volumeUuid !== undefined && expect.volumeUuid !== spec.volumeUuid)
        return `${service}: volume ${spec.volumeUuid} is declared, and ${expect.volumeUuid} expected: it is another volume of this name`;
      return undefined;
    });
    if (deadlineMs === undefined) return ticket;
    const timer = this.runtime.after(deadlineMs, () => {
      if (ticket.current.type === "address") return;
      const detail = `${service} has no server after ${deadlineMs / 1000} s: \`csnap volume explain ${service}\` says why`;
      ticket.set({ type: "failed", code: "DEADLINE", detail, final: true });
    });
    ticket.whenEnded(() => timer.cancel());
    return ticket;
  }

  watch(service: string): Ticket {
    return this.follow(service, () => undefined);
  }

  registerAgent(registration: AgentRegistration, agent: InstanceAgent): Ticket {
    const { service } = registration;
    const ticket = this.newTicket(service);
    const runner = new AgentRunner(this, registration, agent, (state) => ticket.set(state));
    this.runners.set(ticket, runner);
    const remove = this.listen(service, {
      seen: (sight) => runner.seen(sight),
      failed: (error) =>
        ticket.set({ type: "failed", code: "BROKER", detail: messageOf(error), final: false }),
      stateChanged: (state, detail) => ticket.pass({ type: "broker", state, detail }),
    });
    ticket.whenEnded(() => {
      remove();
      this.runners.delete(ticket);
      void runner.finished();
    });
    return ticket;
  }

  async claim(service: string, options: ClaimOptions): Promise<Grant> {
    const started = this.leases?.begin();
    const record = await this.change<ServiceRecord | CsnapError>(service, (found) => {
      // Of several attempts the last may be the one that is stored, so its time counts (LS2).
      started?.sent();
      const behind = behindStore(service, found, options);
      if (behind) return { ...(behind.record && { record: behind.record }), value: behind.error };
      const next = claimed(service, found, options, this.self, started?.terms);
      return { record: next, value: next };
    });
    if (record instanceof CsnapError) throw record;
    return new RecordGrant(this, service, options.instance, record, started);
  }

  reportBad(service: string, epoch: Epoch, why: string): void {
    this.change(service, ({ record }) => {
      if (record?.epoch !== epoch || record.slot.state !== "published" || record.slot.suspect !== null)
        return { value: undefined };
      return { record: { ...record, slot: { ...record.slot, suspect: why } }, value: undefined };
    }).then(
      () => this.feeds.get(service)?.look(),
      // A hint that can't be written changes nothing; those who follow the service hear of the cause.
      () => this.feeds.get(service)?.look(),
    );
  }

  setAdminState(service: string, state: AdminState): Promise<void> {
    return this.change(service, ({ record }) => {
      if (!record?.spec) throw undeclared(service);
      return record.admin === state
        ? { value: undefined }
        : { record: { ...record, admin: state }, value: undefined };
    });
  }

  async describe(service: string): Promise<ServiceView | undefined> {
    const found = await this.observed(service);
    if (!found?.record.spec) return undefined;
    const { life } = await this.liveness.holder(service, found.record);
    return viewOf({
      found,
      holder: life,
      agents: await aliveAgents(this.liveness, service, found.record.agents),
    });
  }

  forget(service: string): Promise<void> {
    return this.change(service, (found) => {
      if (!found.record?.spec) return { value: undefined };
      if (isHeld(found)) throw heldError(service, found.record, found.life);
      const { epoch, agents, registrants } = found.record;
      return { record: { ...newRecord(null, found.at), epoch, agents, registrants }, value: undefined };
    });
  }

  async move(service: string, to: string): Promise<void> {
    await this.change(service, (found) => ({ record: moved(service, found, to), value: undefined }));
  }

  async adoptEpoch(service: string, storeEpoch: Epoch): Promise<void> {
    await this.change(service, (found) => {
      if (!found.record?.spec) throw undeclared(service);
      if (isHeld(found)) throw heldError(service, found.record, found.life);
      return { record: adoptedEpoch(found.record, storeEpoch, found.at), value: undefined };
    });
  }

  async confirmFence(service: string, epoch: Epoch, who: string): Promise<void> {
    await this.observed(service);
    await this.change(service, (found) => ({
      record: fenceConfirmed(service, found, epoch, who),
      value: undefined,
    }));
  }

  release(ticket: Ticket): void {
    if (ticket instanceof LiveTicket) ticket.end();
  }

  async close(): Promise<void> {
    const runners = [...this.runners.values()];
    for (const ticket of this.tickets) ticket.end();
    await Promise.all(runners.map((runner) => runner.finished()));
    this.closing = true;
    this.closeStore();
  }

  /** Grants outlive close(): what they need of the store stays until the last has ended. */
  hold(): () => void {
    this.held++;
    return () => {
      this.held--;
      this.closeStore();
    };
  }

  private closeStore(): void {
    if (this.closing && this.held === 0) this.store.close();
  }

  /** The record, looked at long enough to know whether a holder on another host still gives signs. */
  private async observed(service: string): Promise<Versioned | undefined> {
    const first = await this.store.read(service);
    for (let found = first; ; found = await this.store.read(service)) {
      const { lookAgainMs }: HolderLife = found
        ? await this.liveness.holder(service, found.record)
        : { life: "gone" };
      if (lookAgainMs === undefined || !sameSign(found, first)) return found;
      await sleep(this.runtime, Math.min(lookAgainMs, observeEveryMs));
    }
  }

  /**
   * Compare-and-swap until it succeeds: `edit` sees the newest record and whether its holder lives, and
   * is called again when somebody was faster. Rejects with what `edit` throws, and as RecordStore does.
   */
  async change<T>(service: string, edit: (found: Found) => Change<T>): Promise<T> {
    for (let attempt = 0; attempt < changeAttemptsMax; attempt++) {
      const found = await this.store.read(service);
      const { life, fencingMs }: HolderLife = found
        ? await this.liveness.holder(service, found.record)
        : { life: "gone" };
      const { record, value } = edit({
        record: found?.record,
        life,
        fencingMs,
        at: wallText(this.runtime),
      });
      if (!record) return value;
      if (!(await this.store.swap(service, found, await this.tidied(service, record)))) continue;
      this.feeds.get(service)?.look();
      return value;
    }
    throw new CsnapError("BUSY", `${service}: the broker's record changes all the time: try again`);
  }

  /** Listens to the service's feed until the returned function is called. */
  listen(service: string, listener: Parameters<ServiceFeed["add"]>[0]): () => void {
    const feed = this.feeds.get(service) ?? new ServiceFeed(service, this.store, this.liveness, this.runtime);
    this.feeds.set(service, feed);
    const remove = feed.add(listener);
    return () => {
      remove();
      if (feed.isUsed || this.feeds.get(service) !== feed) return;
      this.feeds.delete(service);
      feed.end();
    };
  }

  /** Agents whose process is gone leave the record with the next change. */
  private async tidied(service: string, record: ServiceRecord): Promise<ServiceRecord> {
    if (record.agents.length === 0) return record;
    const alive = await Promise.all(record.agents.map((agent) => this.liveness.agent(service, agent)));
    return alive.every(Boolean) ? record : { ...record, agents: record.agents.filter((_, i) => alive[i]) };
  }

  private newTicket(service: string): LiveTicket {
    const ticket = new LiveTicket(service, this.runtime);
    this.tickets.add(ticket);
    ticket.whenEnded(() => this.tickets.delete(ticket));
    return ticket;
  }

  private follow(service: string, conflict: (sight: Sight) => string | undefined): LiveTicket {
    const ticket = this.newTicket(service);
    const remove = this.listen(service, {
      seen: (sight, isGap) => {
        if (isGap)
          ticket.pass({ type: "resync", view: sight.found?.record.spec ? viewOf(sight) : undefined });
        const detail = conflict(sight);
        if (detail !== undefined) ticket.set({ type: "failed", code: "SPEC_CONFLICT", detail, final: true });
        else ticket.set(stateOf(service, sight, this.runtime.wallMs()), whyNotValid(sight));
      },
      // An address that was told may well be right: what is known stays, the broker's state is told.
      failed: (error) => {
        if (ticket.current.type !== "address")
          ticket.set({ type: "failed", code: "BROKER", detail: messageOf(error), final: false });
      },
      stateChanged: (state, detail) => ticket.pass({ type: "broker", state, detail }),
    });
    ticket.whenEnded(remove);
    return ticket;
  }
}

function sameSign(a: Versioned | undefined, b: Versioned | undefined): boolean {
  const [x, y] = [a?.record.slot, b?.record.slot];
  return x?.instance === y?.instance && x?.beat?.seq === y?.beat?.seq;
}

function undeclared(service: string): CsnapError {
  return new CsnapError(
    "NOT_FOUND",
    `${service} is not declared to the broker: \`csnap volume define ${service}\` declares it, and so does serving it`,
  );
}
