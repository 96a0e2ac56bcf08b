// One server from its order to its end, or to the agent's; and from when on the next may be ordered.
//
// AR1 A server is started only for a committed claim (F7): the slot says `ordered` with the instance
//     and the epoch, and the server that comes takes the slot over by that instance.
// AR2 Of several agents the claim's compare-and-swap picks one; the others watch.
// AR8 An order between hosts is a grant that ends in time like every other: the agent renews it until
//     its server has taken the slot over. That mostly comes before the first renewal is due, and the
//     renewal's thread would take the processor from it.
import { messageOf } from "../volume/errors.js";
import { type AgentDuty, mayOrder } from "./agent_duty.js";
import type { StartOrder } from "./broker.js";
import { heldTerm, type LeasePulse, type StartedLease } from "./lease_keeper.js";
import { backoffMaxMs } from "./order_delay.js";
import { type ServiceRecord, vacantSlot } from "./record.js";
import { withRegistrant } from "./reservation.js";
import type { Runtime } from "./runtime.js";
import type { ServerCare } from "./server_care.js";
import { claimedSlot, firstBeat } from "./transitions.js";

const backoffMinMs = 200;
/** One that served this long had not failed to start. */
const settledMs = 10_000;
const startLimitMs = 30_000;
/** Before an order is renewed for the first time; a server takes some 100 ms to take it over. */
const orderQuietMs = 700;

export class OrderedServer {
  private backoffMs = backoffMinMs;

  constructor(
    private readonly duty: AgentDuty,
    private readonly care: ServerCare,
  ) {}

  async run(): Promise<void> {
    const { registration, broker } = this.duty;
    const started = broker.leases?.begin();
    const record = await this.order(started);
    if (!record) return;
    const { service } = registration;
    const order: StartOrder = { service, instance: record.slot.instance, epoch: record.epoch };
    // AR8. The server's own renewals go on from there.
    let pulse: LeasePulse | undefined;
    const renewing = broker.runtime.after(orderQuietMs, () => {
      if (!this.isTakenOver(order)) pulse = started?.keep(heldTerm(service, record), () => {});
    });
    const startedMs = broker.runtime.monotonicMs();
    let why: string | undefined;
    try {
      why = await this.untilEnd(order);
    } catch (error) {
      why = `the agent could not start it: ${messageOf(error)}`;
    } finally {
      renewing.cancel();
      await pulse?.end();
    }
    if (why !== undefined) await this.noteEnd(order, why, broker.runtime.monotonicMs() - startedMs);
  }

  /** By what was seen last: the slot is its server's, or a newer term's. */
  private isTakenOver({ instance, epoch }: StartOrder): boolean {
    const { record } = this.duty.latest() ?? {};
    if (!record || record.epoch !== epoch) return record !== undefined && record.epoch > epoch;
    return record.slot.instance !== instance || !record.slot.ordered;
  }

  /** AR1, AR2; undefined: somebody else was faster. */
  private order(started: StartedLease | undefined): Promise<ServiceRecord | undefined> {
    const { broker, ending, registration, found: tell } = this.duty;
    return broker.change<ServiceRecord | undefined>(registration.service, (found) => {
      tell(found);
      const { record, at } = found;
      if (!record || ending.aborted || !mayOrder(found, registration.host)) return { value: undefined };
      started?.sent();
      const slot = claimedSlot({
        instance: broker.runtime.uniqueId(),
        holder: broker.self,
        purpose: "serve",
        reason: "the agent is starting it",
        beat: firstBeat(started?.terms),
        since: at,
      });
      const next = { ...record, epoch: record.epoch + 1n, slot: { ...slot, ordered: true } };
      const ordered = withRegistrant(next, broker.self);
      return { record: ordered, value: ordered };
    });
  }

  /** Why the server ended; undefined: the agent ends, and the server goes on. */
  private async untilEnd(order: StartOrder): Promise<string | undefined> {
    const { agent, ending, broker } = this.duty;
    const late = new AbortController();
    const startLimit = broker.runtime.after(startLimitMs, () =>
      late.abort(new Error(`it took longer than ${startLimitMs / 1000} s`)),
    );
    const { ended } = await agent
      .start(order, AbortSignal.any([ending, late.signal]))
      .finally(() => startLimit.cancel());
    const left = aborted(ending);
    const addressLimit = broker.runtime.after(startLimitMs, () => void this.stopUnpublished(order));
    try {
      return await Promise.race([ended, left.promise]);
    } finally {
      addressLimit.cancel();
      left.forget();
    }
  }

  /** Of a server that runs but has not come to an address within the limit. */
  private async stopUnpublished(order: StartOrder): Promise<void> {
    const isPublished = await this.duty.broker
      .describe(order.service)
      .then((view) => view?.state === "published" && view.instance === order.instance)
      .catch(() => true);
    if (!isPublished) await this.care.stop(order, `no address ${startLimitMs / 1000} s after its start`);
  }

  /** AR4 of order_delay.ts. */
  private noteEnd(order: StartOrder, why: string, livedMs: number): Promise<void> {
    const { broker } = this.duty;
    const isSettled = livedMs >= settledMs;
    this.backoffMs = isSettled ? backoffMinMs : nextBackoff(this.backoffMs, broker.runtime);
    const { backoffMs } = this;
    return broker.change(order.service, ({ record, at }) => {
      if (record?.epoch === undefined || record.slot.state === "failed") return { value: undefined };
      // Released in order, or ended without: both are this order's end, unless a newer term began.
      const isOurs = record.slot.instance === order.instance || record.slot.instance === "";
      // Released for a move: that another host shall have it stays written.
      if (!isOurs || record.slot.move_to !== null) return { value: undefined };
      const retryAt = isSettled ? null : new Date(Date.parse(at) + backoffMs).toISOString();
      return { record: { ...record, slot: vacantSlot(why, at, retryAt) }, value: undefined };
    });
  }
}

/** An agent sees many servers end: none may leave a listener behind. */
function aborted(signal: AbortSignal): { readonly promise: Promise<undefined>; forget(): void } {
  let listener: () => void = () => {};
  const promise = new Promise<undefined>((resolve) => {
    listener = () => resolve(undefined);
    if (signal.aborted) listener();
    else signal.addEventListener("abort", listener, { once: true });
  });
  return { promise, forget: () => signal.removeEventListener("abort", listener) };
}

/** Decorrelated jitter. */
function nextBackoff(formerMs: number, runtime: Pick<Runtime, "random">): number {
  return Math.min(backoffMaxMs, backoffMinMs + runtime.random() * (3 * formerMs - backoffMinMs));
}
