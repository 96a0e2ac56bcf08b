// A ticket's memory and its listeners. Backends set states and send passing events; listeners hear
// them on later turns. Used by every backend.
//
// TI1 Bounded: of a listener's undelivered events the latest state and the latest of each passing
//     kind are kept, in this order: broker, resync, state.
// TI2 A listener that heard an address hears `withdrawn` of it before any state that is no newer
//     address, however much was coalesced.
// TI3 An address of a smaller epoch than one set before is not told (F4).
// TI4 After end() nothing is delivered.
import type { BrokerEvent, Epoch, Ticket } from "./broker.js";
import type { Runtime } from "./runtime.js";

type AddressEvent = Extract<BrokerEvent, { type: "address" }>;
type Passing = Extract<BrokerEvent, { type: "resync" | "broker" }>;
export type TicketState = Exclude<BrokerEvent, Passing | { type: "withdrawn" }>;

interface Listener {
  readonly call: (event: BrokerEvent) => void;
  heard: TicketState | undefined;
  /** told again even if it is equal: after a resync */
  repeat: boolean;
  readonly passing: Map<Passing["type"], Passing>;
  scheduled: boolean;
}

let serial = 0;

export class LiveTicket implements Ticket {
  readonly id = `t${++serial}`;
  private readonly listeners = new Set<Listener>();
  private state: TicketState = { type: "pending", reason: "looking" };
  private whyWithdrawn = "";
  private newestEpoch: Epoch = 0n;
  private ended = false;

  private readonly onEnd: (() => void)[] = [];

  constructor(
    readonly service: string,
    private readonly runtime: Pick<Runtime, "soon">,
  ) {}

  /** Called once, when the ticket ends or has ended. */
  whenEnded(call: () => void): void {
    if (this.ended) call();
    else this.onEnd.push(call);
  }

  on(listener: (event: BrokerEvent) => void): () => void {
    const entry: Listener = {
      call: listener,
      heard: undefined,
      repeat: false,
      passing: new Map(),
      scheduled: false,
    };
    if (this.ended) return () => {};
    this.listeners.add(entry);
    this.schedule(entry);
    return () => this.listeners.delete(entry);
  }

  get current(): TicketState {
    return this.state;
  }

  /** `reason`: why an address that was told is not valid any more. */
  set(state: TicketState, reason = ""): void {
    if (this.ended || isFinal(this.state)) return;
    if (state.type === "address") {
      if (state.epoch < this.newestEpoch) return;
      this.newestEpoch = state.epoch;
    } else if (reason !== "") this.whyWithdrawn = reason;
    this.state = state;
    for (const listener of this.listeners) this.schedule(listener);
  }

  pass(event: Passing): void {
    if (this.ended || isFinal(this.state)) return;
    for (const listener of this.listeners) {
      listener.passing.set(event.type, event);
      if (event.type === "resync") listener.repeat = true;
      this.schedule(listener);
    }
  }

  end(): void {
    if (this.ended) return;
    this.ended = true;
    this.listeners.clear();
    for (const call of this.onEnd) call();
  }

  private schedule(listener: Listener): void {
    if (listener.scheduled) return;
    listener.scheduled = true;
    this.runtime.soon(() => {
      listener.scheduled = false;
      for (const event of this.due(listener)) {
        if (this.ended || !this.listeners.has(listener)) return;
        listener.call(event);
      }
    });
  }

  /** TI1, TI2 */
  private due(listener: Listener): BrokerEvent[] {
    const events: BrokerEvent[] = [];
    for (const type of ["broker", "resync"] as const) {
      const event = listener.passing.get(type);
      if (event) events.push(event);
    }
    listener.passing.clear();
    const { heard } = listener;
    if (listener.repeat || !heard || !same(heard, this.state)) {
      if (heard?.type === "address" && this.state.type !== "address")
        events.push({ type: "withdrawn", epoch: heard.epoch, reason: this.whyWithdrawn });
      events.push(this.state);
    }
    listener.heard = this.state;
    listener.repeat = false;
    return events;
  }
}

function isFinal(state: TicketState): boolean {
  return state.type === "failed" && state.final;
}

function same(a: TicketState, b: TicketState): boolean {
  if (a === b) return true;
  if (a.type === "address" && b.type === "address") return sameAddress(a, b);
  return text(a) === text(b);
}

function sameAddress(a: AddressEvent, b: AddressEvent): boolean {
  return a.epoch === b.epoch && a.instance === b.instance && text(a) === text(b);
}

function text(state: TicketState): string {
  return JSON.stringify(state, (_key, value: unknown) => (typeof value === "bigint" ? `${value}` : value));
}
