// The broker's local backend: records in the state directory, no daemon, nothing to configure. All
// who call are processes of one host and one kernel.
//
// LB1 "Exactly one" is the kernel's: the lock that the server holds on the store (claim C1). The
//     records say who it is and where, and make epochs that grow.
// LB2 A holder that died is recognised by pid, start time and boot; its address is withdrawn by
//     whoever looks, and its slot taken by the next claim at once.
// LB3 Nothing here waits on the caller's turn (BR1): storage is only touched through the thread pool.
import { join } from "node:path";
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
import { LocalGrant } from "./local_grant.js";
import { isAlive, ownIdentity, type ProcessIdentity } from "./process_identity.js";
import { newRecord, type ServiceRecord } from "./record.js";
import { RecordStore } from "./record_store.js";
import { ServiceFeed, type Sight } from "./service_feed.js";
import { stateOf, viewOf, whyNotValid } from "./sight.js";
import { LiveTicket } from "./ticket.js";
import { claimed, type Found, heldError, isHeld, specProblem } from "./transitions.js";

const changeAttemptsMax = 1000;

/** What a change makes of a record; no `record`: it stays as it is. */
export interface Change<T> {
  readonly record?: ServiceRecord;
  readonly value: T;
}

export class LocalBroker implements Broker {
  private readonly store: RecordStore;
  private readonly feeds = new Map<string, ServiceFeed>();
  private readonly tickets = new Set<LiveTicket>();
  private readonly runners = new Map<LiveTicket, AgentRunner>();

  constructor(
    stateDir: string,
    private readonly self: ProcessIdentity = ownIdentity(),
  ) {
    this.store = new RecordStore(join(stateDir, "broker"));
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
    const problem = specProblem(spec, this.self.host);
    if (problem !== undefined) {
      failed("DENIED", problem);
      return ticket;
    }
    this.change(spec.service, (found) => {
      const record = found.record ?? newRecord(null);
      const isOther = record.spec !== null && record.spec.volumeUuid !== spec.volumeUuid;
      if (isOther && isHeld(found)) return { value: heldError(spec.service, record) };
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
    const timer = setTimeout(() => {
      if (ticket.current.type === "address") return;
      const detail = `${service} has no server after ${deadlineMs / 1000} s: \`csnap volume explain ${service}\` says why`;
      ticket.set({ type: "failed", code: "DEADLINE", detail, final: true });
    }, deadlineMs);
    ticket.whenEnded(() => clearTimeout(timer));
    return ticket;
  }

  watch(service: string): Ticket {
    return this.follow(service, () => undefined);
  }

  registerAgent(registration: AgentRegistration, agent: InstanceAgent): Ticket {
    const { service } = registration;
    const ticket = this.newTicket(service);
    const runner = new AgentRunner(this, registration, agent, this.self, (state) => ticket.set(state));
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
    });
    return ticket;
  }

  async claim(service: string, options: ClaimOptions): Promise<Grant> {
    const record = await this.change(service, (found) => {
      const next = claimed(service, found, options, this.self);
      return { record: next, value: next };
    });
    return new LocalGrant(this, service, options.instance, record);
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
    const found = await this.store.read(service);
    if (!found?.record.spec) return undefined;
    const { slot, agents } = found.record;
    const alive: string[] = [];
    for (const agent of agents) if (await isAlive(agent.process)) alive.push(agent.host);
    return viewOf({
      found,
      holderAlive: slot.holder !== null && (await isAlive(slot.holder)),
      agents: alive,
    });
  }

  forget(service: string): Promise<void> {
    return this.change(service, (found) => {
      if (!found.record?.spec) return { value: undefined };
      if (isHeld(found)) throw heldError(service, found.record);
      const { epoch, agents } = found.record;
      return { record: { ...newRecord(null), epoch, agents }, value: undefined };
    });
  }

  release(ticket: Ticket): void {
    if (ticket instanceof LiveTicket) ticket.end();
  }

  async close(): Promise<void> {
    const runners = [...this.runners.values()];
    for (const ticket of this.tickets) ticket.end();
    await Promise.all(runners.map((runner) => runner.finished()));
  }

  /**
   * Compare-and-swap until it succeeds: `edit` sees the newest record and whether its holder lives, and
   * is called again when somebody was faster. Rejects with what `edit` throws, and as RecordStore does.
   */
  async change<T>(service: string, edit: (found: Found) => Change<T>): Promise<T> {
    for (let attempt = 0; attempt < changeAttemptsMax; attempt++) {
      const found = await this.store.read(service);
      const holder = found?.record.slot.holder;
      const { record, value } = edit({
        record: found?.record,
        alive: holder ? await isAlive(holder) : false,
      });
      if (!record) return value;
      if (!(await this.store.swap(service, found, await this.tidied(record)))) continue;
      this.feeds.get(service)?.look();
      return value;
    }
    throw new CsnapError("BUSY", `${service}: the broker's record changes all the time: try again`);
  }

  /** Listens to the service's feed until the returned function is called. */
  listen(service: string, listener: Parameters<ServiceFeed["add"]>[0]): () => void {
    const feed = this.feeds.get(service) ?? new ServiceFeed(service, this.store);
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
  private async tidied(record: ServiceRecord): Promise<ServiceRecord> {
    if (record.agents.length === 0) return record;
    const alive = await Promise.all(record.agents.map((agent) => isAlive(agent.process)));
    return alive.every(Boolean) ? record : { ...record, agents: record.agents.filter((_, i) => alive[i]) };
  }

  private newTicket(service: string): LiveTicket {
    const ticket = new LiveTicket(service);
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
        else ticket.set(stateOf(service, sight), whyNotValid(sight));
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

function undeclared(service: string): CsnapError {
  return new CsnapError(
    "NOT_FOUND",
    `${service} is not declared to the broker: \`csnap volume define ${service}\` declares it, and so does serving it`,
  );
}
