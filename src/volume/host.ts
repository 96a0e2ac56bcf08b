// This host's name, as brokers and attachments know it.
import { hostname } from "node:os";

/** $CSNAP_HOST where the system's name is not unique among the hosts that share a broker. */
export function hostName(): string {
  return process.env.CSNAP_HOST || hostname();
}
