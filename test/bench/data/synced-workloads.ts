/** Mode `sync`: each acknowledged write is durable. The peers are told to do the same. */
import { type Offsets, small, type Workload } from "./workload.js";

export function syncedWorkloads({ some }: Offsets): Workload[] {
  const writes = [1, 16, 64].map(
    (depth): Workload => ({
      name: `mode sync: 4k random write, QD${depth}`,
      ours: "csnap, mode sync",
      peers: [{ peer: "nbdkit file, synced" }, { peer: "qemu-nbd raw, synced" }],
      load: small("randwrite", depth),
      unit: "requests/s",
    }),
  );
  const firstWrite: Workload = {
    name: "mode sync: first write after a snapshot, 16k chunks, QD16",
    ours: "csnap 16k, mode sync",
    peers: [{ peer: "qcow2 16k, synced" }],
    load: { ...small("randwrite", 16), offsets: some },
    unit: "requests/s",
    before: "share",
  };
  return [...writes, firstWrite];
}
