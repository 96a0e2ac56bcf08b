// Keeps a service's server running through a registered agent: decides when, orders by claim, waits
// for the end. One for each registerAgent().
//
// AR1 A server is started only for a committed claim (F7): the slot says `ordered` with the instance
//     and the epoch, and the server that comes takes the slot over by that instance.
// AR2 Of several agents the claim's compare-and-swap picks one; the others watch.
// AR3 Nothing is started for a service that is disabled, failed (W9), held, declared with min 0, or not
//     for this host.
// AR4 A server that ends soon after its start is started again ever later, up to backoffMaxMs.
// AR5 Only the agent of the holder's own host probes and stops a server: what another host can't reach
//     may well be alive.
// AR6 A silent holder's host is fenced by one agent at a time; the next tries when that one has been
//     silent for as long as a fence may take. Only a confirmed fence frees the slot (F8).
// AR7 A service that is being moved is left to the host that shall have it, for moveLimitMs.
// AR8 An order between hosts is a grant that ends in time like every other: the agent renews it until
//     its server has taken the slot over.
import { randomUUID } from "node:crypto";
import { messageOf } from "../volume/errors.js";
import type { AgentRegistration, InstanceAgent, StartOrder } from "./broker.js";
import { fenceLimitMs, runFence } from "./fence.js";
import { heldTerm, type StartedLease } from "./lease_keeper.js";
import { agentBeatMs } from "./liveness.js";
import { isOfThisHost } from "./process_identity.js";
import { newRecord, type ServiceRecord, type Slot, vacantSlot } from "./record.js";
import type { RecordBroker } from "./record_broker.js";
import type { Sight } from "./service_feed.js";
import type { TicketState } from "./ticket.js";
import { claimedSlot, type Found, fencingBegun, fencingEnded, firstBeat, isHeld } from "./transitions.js";

const backoffMinMs = 200;
const backoffMaxMs = 10_000;
/** One that served this long had not failed to start. */
const settledMs = 10_000;
const moveLimitMs = 10_000;
const fenceRetryMs = 5_000;
const startLimitMs = 30_000;
const stopGraceMs = 30_000;
/** For one that answers no probe: it would not drain either. */
const hungGraceMs = 2_000;

export class AgentRunner {
  private readonly id = randomUUID();
  private running: Promise<void> | undefined;
  private probing = false;
  private backoffMs = backoffMinMs;
  private retry: NodeJS.Timeout | undefined;
  private latest: Found = { record: undefined, life: "gone" };
  private finishing: Promise<void> | undefined;
  /** performance.now() before which a fence that failed is not tried again */
  private fenceAgainMs = 0;
  private beating: NodeJS.Timeout | undefined;
  private readonly ending = new AbortController();
  private work: Promise<unknown> = Promise.resolve();

  constructor(
    private readonly broker: RecordBroker,
    private readonly registration: AgentRegistration,
    private readonly agent: InstanceAgent,
    private readonly tell: (state: TicketState) => void,
  ) {}

  seen(sight: Sight): void {
    if (this.ending.signal.aborted) return;
    const record = sight.found?.record;
    if (!record?.agents.some((agent) => agent.id === this.id)) {
      this.register();
      return;
    }
    if (!record.spec) {
      this.tell({ type: "pending", reason: "undefined" });
      return;
    }
    this.tell({ type: "registered", host: this.registration.host });
    this.latest = { record, life: sight.holder, fencingMs: sight.fencingMs };
    if (this.mayRun(record)) this.agent.prepare?.(this.registration.service);
    this.considerStart();
    this.considerProbe(record);
  }

  /** The registration is withdrawn; a server that runs goes on. */
  finished(): Promise<void> {
    this.finishing ??= this.finish();
    return this.finishing;
  }

  private async finish(): Promise<void> {
    this.ending.abort();
    clearTimeout(this.retry);
    clearInterval(this.beating);
    await this.work.catch(() => {});
    await this.broker
      .change(this.registration.service, ({ record }) => {
        if (!record?.agents.some((agent) => agent.id === this.id)) return { value: undefined };
        return {
          record: { ...record, agents: record.agents.filter((agent) => agent.id !== this.id) },
          value: undefined,
        };
      })
      .catch(() => {
        // The process ends soon, and its registration with it.
      });
  }

  private register(): void {
    const { host, service } = this.registration;
    if (this.broker.leases && !this.beating) this.beating = setInterval(() => this.beat(), agentBeatMs);
    const entry = { id: this.id, host, process: this.broker.self, beat: 0 };
    this.follow(
      this.broker.change(service, ({ record = newRecord(null) }) => {
        if (this.ending.signal.aborted || record.agents.some((agent) => agent.id === this.id))
          return { value: undefined };
        return { record: { ...record, agents: [...record.agents, entry] }, value: undefined };
      }),
    );
  }

  /** LI3 */
  private beat(): void {
    this.broker
      .change(this.registration.service, ({ record }) => {
        if (!record?.agents.some((agent) => agent.id === this.id)) return { value: undefined };
        const agents = record.agents.map((agent) =>
          agent.id === this.id ? { ...agent, beat: agent.beat + 1 } : agent,
        );
        return { record: { ...record, agents }, value: undefined };
      })
      .catch(() => {
        // The next one may arrive; presence is no matter of safety.
      });
  }

  /** Its failure is told on the ticket; the feed's next look tries again. */
  private follow(work: Promise<unknown>): void {
    this.work = work.catch((error: unknown) =>
      this.tell({ type: "failed", code: "BROKER", detail: messageOf(error), final: false }),
    );
  }

  /** By what was seen last; order() decides by what is there. */
  private considerStart(): void {
    if (this.running || this.ending.signal.aborted || !this.mayStart(this.latest)) return;
    const waitMs = this.waitMs();
    clearTimeout(this.retry);
    if (waitMs > 0) {
      this.retry = setTimeout(() => this.considerStart(), waitMs);
      return;
    }
    const isSilent = this.latest.life === "silent";
    this.running = (isSilent ? this.fenceHolder() : this.runOne()).finally(() => {
      this.running = undefined;
      // What was seen meanwhile was not acted on.
      setImmediate(() => this.considerStart());
    });
    this.follow(this.running);
  }

  /** By wall clocks, which may differ: so bounded. AR6, AR7. */
  private waitMs(): number {
    const { slot } = this.latest.record ?? {};
    if (!slot) return 0;
    if (this.latest.life === "silent") {
      const isOther = slot.fencing !== null && slot.fencing.id !== this.id;
      const othersMs = isOther ? fenceLimitMs + fenceRetryMs - (this.latest.fencingMs ?? 0) : 0;
      return Math.max(othersMs, this.fenceAgainMs - performance.now());
    }
    if (slot.move_to !== null && slot.move_to !== this.registration.host)
      return Math.min(moveLimitMs, Date.parse(slot.since) + moveLimitMs - Date.now());
    return Math.min(backoffMaxMs, Date.parse(slot.retry_at ?? "") - Date.now());
  }

  /** AR6 */
  private async fenceHolder(): Promise<void> {
    const { service, host } = this.registration;
    const fencing = { id: this.id, host };
    const { record: seen } = this.latest;
    const record = await this.broker.change<ServiceRecord | undefined>(service, (found) => {
      this.latest = found;
      if (this.ending.signal.aborted || !this.mayFence(found)) return { value: undefined };
      const begun = fencingBegun(found, seen?.slot.instance ?? "", fencing);
      return begun ? { record: begun, value: begun } : { value: undefined };
    });
    const { holder } = record?.slot ?? {};
    if (!record || !holder || record.spec?.fencing.command === undefined) return;
    const target = { service, host: holder.host, bootId: holder.boot_id, epoch: record.epoch };
    const failure = await runFence(record.spec.fencing.command, target);
    if (failure !== undefined) this.fenceAgainMs = performance.now() + fenceRetryMs;
    await this.broker.change(service, ({ record: now }) => {
      const ended = fencingEnded(now, fencing, failure);
      return ended ? { record: ended, value: undefined } : { value: undefined };
    });
  }

  private mayFence({ record, life }: Found): boolean {
    return (
      life === "silent" &&
      record?.spec?.fencing.policy === "command" &&
      this.mayRun(record) &&
      record.slot.purpose === "serve"
    );
  }

  /** One server from its order to its end, or to the agent's. */
  private async runOne(): Promise<void> {
    const { service } = this.registration;
    const started = this.broker.leases?.begin();
    const record = await this.order(started);
    if (!record) return;
    const order: StartOrder = { service, instance: record.slot.instance, epoch: record.epoch };
    // AR8. The server's own renewals go on from there.
    const pulse = started?.keep(heldTerm(service, record), () => {});
    const startedMs = performance.now();
    let why: string;
    try {
      const { ended } = await this.agent.start(
        order,
        AbortSignal.any([this.ending.signal, AbortSignal.timeout(startLimitMs)]),
      );
      const limit = setTimeout(() => void this.stopUnpublished(order), startLimitMs);
      const left = new Promise<undefined>((resolve) => {
        this.ending.signal.addEventListener("abort", () => resolve(undefined), { once: true });
      });
      const end = await Promise.race([ended, left]);
      clearTimeout(limit);
      if (end === undefined) return;
      why = end;
    } catch (error) {
      why = `the agent could not start it: ${messageOf(error)}`;
    } finally {
      await pulse?.end();
    }
    const isSettled = performance.now() - startedMs >= settledMs;
    this.backoffMs = isSettled ? backoffMinMs : nextBackoff(this.backoffMs);
    const retryAt = isSettled ? null : new Date(Date.now() + this.backoffMs).toISOString();
    await this.broker.change(service, ({ record }) => {
      if (record?.epoch === undefined || record.slot.state === "failed") return { value: undefined };
      // Released in order, or ended without: both are this order's end, unless a newer term began.
      const isOurs = record.slot.instance === order.instance || record.slot.instance === "";
      // Released for a move: that another host shall have it stays written.
      if (!isOurs || record.slot.move_to !== null) return { value: undefined };
      return { record: { ...record, slot: vacantSlot(why, retryAt) }, value: undefined };
    });
  }

  /** AR3: whether this host is one that keeps the service running. */
  private mayRun({ spec, admin }: ServiceRecord): boolean {
    if (!spec || spec.instances.min === 0 || admin === "disabled") return false;
    return spec.hosts.length === 0 || spec.hosts.includes(this.registration.host);
  }

  private mayStart(found: Found): boolean {
    const { record } = found;
    if (record === undefined || !this.mayRun(record) || record.slot.state === "failed") return false;
    return !isHeld(found) || this.mayFence(found);
  }

  /** AR1, AR2; undefined: somebody else was faster. */
  private order(started: StartedLease | undefined): Promise<ServiceRecord | undefined> {
    const { service } = this.registration;
    return this.broker.change<ServiceRecord | undefined>(service, (found) => {
      const { record } = found;
      this.latest = found;
      if (!record || this.ending.signal.aborted || !this.mayStart(found) || isHeld(found))
        return { value: undefined };
      const instance = randomUUID();
      started?.sent();
      const slot: Slot = {
        ...claimedSlot(
          instance,
          this.broker.self,
          "serve",
          "the agent is starting it",
          firstBeat(started?.terms),
        ),
        ordered: true,
      };
      const ordered = { ...record, epoch: record.epoch + 1n, slot };
      return { record: ordered, value: ordered };
    });
  }

  /** Of a server that runs but has not come to an address within the limit. */
  private async stopUnpublished(order: StartOrder): Promise<void> {
    const isPublished = await this.broker
      .describe(order.service)
      .then((view) => view?.state === "published" && view.instance === order.instance)
      .catch(() => true);
    if (!isPublished) await this.stop(order, `no address ${startLimitMs / 1000} s after its start`);
  }

  private considerProbe(record: ServiceRecord): void {
    const { slot, epoch } = record;
    if (this.probing || slot.suspect === null || slot.state !== "published") return;
    if (!slot.holder || !isOfThisHost(slot.holder, this.broker.self)) return;
    this.probing = true;
    const order = { service: this.registration.service, instance: slot.instance, epoch };
    this.follow(
      this.probe(order, slot.suspect).finally(() => {
        this.probing = false;
      }),
    );
  }

  private async probe(order: StartOrder, suspicion: string): Promise<void> {
    if (!(await this.agent.probe(order).catch(() => false))) return this.stop(order, suspicion, hungGraceMs);
    await this.broker.change(order.service, ({ record }) => {
      if (record?.slot.instance !== order.instance || record.slot.suspect === null)
        return { value: undefined };
      return { record: { ...record, slot: { ...record.slot, suspect: null } }, value: undefined };
    });
  }

  /** A process that can't be stopped keeps its slot: nothing else is started on hope. */
  private async stop(order: StartOrder, why: string, graceMs = stopGraceMs): Promise<void> {
    const outcome = await this.agent.stop(order, graceMs).catch(() => "unknown" as const);
    await this.broker.change(order.service, ({ record }) => {
      if (record?.slot.instance !== order.instance) return { value: undefined };
      const slot =
        outcome === "unknown"
          ? { ...record.slot, reason: `${why}; its process does not end, so no other can be started` }
          : vacantSlot(why);
      return { record: { ...record, slot }, value: undefined };
    });
  }
}

/** Decorrelated jitter. */
function nextBackoff(formerMs: number): number {
  return Math.min(backoffMaxMs, backoffMinMs + Math.random() * (3 * formerMs - backoffMinMs));
}
