/** csnap and the servers that it is compared with, each with an image of its own that was filled in the same way. */
import type { Contestant } from "./contestant.js";
import { Csnap, type CsnapOptions, CsnapSnapshot } from "./csnap.js";
import { peers } from "./peers.js";
import { scenarios } from "./scenarios.js";

/** How many snapshots a volume of the rows that compare such numbers has. */
export const SNAPSHOT_COUNTS = [1, 16, 64, 1000] as const;

export const withSnapshots = (count: number) => `csnap, ${count} snapshot${count === 1 ? "" : "s"}`;

/** By name; a workload names those that it compares. Nothing is made yet. "csnap" never has a snapshot. */
export function contestants(directory: string, bytes: number): Map<string, Contestant> {
  const csnap = (name: string, options: CsnapOptions = {}) => new Csnap(name, directory, bytes, options);
  const counted = SNAPSHOT_COUNTS.map((snapshots) => csnap(withSnapshots(snapshots), { snapshots }));
  const [single = csnap(withSnapshots(1))] = counted;
  const all: readonly Contestant[] = [
    csnap("csnap", { snapshots: 0 }),
    ...[4, 16, 64].map((chunkKib) => csnap(`csnap ${chunkKib}k`, { chunkKib })),
    csnap("csnap, mode sync", { snapshots: 0, durability: "sync" }),
    csnap("csnap 16k, mode sync", { durability: "sync" }),
    ...counted,
    ...scenarios.map(({ ours }) => csnap(ours)),
    new CsnapSnapshot("csnap, the snapshot", single),
    ...peers(directory, bytes),
  ];
  return new Map(all.map((one) => [one.name, one]));
}
