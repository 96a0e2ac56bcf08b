// The thread that renews one grant (lease_keeper.ts). Its loop does nothing else.
//
// RW1 One attempt at a time, each with a new number; the deadline counts from its sending (LS2). An
//     attempt that failed without an answer is followed by a read, which may show its number (LS4).
// RW2 A record of another term, or an administrator's reset, ends the grant at once.
// RW3 A record that vanished is written again as the grant knows it, with a new number, if none has
//     come since (RG2).
import { parentPort, workerData } from "node:worker_threads";
import { messageOf } from "../volume/errors.js";
import { boottimeMs } from "./clock.js";
import { EtcdRecords } from "./etcd_records.js";
import { HeldLease } from "./lease.js";
import type { FromRenewal, NativeGates, RenewalSetup, ToRenewal } from "./lease_keeper.js";
import { sameProcess } from "./process_identity.js";
import type { ServiceRecord, Versioned } from "./record.js";
import { fencedError, ownSlot, renewed } from "./transitions.js";

const setup = workerData as RenewalSetup;
const { service, instance, epoch, holder, claimSeq } = setup.term;
const { renewMs } = setup.timing;
const records = EtcdRecords.open(setup.url);
const lease = new HeldLease(setup.timing, claimSeq, setup.claimSentMs);
const deadline = new Float64Array(setup.deadline);
let native: NativeGates | undefined;
const clock = () => native?.boottimeMs() ?? boottimeMs();
/** what the grant knew when it missed the record */
let remembered: ServiceRecord | undefined;
let isEnding = false;
let wake: (() => void) | undefined;

lease.confirmed(claimSeq);
parentPort?.on("message", (message: ToRenewal) => {
  if (message.kind === "end") isEnding = true;
  else remembered = message.record;
  wake?.();
});

if (setup.gate !== undefined) native = (await import("../native.js")).native;
await renewUntilEnd();
records.close();
parentPort?.close();

async function renewUntilEnd(): Promise<void> {
  let base: Versioned | undefined;
  while (!isEnding) {
    const started = clock();
    try {
      base = await renew(base ?? (await records.read(service)));
      // Somebody else changed the record: at once again, upon what it is now.
      if (base === undefined) continue;
    } catch {
      // The storage does not answer: what was sent may have been stored.
      base = undefined;
    }
    await pause(started + renewMs * (0.9 + 0.2 * Math.random()) - clock());
  }
}

/** What is stored now, or undefined: it is to be read again. */
async function renew(base: Versioned | undefined): Promise<Versioned | undefined> {
  const record = base?.record ?? remembered;
  if (!record) {
    await pause(renewMs / 2);
    return undefined;
  }
  if (!isOwn(record)) {
    lose(messageOf(fencedError(service, epoch, record)));
    return undefined;
  }
  if (base) confirm(base);
  const seq = lease.sending(clock());
  const stored = await records.swap(service, base, renewed(record, seq), true);
  if (stored) confirm(stored);
  return stored;
}

function isOwn(record: ServiceRecord): boolean {
  const { slot } = record;
  return ownSlot(record, instance, epoch) && slot.holder !== null && sameProcess(slot.holder, holder);
}

function confirm({ record }: Versioned): void {
  remembered = undefined;
  if (record.slot.beat) lease.confirmed(record.slot.beat.seq);
  deadline[0] = lease.validUntilMs;
  if (setup.gate !== undefined) native?.extendGate(setup.gate, lease.validUntilMs);
}

function lose(why: string): void {
  isEnding = true;
  parentPort?.postMessage({ kind: "lost", why } satisfies FromRenewal);
}

function pause(ms: number): Promise<void> {
  if (isEnding) return Promise.resolve();
  return new Promise((resolve) => {
    const timer = setTimeout(done, Math.max(0, ms));
    function done(): void {
      clearTimeout(timer);
      wake = undefined;
      resolve();
    }
    wake = done;
  });
}
