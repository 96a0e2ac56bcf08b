// Which declarations a backend can hold to; the line that says why not.
import type { ServiceSpec } from "./broker.js";

export type Reach = "host" | "cluster";

/** Undefined: fine. `host` is this one. */
export function specProblem(spec: ServiceSpec, host: string, reach: Reach): string | undefined {
  const { service, instances, storeClass, fencing, hosts } = spec;
  if (instances.max !== 1)
    return `${service}: a csnap volume has exactly one server, and ${instances.max} are declared: declare 1`;
  return reach === "host"
    ? problemOnHost(service, storeClass, fencing.policy, hosts, host)
    : problemInCluster(service, storeClass, fencing.policy);
}

function problemOnHost(
  service: string,
  storeClass: string,
  policy: string,
  hosts: readonly string[],
  host: string,
): string | undefined {
  if (storeClass !== "local")
    return `${service}: store class ${storeClass} needs a broker that other hosts see, and local: knows this host only: declare --store-class local`;
  if (policy !== "none")
    return `${service}: fencing by ${policy} is of use between hosts only, and local: knows this host only: declare --fence none`;
  if (hosts.length > 0 && !hosts.includes(host))
    return `${service}: host ${host} is not among those declared (${hosts.join(", ")}), and local: knows this host only: add it with --host ${host}`;
  return undefined;
}

/**
 * Takeover by another host needs direct I/O and a fence that this csnap confirms (F8): until it has
 * both, one host serves, and the others learn from the broker where.
 */
function problemInCluster(service: string, storeClass: string, policy: string): string | undefined {
  if (storeClass !== "local")
    return `${service}: store class ${storeClass} would let another host take over, and this csnap can't yet keep a lost host's late writes off the store: declare --store-class local`;
  if (policy !== "none")
    return `${service}: fencing by ${policy} is of use where another host may take over, which this csnap does not do yet: declare --fence none`;
  return undefined;
}
