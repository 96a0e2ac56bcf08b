// Which declarations a backend can hold to; the line that says why not.
import type { FencePolicy, ServiceSpec } from "./broker.js";

export type Reach = "host" | "cluster";

/** Undefined: fine. `host` is this one. */
export function specProblem(spec: ServiceSpec, host: string, reach: Reach): string | undefined {
  const { service, instances, storeClass, fencing, hosts } = spec;
  if (instances.max !== 1)
    return `${service}: a csnap volume has exactly one server, and ${instances.max} are declared: declare 1`;
  return reach === "host"
    ? problemOnHost(service, storeClass, fencing.policy, hosts, host)
    : problemInCluster(service, storeClass, fencing);
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
 * F8. A store that several hosts reach is taken over after a confirmed fence only. To go without one
 * (claim C3) a new term would have to keep off every block that the lost host may still write.
 */
function problemInCluster(service: string, storeClass: string, fencing: FencePolicy): string | undefined {
  const { policy, acceptStaleWrites } = fencing;
  if (acceptStaleWrites)
    return `${service}: without a fence, writes of a lost host land in what its successor has written, and this csnap can't keep them apart: declare --fence scsi-pr or command=CMD instead of --i-accept-stale-writes`;
  if (storeClass === "local")
    return policy === "none"
      ? undefined
      : `${service}: fencing by ${policy} is of use where another host may take over, and store class local says that none can: declare --store-class shared-block, or --fence none`;
  if (storeClass === "nfs4")
    return `${service}: this csnap can't tell yet whether an NFS server has taken a lost host's lock away: declare --store-class shared-block on a block device`;
  if (policy === "none")
    return `${service}: several hosts reach a store of class ${storeClass}, and without a fence a lost one may write after another took over: declare --fence scsi-pr, nvme-resv or command=CMD`;
  return undefined;
}
