// Opens a broker by its URL. Called by `csnap serve`, the agent and commands.
import { join } from "node:path";
import { usageError } from "../volume/errors.js";
import type { Directories } from "../volume/paths.js";
import type { Broker } from "./broker.js";
import { EtcdRecords } from "./etcd_records.js";
import { parseEtcdUrl } from "./etcd_url.js";
import { FileRecords } from "./file_records.js";
import { type NativeGates, RenewingLeaseKeeper } from "./lease_keeper.js";
import { SilenceLiveness } from "./liveness.js";
import { ownIdentity } from "./process_identity.js";
import { RecordBroker } from "./record_broker.js";
import { RenewalThreads } from "./renewal_thread.js";

export const defaultBrokerUrl = "local:";

/** For who serves. */
export interface ServingOptions {
  /** of the core's gates; without it a grant has no gate */
  readonly native?: NativeGates;
  /** The claim comes later, and shall then meet nothing that is still to be loaded. */
  readonly warm?: boolean;
}

/** `local:` or `etcd://…` (etcd_url.ts). USAGE for anything else. Waits for nothing. */
export function openBroker(
  url: string,
  { stateDir }: Pick<Directories, "stateDir">,
  { native, warm = false }: ServingOptions = {},
): Broker {
  if (url === defaultBrokerUrl)
    return new RecordBroker({ store: new FileRecords(join(stateDir, "broker")), reach: "host" });
  const scheme = /^([a-z]+):/.exec(url)?.[1];
  if (scheme === "etcd") {
    const self = ownIdentity();
    const threads = new RenewalThreads(url);
    if (warm) threads.warm();
    return new RecordBroker({
      store: EtcdRecords.open(url),
      reach: "cluster",
      self,
      liveness: new SilenceLiveness(self),
      leases: new RenewingLeaseKeeper({
        startRenewal: (job) => threads.start(job),
        native,
        timing: parseEtcdUrl(url).timing,
      }),
    });
  }
  const what = scheme === "local" ? "has nothing behind the colon" : "is not known to this csnap";
  throw usageError(
    `broker URL '${url}' ${what}: it knows local: (this host's state directory) and etcd://HOST:PORT,…`,
  );
}
