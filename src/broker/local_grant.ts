// One term's right to serve, as the local backend gives it. Used by the server through Grant.
//
// LG1 On one kernel the store's lock decides (LB1), so the grant has no end in time; it is lost when
//     the record names another term.
// LG2 A record that was removed under a running server is written again from what the grant knows:
//     the server holds the store's lock, so nobody else can have begun a term.
import { messageOf } from "../volume/errors.js";
import type { Address, Epoch, Grant } from "./broker.js";
import type { LocalBroker } from "./local.js";
import type { ServiceRecord } from "./record.js";
import type { Sight } from "./service_feed.js";
import { fencedError, ownSlot, published, released, withdrawn } from "./transitions.js";

export class LocalGrant implements Grant {
  readonly epoch: Epoch;
  private known: ServiceRecord;
  private lostListener: ((reason: string) => void) | undefined;
  private stopListener: ((reason: string) => void) | undefined;
  private lostReason: string | undefined;
  private stopReason: string | undefined;
  private readonly stopListening: () => void;
  private ended = false;

  constructor(
    private readonly broker: LocalBroker,
    readonly service: string,
    private readonly instance: string,
    record: ServiceRecord,
  ) {
    this.epoch = record.epoch;
    this.known = record;
    this.stopListening = broker.listen(service, {
      seen: (sight) => this.seen(sight),
      // Records that can't be read take nothing away (LG1).
      failed: () => {},
      stateChanged: () => {},
    });
  }

  async publish(address: Address): Promise<void> {
    this.known = await this.broker.change(this.service, ({ record }) => {
      const own = record ?? this.known;
      if (!ownSlot(own, this.instance, this.epoch)) throw fencedError(this.service, this.epoch, own);
      const next = published(own, address);
      return { record: next, value: next };
    });
  }

  async withdraw(reason: string): Promise<void> {
    const record = await this.changeOwn((found) => withdrawn(found, reason));
    if (typeof record === "object") this.known = record;
  }

  validUntilMs(): number {
    return Number.POSITIVE_INFINITY;
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
    await this.changeOwn((found) => released(found, "stopped in order", failure));
  }

  /** 'lost' where the slot is another term's. */
  private changeOwn(edit: (record: ServiceRecord) => ServiceRecord): Promise<ServiceRecord | "lost"> {
    return this.broker.change<ServiceRecord | "lost">(this.service, ({ record }) => {
      const own = record ?? this.known;
      if (!ownSlot(own, this.instance, this.epoch)) return { value: "lost" };
      const next = edit(own);
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
    if (!ownSlot(record, this.instance, this.epoch)) {
      this.lostReason ??= messageOf(fencedError(this.service, this.epoch, record));
      this.callLost();
    } else if (record.admin === "disabled" && record.slot.purpose === "serve") {
      this.stopReason ??= "an administrator has disabled it";
      this.callStop();
    } else {
      this.known = record;
    }
  }

  /** LG2 */
  private restore(): void {
    this.changeOwn((record) => record).catch(() => {
      // The next look tries again.
    });
  }

  private callLost(): void {
    const listener = this.lostListener;
    this.lostListener = undefined;
    listener?.(this.lostReason ?? "");
  }

  private callStop(): void {
    const listener = this.stopListener;
    this.stopListener = undefined;
    listener?.(this.stopReason ?? "");
  }
}
