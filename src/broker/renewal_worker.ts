// The thread that renews one grant (renewal_thread.ts): the renewals (renewal.ts) with what is real
// around them. Its loop does nothing else.
import { parentPort, workerData } from "node:worker_threads";
import { native } from "../native.js";
import { EtcdRecords } from "./etcd_records.js";
import { Renewal } from "./renewal.js";
import type { FromRenewal, RenewalSetup, ToRenewal } from "./renewal_thread.js";
import { nodeRuntime } from "./runtime.js";

const records = EtcdRecords.open(workerData as string);
let renewal: Renewal | undefined;

function begin({ term, timing, claimSentMs, gate, deadline: memory }: RenewalSetup): Renewal {
  const deadline = new Float64Array(memory);
  return new Renewal({
    term,
    timing,
    claimSentMs,
    records,
    runtime: nodeRuntime,
    clock: () => native.boottimeMs(),
    extend: (validUntilMs) => {
      deadline[0] = validUntilMs;
      if (gate !== undefined) native.extendGate(gate, validUntilMs);
    },
    lost: (why) => parentPort?.postMessage({ kind: "lost", why } satisfies FromRenewal),
  });
}

async function run(renewal: Renewal): Promise<void> {
  await renewal.run();
  records.close();
  parentPort?.close();
}

parentPort?.on("message", (message: ToRenewal) => {
  if (message.kind === "begin") {
    renewal = begin(message.setup);
    // A rejection is the worker's error, which the other side takes for the end of the grant.
    void run(renewal);
  } else if (message.kind === "end") renewal?.end();
  else renewal?.restore(message.record);
});
