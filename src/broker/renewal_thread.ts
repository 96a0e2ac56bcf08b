// Starts the thread that renews a grant, and talks to it. Used by the lease keeper where the storage
// is etcd.
//
// RN1 The deadline is shared memory: the thread moves it, whatever the main thread is doing.
// RN2 A standby starts the thread before there is a grant: where processors are short, to load the
//     thread's modules may take longer than a new grant lasts.
import { once } from "node:events";
import { Worker } from "node:worker_threads";
import type { LeaseTiming } from "./lease.js";
import type { HeldTerm, RenewalJob, RunningRenewal } from "./lease_keeper.js";
import type { ServiceRecord } from "./record.js";

/** What a thread begins to renew with. */
export interface RenewalSetup {
  readonly term: HeldTerm;
  readonly timing: LeaseTiming;
  readonly claimSentMs: number;
  /** Float64: the deadline */
  readonly deadline: SharedArrayBuffer;
  readonly gate: number | undefined;
}

export type ToRenewal =
  | { readonly kind: "begin"; readonly setup: RenewalSetup }
  | { readonly kind: "end" }
  /** the record is missing: as the grant knows it */
  | { readonly kind: "restore"; readonly record: ServiceRecord };
export type FromRenewal = { readonly kind: "lost"; readonly why: string };

/** The renewals of one cluster's grants, each on a thread of its own. */
export class RenewalThreads {
  /** RN2 */
  private spare: Worker | undefined;

  constructor(private readonly url: string) {}

  /** RN2. It does not keep the process alive. */
  warm(): void {
    this.spare ??= this.startThread();
  }

  start({ term, timing, claimSentMs, gate, lost }: RenewalJob): RunningRenewal {
    const memory = new SharedArrayBuffer(8);
    const deadline = new Float64Array(memory);
    deadline[0] = claimSentMs + timing.grantMs;
    const worker = this.spare ?? this.startThread();
    this.spare = undefined;
    const ended = once(worker, "exit").then(
      () => {},
      () => {},
    );
    worker.on("message", ({ why }: FromRenewal) => lost(why));
    worker.on("error", (error) => lost(`its renewal failed: ${error.message}`));
    const post = (message: ToRenewal) => worker.postMessage(message);
    post({ kind: "begin", setup: { term, timing, claimSentMs, deadline: memory, gate } });
    return {
      validUntilMs: () => deadline[0] ?? Number.NEGATIVE_INFINITY,
      restore: (record) => post({ kind: "restore", record }),
      end: () => post({ kind: "end" }),
      ended,
      cut: () => void worker.terminate(),
    };
  }

  private startThread(): Worker {
    const worker = new Worker(new URL("./renewal_worker.js", import.meta.url), {
      name: "csnap-renewal",
      workerData: this.url,
    });
    // One that fails before it has a job is replaced when it gets one.
    worker.on("error", () => {
      if (this.spare === worker) this.spare = undefined;
    });
    worker.unref();
    return worker;
  }
}
