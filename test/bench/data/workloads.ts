/** All workloads, in the order in which they are measured. */
import { originWorkloads, uncachedWorkload } from "./origin-workloads.js";
import { snapshotWorkloads } from "./snapshot-workloads.js";
import { syncedWorkloads } from "./synced-workloads.js";
import type { Offsets, Workload } from "./workload.js";

export function workloads(offsets: Offsets): Workload[] {
  return [
    ...originWorkloads(),
    ...snapshotWorkloads(offsets),
    ...syncedWorkloads(offsets),
    uncachedWorkload(),
  ];
}
