// Keeps a grant that ends in time: a thread of its own renews it, and moves the deadline that the
// core's gate and the server see. Used by the broker where the storage is another host's.
//
// LK1 Renewal shares no event loop with data, JSON or TLS: a server whose main thread is stuck keeps
//     its grant, as it serves; one whose every thread stands still loses it.
// LK2 The deadline only moves by what a renewal confirmed (HeldLease). A renewal thread that fails
//     moves nothing: the grant ends by itself.
// LK3 end() resolves after the thread's last word to the storage, so that what follows is the last.
import type { NativeBinding } from "../native.js";
import { type BoottimeClock, boottimeMs } from "./clock.js";
import { defaultTiming, type LeaseTiming } from "./lease.js";
import type { ProcessIdentity } from "./process_identity.js";
import type { ServiceRecord } from "./record.js";
import { nodeRuntime, type Runtime, type Timer, within } from "./runtime.js";
import type { ClaimTerms } from "./transitions.js";

/** One process's hold of a slot. */
export interface HeldTerm {
  readonly service: string;
  readonly instance: string;
  readonly epoch: bigint;
  /** an agent's order is taken over by its server: then it is another's */
  readonly holder: ProcessIdentity;
  /** the number in the claim */
  readonly claimSeq: number;
}

/** Of a record that this process has just claimed. */
export function heldTerm(service: string, { epoch, slot }: ServiceRecord): HeldTerm {
  const { instance, holder, beat } = slot;
  if (!holder || !beat) throw new Error("a claim without holder or beat");
  return { service, instance, epoch, holder, claimSeq: beat.seq };
}

/** A claim under way. */
export interface StartedLease {
  readonly terms: ClaimTerms;
  /** Before each attempt to store the claim. */
  sent(): void;
  /** The claim was stored. `lost`: the record is another's, or the grant has ended. Once. */
  keep(term: HeldTerm, lost: (why: string) => void): LeasePulse;
}

export interface LeasePulse {
  readonly gate: number | undefined;
  /** CLOCK_BOOTTIME in ms */
  validUntilMs(): number;
  /** The record is missing; it was this. */
  restore(record: ServiceRecord): void;
  end(): Promise<void>;
}

export interface LeaseKeeper {
  begin(): StartedLease;
}

/** What a renewal needs to know of its grant, and whom to tell. */
export interface RenewalJob {
  readonly term: HeldTerm;
  readonly timing: LeaseTiming;
  readonly claimSentMs: number;
  readonly gate: number | undefined;
  /** The record is another's, or the renewals have failed. */
  readonly lost: (why: string) => void;
}

/** Renewals (renewal.ts) that go on beside this event loop. */
export interface RunningRenewal {
  /** as the last renewal confirmed it, the claim before the first: CLOCK_BOOTTIME in ms */
  validUntilMs(): number;
  restore(record: ServiceRecord): void;
  end(): void;
  /** Resolves after its last word to the storage; never rejects. */
  readonly ended: Promise<void>;
  /** Ends it where it stands. */
  cut(): void;
}

export type StartRenewal = (job: RenewalJob) => RunningRenewal;

const endLimitMs = 2000;

/** The calls of the addon that a lease needs. */
export type NativeGates = Pick<NativeBinding, "createGate" | "extendGate" | "shutGate" | "boottimeMs">;

export interface LeaseKeeperParts {
  readonly startRenewal: StartRenewal;
  /** without it there is no gate: of use where nothing is served */
  readonly native?: NativeGates | undefined;
  readonly timing?: LeaseTiming;
  readonly runtime?: Runtime;
  readonly clock?: BoottimeClock;
}

export class RenewingLeaseKeeper implements LeaseKeeper {
  private readonly clock: BoottimeClock;
  private readonly timing: LeaseTiming;
  private readonly runtime: Runtime;

  constructor(private readonly parts: LeaseKeeperParts) {
    const { native, timing = defaultTiming, runtime = nodeRuntime } = parts;
    this.clock = parts.clock ?? (native ? () => native.boottimeMs() : boottimeMs);
    this.timing = timing;
    this.runtime = runtime;
  }

  begin(): StartedLease {
    let claimSentMs = this.clock();
    return {
      terms: { grantMs: this.timing.grantMs },
      sent: () => {
        claimSentMs = this.clock();
      },
      keep: (term, lost) => this.keep(term, claimSentMs, lost),
    };
  }

  private keep(term: HeldTerm, claimSentMs: number, lost: (why: string) => void): LeasePulse {
    const { native, startRenewal } = this.parts;
    const { timing, clock, runtime } = this;
    const gate = native?.createGate();
    if (gate !== undefined) native?.extendGate(gate, claimSentMs + timing.grantMs);
    const start = (lose: (why: string) => void) =>
      startRenewal({ term, timing, claimSentMs, gate, lost: lose });
    return new Pulse(start, gate, { native, clock, runtime, lost });
  }
}

interface PulseParts {
  readonly native: NativeGates | undefined;
  readonly clock: BoottimeClock;
  readonly runtime: Runtime;
  readonly lost: (why: string) => void;
}

class Pulse implements LeasePulse {
  private readonly renewal: RunningRenewal;
  private watchdog: Timer | undefined;
  private ended = false;

  constructor(
    start: (lose: (why: string) => void) => RunningRenewal,
    readonly gate: number | undefined,
    private readonly parts: PulseParts,
  ) {
    this.renewal = start((why) => this.lose(why));
    this.watch();
  }

  validUntilMs(): number {
    return this.renewal.validUntilMs();
  }

  restore(record: ServiceRecord): void {
    this.renewal.restore(record);
  }

  /** The gate has shut by then; this tells the server, which then ends. */
  private watch(): void {
    const leftMs = this.validUntilMs() - this.parts.clock();
    if (leftMs <= 0) {
      this.lose("its grant was not renewed in time: the broker did not answer, or this host stood still");
      return;
    }
    this.watchdog = this.parts.runtime.afterIfAlive(leftMs + 1, () => this.watch());
  }

  private lose(why: string): void {
    if (this.ended) return;
    this.ended = true;
    this.shut();
    this.renewal.end();
    this.parts.lost(why);
  }

  async end(): Promise<void> {
    this.ended = true;
    this.watchdog?.cancel();
    this.renewal.end();
    await within(this.parts.runtime, endLimitMs, this.renewal.ended, () => this.renewal.cut());
    await this.renewal.ended;
    this.shut();
  }

  private shut(): void {
    this.watchdog?.cancel();
    if (this.gate !== undefined) this.parts.native?.shutGate(this.gate);
  }
}
