// Keeps a service's server running through a registered agent: decides when, orders by claim, waits
// for the end. One for each registerAgent().
//
// AR1 A server is started only for a committed claim (F7): the slot says `ordered` with the instance
//     and the epoch, and the server that comes takes the slot over by that instance.
// AR2 Of several agents the claim's compare-and-swap picks one; the others watch.
// AR3 Nothing is started for a service that is disabled, failed (W9), held, declared with min 0, or not
//     for this host.
// AR3a An order between hosts is a grant that ends in time like every other: the agent renews it until
//     its server has taken the slot over.
// AR4 A server that ends soon after its start is started again ever later, up to backoffMaxMs.
import { randomUUID } from "node:crypto";
import { messageOf } from "../volume/errors.js";
import type { AgentRegistration, InstanceAgent, StartOrder } from "./broker.js";
import { heldTerm, type StartedLease } from "./lease_keeper.js";
import { agentBeatMs } from "./liveness.js";
import { newRecord, type ServiceRecord, type Slot, vacantSlot } from "./record.js";
import type { RecordBroker } from "./record_broker.js";
import type { Sight } from "./service_feed.js";
import type { TicketState } from "./ticket.js";
import { claimedSlot, type Found, firstBeat, isHeld } from "./transitions.js";

const backoffMinMs = 200;
const backoffMaxMs = 10_000;
/** One that served this long had not failed to start. */
const settledMs = 10_000;
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
    this.latest = { record, life: sight.holder };
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
    const waitMs = Date.parse(this.latest.record?.slot.retry_at ?? "") - Date.now();
    clearTimeout(this.retry);
    if (waitMs > 0) {
      this.retry = setTimeout(() => this.considerStart(), waitMs);
      return;
    }
    this.running = this.runOne().finally(() => {
      this.running = undefined;
      // What was seen meanwhile was not acted on.
      setImmediate(() => this.considerStart());
    });
    this.follow(this.running);
  }

  /** One server from its order to its end, or to the agent's. */
  private async runOne(): Promise<void> {
    const { service } = this.registration;
    const started = this.broker.leases?.begin();
    const record = await this.order(started);
    if (!record) return;
    const order: StartOrder = { service, instance: record.slot.instance, epoch: record.epoch };
    // The server's own renewals go on from there; these end with its claim, or with the agent.
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
      if (!isOurs) return { value: undefined };
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
    return record !== undefined && this.mayRun(record) && record.slot.state !== "failed" && !isHeld(found);
  }

  /** AR1, AR2; undefined: somebody else was faster. */
  private order(started: StartedLease | undefined): Promise<ServiceRecord | undefined> {
    const { service } = this.registration;
    return this.broker.change<ServiceRecord | undefined>(service, (found) => {
      const { record } = found;
      this.latest = found;
      if (!record || this.ending.signal.aborted || !this.mayStart(found)) return { value: undefined };
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
