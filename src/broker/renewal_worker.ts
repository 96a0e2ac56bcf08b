// The thread that renews one grant (renewal_thread.ts): the renewals (renewal.ts) with what is real
// around them. Its loop does nothing else.
import { parentPort, workerData } from "node:worker_threads";
import { boottimeMs } from "./clock.js";
import { EtcdRecords } from "./etcd_records.js";
import type { NativeGates } from "./lease_keeper.js";
import { Renewal } from "./renewal.js";
import type { FromRenewal, RenewalSetup, ToRenewal } from "./renewal_thread.js";
import { nodeRuntime } from "./runtime.js";

const setup = workerData as RenewalSetup;
const { url, gate, term, timing, claimSentMs } = setup;
const records = EtcdRecords.open(url);
const deadline = new Float64Array(setup.deadline);
let native: NativeGates | undefined;

const renewal = new Renewal({
  term,
  timing,
  claimSentMs,
  records,
  runtime: nodeRuntime,
  clock: () => native?.boottimeMs() ?? boottimeMs(),
  extend: (validUntilMs) => {
    deadline[0] = validUntilMs;
    if (gate !== undefined) native?.extendGate(gate, validUntilMs);
  },
  lost: (why) => parentPort?.postMessage({ kind: "lost", why } satisfies FromRenewal),
});

parentPort?.on("message", (message: ToRenewal) => {
  if (message.kind === "end") renewal.end();
  else renewal.restore(message.record);
});

if (gate !== undefined) native = (await import("../native.js")).native;
await renewal.run();
records.close();
parentPort?.close();
