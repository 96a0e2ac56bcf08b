// Starts the thread that renews a grant, and talks to it. Used by the lease keeper where the storage
// is etcd.
//
// RN1 The deadline is shared memory: the thread moves it, whatever the main thread is doing.
import { once } from "node:events";
import { Worker } from "node:worker_threads";
import type { LeaseTiming } from "./lease.js";
import type { HeldTerm, RenewalJob, RunningRenewal } from "./lease_keeper.js";
import type { ServiceRecord } from "./record.js";

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

/** @param url of the cluster */
export function startRenewalThread(
  url: string,
  { term, timing, claimSentMs, gate, lost }: RenewalJob,
): RunningRenewal {
  const memory = new SharedArrayBuffer(8);
  const deadline = new Float64Array(memory);
  deadline[0] = claimSentMs + timing.grantMs;
  const setup: RenewalSetup = { url, term, timing, claimSentMs, deadline: memory, gate };
  const worker = new Worker(new URL("./renewal_worker.js", import.meta.url), {
    name: "csnap-renewal",
    workerData: setup,
  });
  const ended = once(worker, "exit").then(
    () => {},
    () => {},
  );
  worker.on("message", ({ why }: FromRenewal) => lost(why));
  worker.on("error", (error) => lost(`its renewal failed: ${error.message}`));
  worker.unref();
  const post = (message: ToRenewal) => worker.postMessage(message);
  return {
    validUntilMs: () => deadline[0] ?? Number.NEGATIVE_INFINITY,
    restore: (record) => post({ kind: "restore", record }),
    end: () => post({ kind: "end" }),
    ended,
    cut: () => void worker.terminate(),
  };
}
