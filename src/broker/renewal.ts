// The renewals of one grant, until it ends. Run by the renewal thread (renewal_worker.ts).
//
// RW1 One attempt at a time, each with a new number; the deadline counts from its sending (LS2). An
//     attempt that failed without an answer is followed by a read, which may show its number (LS4).
// RW2 A record of another term, or an administrator's reset, ends the grant at once.
// RW3 A record that vanished is written again as the grant knows it, with a new number, if none has
//     come since (RG2).
// RW4 The claim itself counts as the first renewal: while the server opens its store and publishes,
//     the record is left to it.
import { messageOf } from "../volume/errors.js";
import type { BoottimeClock } from "./clock.js";
import { HeldLease, type LeaseTiming } from "./lease.js";
import type { HeldTerm } from "./lease_keeper.js";
import { sameProcess } from "./process_identity.js";
import type { ServiceRecord, Versioned } from "./record.js";
import type { RecordStore } from "./records.js";
import type { Runtime, Timer } from "./runtime.js";
import { fencedError, ownSlot, renewed } from "./transitions.js";

export interface RenewalParts {
  readonly term: HeldTerm;
  readonly timing: LeaseTiming;
  /** CLOCK_BOOTTIME in ms, before the claim was sent */
  readonly claimSentMs: number;
  readonly records: Pick<RecordStore, "read" | "swap">;
  readonly runtime: Pick<Runtime, "after" | "random">;
  readonly clock: BoottimeClock;
  /** The grant lasts until then: CLOCK_BOOTTIME in ms. */
  readonly extend: (validUntilMs: number) => void;
  /** Once. */
  readonly lost: (why: string) => void;
}

export class Renewal {
  private readonly lease: HeldLease;
  /** what the grant knew when it missed the record */
  private remembered: ServiceRecord | undefined;
  private isEnding = false;
  private wake: (() => void) | undefined;

  constructor(private readonly parts: RenewalParts) {
    const { term, timing, claimSentMs } = parts;
    this.lease = new HeldLease(timing, term.claimSeq, claimSentMs);
    this.lease.confirmed(term.claimSeq);
  }

  /** Resolves after its last word to the storage. */
  async run(): Promise<void> {
    const { records, clock, term } = this.parts;
    let base: Versioned | undefined;
    await this.pauseFrom(this.parts.claimSentMs);
    while (!this.isEnding) {
      const started = clock();
      try {
        base = await this.renew(base ?? (await records.read(term.service)));
        // Somebody else changed the record: at once again, upon what it is now.
        if (base === undefined) continue;
      } catch {
        // The storage does not answer: what was sent may have been stored.
        base = undefined;
      }
      await this.pauseFrom(started);
    }
  }

  /** Until the next renewal is due. */
  private pauseFrom(renewedMs: number): Promise<void> {
    const { clock, runtime, timing } = this.parts;
    return this.pause(renewedMs + timing.renewMs * (0.9 + 0.2 * runtime.random()) - clock());
  }

  end(): void {
    this.isEnding = true;
    this.wake?.();
  }

  /** The record is missing; it was this. */
  restore(record: ServiceRecord): void {
    this.remembered = record;
    this.wake?.();
  }

  /** What is stored now, or undefined: it is to be read again. */
  private async renew(base: Versioned | undefined): Promise<Versioned | undefined> {
    const { records, clock, timing, term } = this.parts;
    const record = base?.record ?? this.remembered;
    if (!record) {
      await this.pause(timing.renewMs / 2);
      return undefined;
    }
    if (!this.isOwn(record)) {
      this.isEnding = true;
      this.parts.lost(messageOf(fencedError(term.service, term.epoch, record)));
      return undefined;
    }
    if (base) this.confirm(base);
    const seq = this.lease.sending(clock());
    const stored = await records.swap(term.service, base, renewed(record, seq), true);
    if (stored) this.confirm(stored);
    return stored;
  }

  private isOwn(record: ServiceRecord): boolean {
    const { instance, epoch, holder } = this.parts.term;
    const { slot } = record;
    return ownSlot(record, instance, epoch) && slot.holder !== null && sameProcess(slot.holder, holder);
  }

  private confirm({ record }: Versioned): void {
    this.remembered = undefined;
    if (record.slot.beat) this.lease.confirmed(record.slot.beat.seq);
    this.parts.extend(this.lease.validUntilMs);
  }

  private pause(ms: number): Promise<void> {
    if (this.isEnding) return Promise.resolve();
    return new Promise((resolve) => {
      let timer: Timer | undefined;
      const done = () => {
        timer?.cancel();
        this.wake = undefined;
        resolve();
      };
      timer = this.parts.runtime.after(Math.max(0, ms), done);
      this.wake = done;
    });
  }
}
