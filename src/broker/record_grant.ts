// One term's right to serve. Used by the server through Grant.
//
// RG1 On one kernel the store's lock decides (RB1): the grant has no end in time, and is lost when the
//     record names another term. Between hosts it ends in time unless it is renewed (lease_keeper.ts).
// RG2 A record that was removed under a running server is written again from what the grant knows,
//     if nobody has begun a term since. On one kernel the store's lock sees to that; between hosts
//     the renewal does it, as the number in the record must be a new one (RW3).
import { messageOf } from "../volume/errors.js";
import type { Address, Epoch, Grant, Reservation, ServiceSpec } from "./broker.js";
import { heldTerm, type LeasePulse, type StartedLease } from "./lease_keeper.js";
import type { ServiceRecord } from "./record.js";
import type { RecordBroker } from "./record_broker.js";
import { reservationOf } from "./reservation.js";
import type { Sight } from "./service_feed.js";
import { fencedError, ownSlot, published, released, withdrawn } from "./transitions.js";

export class RecordGrant implements Grant {
  readonly epoch: Epoch;
  private known: ServiceRecord;
  private lostListener: ((reason: string) => void) | undefined;
  private stopListener: ((reason: string) => void) | undefined;
  private lostReason: string | undefined;
  private stopReason: string | undefined;
  private readonly stopListening: () => void;
  private readonly letGo: () => void;
  private readonly pulse: LeasePulse | undefined;
  private ended = false;

  constructor(
    private readonly broker: RecordBroker,
    readonly service: string,
    private readonly instance: string,
    record: ServiceRecord,
    lease: StartedLease | undefined,
  ) {
    this.epoch = record.epoch;
    this.known = record;
    this.letGo = broker.hold();
    this.pulse = lease?.keep(heldTerm(service, record), (why) => this.lose(why));
    this.stopListening = broker.listen(service, {
      seen: (sight) => this.seen(sight),
      // Records that can't be read take nothing away (RG1).
      failed: () => {},
      stateChanged: () => {},
    });
  }

  async publish(address: Address): Promise<void> {
    this.known = await this.broker.change(this.service, ({ record, at }) => {
      const own = record ?? this.remembered;
      if (!ownSlot(own, this.instance, this.epoch)) throw fencedError(this.service, this.epoch, own);
      const next = published(own, address, at);
      return { record: next, value: next };
    });
  }

  async withdraw(reason: string): Promise<void> {
    const record = await this.changeOwn((own, at) => withdrawn(own, reason, at));
    if (typeof record === "object") this.known = record;
  }

  validUntilMs(): number {
    return this.pulse?.validUntilMs() ?? Number.POSITIVE_INFINITY;
  }

  get storeClass(): ServiceSpec["storeClass"] {
    return this.known.spec?.storeClass ?? "local";
  }

  get reservation(): Reservation | undefined {
    return reservationOf(this.known, this.broker.self);
  }

  get gate(): number | undefined {
    return this.pulse?.gate;
  }

  onLost(listener: (reason: string) => void): void {
    this.lostListener = listener;
    if (this.lostReason !== undefined) this.callLost();
  }

  onStopAsked(listener: (reason: string) => void): void {
    this.stopListener = listener;
    if (this.stopReason !== undefined) this.callStop();
  }

  async release(failure?: string): Promise<void> {
    if (this.ended) return;
    this.ended = true;
    this.stopListening();
    // Not before its last renewal has ended: the record is released as the last act.
    await this.pulse?.end();
    try {
      await this.changeOwn((own, at) => released(own, "stopped in order", failure, at));
    } finally {
      this.letGo();
    }
  }

  private get remembered(): ServiceRecord | undefined {
    return this.pulse ? undefined : this.known;
  }

  /** 'lost' where the slot is another term's. */
  private changeOwn(
    edit: (record: ServiceRecord, at: string) => ServiceRecord,
  ): Promise<ServiceRecord | "lost"> {
    return this.broker.change<ServiceRecord | "lost">(this.service, ({ record, at }) => {
      const own = record ?? this.remembered;
      if (!ownSlot(own, this.instance, this.epoch)) return { value: "lost" };
      const next = edit(own, at);
      return { record: next, value: next };
    });
  }

  private seen({ found }: Sight): void {
    if (this.ended) return;
    if (!found) {
      this.restore();
      return;
    }
    const { record } = found;
    // A look from before the claim, which others in this process may still hand on.
    if (record.epoch < this.epoch) return;
    if (!ownSlot(record, this.instance, this.epoch)) {
      this.lose(messageOf(fencedError(this.service, this.epoch, record)));
    } else if (record.slot.purpose === "serve" && record.admin === "disabled") {
      this.askStop("an administrator has disabled it");
    } else if (record.slot.purpose === "serve" && record.slot.move_to !== null) {
      this.askStop(`an administrator moves it to ${record.slot.move_to}`);
    } else {
      this.known = record;
    }
  }

  /** RG2 */
  private restore(): void {
    if (this.pulse) {
      this.pulse.restore(this.known);
      return;
    }
    this.changeOwn((record) => record).catch(() => {
      // The next look tries again.
    });
  }

  private lose(why: string): void {
    if (this.ended) return;
    this.lostReason ??= why;
    this.callLost();
  }

  private callLost(): void {
    const listener = this.lostListener;
    this.lostListener = undefined;
    listener?.(this.lostReason ?? "");
  }

  private askStop(why: string): void {
    this.stopReason ??= why;
    this.callStop();
  }

  private callStop(): void {
    const listener = this.stopListener;
    this.stopListener = undefined;
    listener?.(this.stopReason ?? "");
  }
}
