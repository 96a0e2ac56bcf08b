/** What snapshots cost: first writes after one, rewrites of what it has, reads of it, and how many there are. */
import { SNAPSHOT_COUNTS, withSnapshots } from "./contestants.js";
import { type Offsets, PINS, small, type Workload } from "./workload.js";

const requests = { unit: "requests/s" } as const;

/** 4 KiB into each region of 64 KiB once, right after a snapshot. */
function firstWrites({ every: offsets }: Offsets): Workload[] {
  const all: Workload[] = [];
  const aims = {
    burst: { 1: [20, 40], 16: [12, 25], 64: [15, 30] },
    sustained: { 1: [10, 25], 16: [8, 15], 64: [10, 20] },
  } as const;
  // One at a time is a matter of where client and server run, so that is fixed, both ways.
  const ways = [
    ...Object.entries(PINS).map(([cores, pin]) => ({ depth: 1, way: `QD1, ${cores}`, pin }) as const),
    { depth: 16, way: "QD16" } as const,
    { depth: 64, way: "QD64" } as const,
  ];
  for (const { depth, way, ...pin } of ways)
    for (const sustained of [false, true]) {
      const [least, aim] = (sustained ? aims.sustained : aims.burst)[depth];
      all.push({
        ...requests,
        name: `first write after a snapshot, 16k chunks, ${way}${sustained ? ", sustained" : ""}`,
        ours: "csnap 16k",
        peers: [
          { peer: "qcow2 16k", least, aim },
          { peer: "qcow2 64k", least, aim },
          { peer: "nbdkit cow 16k", least: 1.5, aim: 3 },
        ],
        load: { ...small("randwrite", depth), ...pin, offsets },
        before: "share",
        sustained,
      });
    }
  for (const kib of [4, 64])
    all.push({
      ...requests,
      name: `first write after a snapshot, ${kib}k chunks, QD16`,
      ours: `csnap ${kib}k`,
      peers: [{ peer: `nbdkit cow ${kib}k`, least: 1.5, aim: 3 }],
      load: { ...small("randwrite", 16), offsets },
      before: "share",
    });
  return all;
}

function copied(): Workload[] {
  return [
    {
      ...requests,
      name: "rewrite of copied chunks, 4k random, QD16",
      ours: withSnapshots(1),
      peers: [{ peer: "csnap", least: 0.95, aim: 1 }],
      load: small("randwrite", 16),
      before: "copy",
    },
    {
      ...requests,
      name: "4k random read of a snapshot, QD16, verified chunks",
      ours: "csnap, the snapshot",
      peers: [{ peer: withSnapshots(1), least: 0.8, aim: 0.95 }],
      load: small("randread", 16),
      before: "copy",
    },
  ];
}

/** The most snapshots through each smaller number; what is asked is of the most through one. */
function counted({ every: offsets }: Offsets): Workload[] {
  const [one, ...more] = SNAPSHOT_COUNTS;
  const most = withSnapshots(more.at(-1) ?? one);
  const who = {
    ...requests,
    ours: most,
    peers: [
      { peer: withSnapshots(one), least: 0.95, aim: 1 },
      ...more.slice(0, -1).map((count) => ({ peer: withSnapshots(count) })),
    ],
  };
  return [
    {
      ...who,
      name: `first write with ${SNAPSHOT_COUNTS.join(", ")} snapshots, QD16`,
      load: { ...small("randwrite", 16), offsets },
      before: "share",
    },
    {
      ...who,
      name: `rewrite with ${SNAPSHOT_COUNTS.join(", ")} snapshots, 4k random, QD16`,
      load: small("randwrite", 16),
      before: "copy",
    },
  ];
}

export function snapshotWorkloads(offsets: Offsets): Workload[] {
  return [...firstWrites(offsets), ...copied(), ...counted(offsets)];
}
