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
import { startRenewalThread } from "./renewal_thread.js";

export const defaultBrokerUrl = "local:";

/**
 * `local:` or `etcd://…` (etcd_url.ts). USAGE for anything else. Waits for nothing.
 * @param native of the core's gates, for who serves; without it a grant has no gate
 */
export function openBroker(
  url: string,
  { stateDir }: Pick<Directories, "stateDir">,
  native?: NativeGates,
): Broker {
  if (url === defaultBrokerUrl)
    return new RecordBroker({ store: new FileRecords(join(stateDir, "broker")), reach: "host" });
  const scheme = /^([a-z]+):/.exec(url)?.[1];
  if (scheme === "etcd") {
    const self = ownIdentity();
    return new RecordBroker({
      store: EtcdRecords.open(url),
      reach: "cluster",
      self,
      liveness: new SilenceLiveness(self),
      leases: new RenewingLeaseKeeper({
        startRenewal: (job) => startRenewalThread(url, job),
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
