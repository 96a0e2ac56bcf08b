// The arithmetic of a grant between hosts: how long a holder may act, and when a candidate may take
// over. Pure: no clock of its own, no storage; times are ms of CLOCK_BOOTTIME of the process that
// calls. Used by the renewal thread (holder) and by whoever looks at another host's holder.
//
// Observed silence over compare-and-swap (`reference/broker.md` §6; the same idea as client-go's
// observedTime and sanlock's delta leases). Why it is right:
// LS1 A renewal replaces the record that the holder read last, by compare-and-swap, with a sequence
//     number that was never written before. So a candidate's compare-and-swap upon revision m proves
//     that no renewal was committed after m.
// LS2 The number in revision m was committed no later than the candidate first saw it, and sent before
//     that. The holder counts from the sending of the first copy: it may act until then + grantMs.
// LS3 The candidate counts from after the answer that first showed it the number, and waits
//     grantMs * (1 + rateError) + slackMs. Whatever the clocks show, if their rates differ by no more
//     than rateError the holder's time has passed when the candidate's compare-and-swap is sent.
// LS4 An attempt whose answer never came may have been committed: it extends nothing until its number
//     is seen in a record, and it is sent with another number next time.
// Not covered: I/O that the holder issued in time and a device carries out later (see fencing); a
// machine whose clock stands still while it is stopped or moved, which must be fenced as well; a
// record that is removed or restored from a backup while a holder may act (the store's epoch and the
// fence remain).
// test/unit/lease.test.ts explores every order of events within bounds.

export interface LeaseTiming {
  /** T: how long the holder may act after sending a renewal that succeeded */
  readonly grantMs: number;
  /** R: between renewals */
  readonly renewMs: number;
}

/**
 * Largest difference of two hosts' clock rates that is allowed for. Quartz errs by 0.0001, but the
 * clock is slewed: chrony by up to 83333 ppm unless told otherwise, adjtimex(2) by 500. Two hosts
 * slewed in opposite directions differ by (1 + 0.083) / (1 - 0.083) = 1.18.
 */
const rateError = 0.2;
/** For the time between a look at the clock and what is done by it: 333 ms of a slow holder's. */
const slackMs = 400;

/** A fifth: a grant survives some renewals that fail. */
export function timingOf(grantMs: number): LeaseTiming {
  return { grantMs, renewMs: grantMs / 5 };
}

export const defaultTiming: LeaseTiming = timingOf(3500);

/** W: how long a candidate waits without a sign of the holder. */
export function silenceMs(grantMs: number): number {
  return grantMs * (1 + rateError) + slackMs;
}

/** The holder's side of one term. */
export class HeldLease {
  private readonly sentAtMs = new Map<number, number>();
  private lastSeq: number;
  private validUntil = Number.NEGATIVE_INFINITY;

  /** @param claimSeq the number in the claim, about to be sent @param nowMs before it is sent */
  constructor(
    private readonly timing: LeaseTiming,
    claimSeq: number,
    nowMs: number,
  ) {
    this.lastSeq = claimSeq;
    this.sentAtMs.set(claimSeq, nowMs);
  }

  /** The number of the next attempt, which must be sent after this call (LS2, LS4). */
  sending(nowMs: number): number {
    this.lastSeq++;
    this.sentAtMs.set(this.lastSeq, nowMs);
    return this.lastSeq;
  }

  /** A record of this term with this number was stored, as an answer or a later read says. */
  confirmed(seq: number): void {
    const sent = this.sentAtMs.get(seq);
    if (sent === undefined) return;
    this.validUntil = Math.max(this.validUntil, sent + this.timing.grantMs);
    // Older ones are void: numbers are committed in the order of their revisions.
    for (const known of this.sentAtMs.keys()) if (known < seq) this.sentAtMs.delete(known);
  }

  /** The holder may act before this time. */
  get validUntilMs(): number {
    return this.validUntil;
  }
}

/** What a candidate has seen of another host's holder. One for each service. */
export class Silence {
  private sign: string | undefined;
  private sinceMs = 0;

  /**
   * @param sign epoch, instance and number, as one text
   * @param nowMs after the answer that showed it
   * @returns how long this sign has stood, in ms
   */
  saw(sign: string, nowMs: number): number {
    if (sign !== this.sign) {
      this.sign = sign;
      this.sinceMs = nowMs;
    }
    return nowMs - this.sinceMs;
  }
}
