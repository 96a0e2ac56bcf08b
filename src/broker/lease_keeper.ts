// Keeps a grant that ends in time: a thread of its own renews it, and moves the deadline that the
// core's gate and the server see. Used by the broker where the storage is another host's.
//
// LK1 Renewal shares no event loop with data, JSON or TLS: a server whose main thread is stuck keeps
//     its grant, as it serves; one whose every thread stands still loses it.
// LK2 The deadline only moves by what a renewal confirmed (HeldLease). A renewal thread that fails
//     moves nothing: the grant ends by itself.
// LK3 end() resolves after the thread's last word to the storage, so that what follows is the last.
import { once } from "node:events";
import { Worker } from "node:worker_threads";
import type { NativeBinding } from "../native.js";
import { type BoottimeClock, boottimeMs } from "./clock.js";
import { defaultTiming, type LeaseTiming } from "./lease.js";
import type { ProcessIdentity } from "./process_identity.js";
import type { ServiceRecord } from "./record.js";
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

/** What the renewal thread starts with. */
export interface RenewalSetup {
  readonly url: string;
  readonly term: HeldTerm;
  readonly timing: LeaseTiming;
  readonly claimSentMs: number;
  /** Float64: the deadline */
  readonly deadline: SharedArrayBuffer;
  readonly gate: number | undefined;
}

export type ToRenewal =
  | { readonly kind: "end" }
  /** the record is missing: as the grant knows it */
  | { readonly kind: "restore"; readonly record: ServiceRecord };
export type FromRenewal = { readonly kind: "lost"; readonly why: string };

const endLimitMs = 2000;

/** The calls of the addon that a lease needs. */
export type NativeGates = Pick<NativeBinding, "createGate" | "extendGate" | "shutGate" | "boottimeMs">;

export class ThreadLeaseKeeper implements LeaseKeeper {
  /** @param native without it there is no gate: of use where nothing is served */
  constructor(
    private readonly url: string,
    private readonly native: NativeGates | undefined,
    private readonly timing: LeaseTiming = defaultTiming,
    private readonly clock: BoottimeClock = native ? () => native.boottimeMs() : boottimeMs,
  ) {}

  begin(): StartedLease {
    let claimSentMs = this.clock();
    return {
      terms: { grantMs: this.timing.grantMs },
      sent: () => {
        claimSentMs = this.clock();
      },
      keep: (term, lost) => new ThreadPulse(this.setup(term, claimSentMs), this.native, this.clock, lost),
    };
  }

  private setup(term: HeldTerm, claimSentMs: number): RenewalSetup {
    const { url, timing, native } = this;
    const deadline = new SharedArrayBuffer(8);
    new Float64Array(deadline)[0] = claimSentMs + timing.grantMs;
    const gate = native?.createGate();
    if (gate !== undefined) native?.extendGate(gate, claimSentMs + timing.grantMs);
    return { url, term, timing, claimSentMs, deadline, gate };
  }
}

class ThreadPulse implements LeasePulse {
  readonly gate: number | undefined;
  private readonly worker: Worker;
  private readonly exited: Promise<unknown>;
  private readonly deadline: Float64Array;
  private watchdog: NodeJS.Timeout | undefined;
  private ended = false;

  constructor(
    setup: RenewalSetup,
    private readonly native: NativeGates | undefined,
    private readonly clock: BoottimeClock,
    private readonly lost: (why: string) => void,
  ) {
    this.gate = setup.gate;
    this.deadline = new Float64Array(setup.deadline);
    this.worker = new Worker(new URL("./renewal_worker.js", import.meta.url), {
      name: "csnap-renewal",
      workerData: setup,
    });
    this.exited = once(this.worker, "exit").catch(() => {});
    this.worker.on("message", ({ why }: FromRenewal) => this.lose(why));
    this.worker.on("error", (error) => this.lose(`its renewal failed: ${error.message}`));
    this.worker.unref();
    this.watch();
  }

  validUntilMs(): number {
    return this.deadline[0] ?? Number.NEGATIVE_INFINITY;
  }

  restore(record: ServiceRecord): void {
    this.post({ kind: "restore", record });
  }

  private post(message: ToRenewal): void {
    this.worker.postMessage(message);
  }

  /** The gate has shut by then; this tells the server, which then ends. */
  private watch(): void {
    const leftMs = this.validUntilMs() - this.clock();
    if (leftMs <= 0) {
      this.lose("its grant was not renewed in time: the broker did not answer, or this host stood still");
      return;
    }
    this.watchdog = setTimeout(() => this.watch(), leftMs + 1);
    this.watchdog.unref();
  }

  private lose(why: string): void {
    if (this.ended) return;
    this.ended = true;
    this.shut();
    this.post({ kind: "end" });
    this.lost(why);
  }

  async end(): Promise<void> {
    this.ended = true;
    clearTimeout(this.watchdog);
    this.post({ kind: "end" });
    const limit = setTimeout(() => void this.worker.terminate(), endLimitMs);
    await this.exited;
    clearTimeout(limit);
    this.shut();
  }

  private shut(): void {
    clearTimeout(this.watchdog);
    if (this.gate !== undefined) this.native?.shutGate(this.gate);
  }
}
