/** What is measured, who takes part, and which ratios csnap shall reach (the project's own aims). */
import type { Load } from "./fio.js";

const KIB = 1024;
const MIB = 1024 * KIB;

/** csnap's rate through that of `peer`. */
export interface Aim {
  readonly peer: string;
  readonly least?: number;
  readonly aim?: number;
}

export interface Workload {
  readonly name: string;
  /** Who is judged. */
  readonly ours: string;
  readonly peers: readonly Aim[];
  readonly load: Load;
  readonly unit: "requests/s" | "MB/s";
  /** Before each run everything is owed to a snapshot again, or leaves the page cache. */
  readonly before?: "share" | "drop-cache";
  /** The rate counts the flush after the last write too. */
  readonly toTheFlush?: boolean;
}

const pins = {
  "one core": { client: "0", server: "0" },
  "two cores": { client: "0", server: "1" },
} as const;

const small = (rw: "randread" | "randwrite", depth: number, connections = 1): Load => ({
  ...{ rw, depth, connections },
  blockBytes: 4 * KIB,
  seconds: 2,
});

/** The origin without snapshots: what serving alone costs. */
function origin(): Workload[] {
  const others: Aim[] = [{ peer: "qemu-storage-daemon" }, { peer: "nbd-server" }];
  const aims = {
    randread: { 1: [1.5, 2], 4: [2, 2.5], raw: [4, 5] },
    randwrite: { 1: [1.2, 1.5], 4: [1.5, 2], raw: [3, 4] },
  } as const;
  const all: Workload[] = [];
  for (const rw of ["randread", "randwrite"] as const) {
    const word = rw === "randread" ? "read" : "write";
    for (const [cores, pin] of Object.entries(pins))
      all.push({
        name: `4k random ${word}, QD1, ${cores}`,
        ours: "csnap",
        peers: [{ peer: "nbdkit file" }, { peer: "qemu-nbd raw" }],
        load: { ...small(rw, 1), pin },
        unit: "requests/s",
      });
    for (const connections of [1, 4] as const) {
      const [least, aim] = aims[rw][connections];
      const [rawLeast, rawAim] = aims[rw].raw;
      const raw: Aim =
        connections === 1 ? { peer: "qemu-nbd raw", least: rawLeast, aim: rawAim } : { peer: "qemu-nbd raw" };
      all.push({
        name: `4k random ${word}, QD16, ${connections} connection${connections === 1 ? "" : "s"}`,
        ours: "csnap",
        peers: [{ peer: "nbdkit file", least, aim }, raw, ...others],
        load: small(rw, 16, connections),
        unit: "requests/s",
      });
    }
    all.push({
      name: `4k random ${word}, QD64`,
      ours: "csnap",
      peers: [{ peer: "nbdkit file" }, { peer: "qemu-nbd raw" }],
      load: small(rw, 64),
      unit: "requests/s",
    });
  }
  for (const [rw, least, aim] of [
    ["read", 1.1, 1.5],
    ["write", 1.1, 1.3],
  ] as const)
    all.push({
      name: `1 MiB sequential ${rw}, QD8`,
      ours: "csnap",
      peers: [{ peer: "nbdkit file", least, aim }, { peer: "qemu-nbd raw" }, ...others],
      load: { rw, blockBytes: MIB, depth: 8, connections: 1, seconds: 2 },
      unit: "MB/s",
    });
  all.push({
    name: "4k random write, QD16, a flush after every 8",
    ours: "csnap",
    peers: [{ peer: "nbdkit file" }, { peer: "qemu-nbd raw" }],
    load: { ...small("randwrite", 16), flushEvery: 8 },
    unit: "requests/s",
  });
  return all;
}

/** 4 KiB into each region of 64 KiB once, right after a snapshot. */
function firstWrites(offsets: string): Workload[] {
  const all: Workload[] = [];
  const aims = {
    burst: { 1: [20, 40], 16: [12, 25], 64: [15, 30] },
    toTheFlush: { 1: [10, 25], 16: [8, 15], 64: [10, 20] },
  } as const;
  for (const depth of [1, 16, 64] as const)
    for (const toTheFlush of [false, true]) {
      const [least, aim] = (toTheFlush ? aims.toTheFlush : aims.burst)[depth];
      all.push({
        name: `first write after a snapshot, 16k chunks, QD${depth}${toTheFlush ? ", to the flush" : ""}`,
        ours: "csnap",
        peers: [
          { peer: "qcow2 16k", least, aim },
          { peer: "qcow2 64k", least, aim },
          { peer: "nbdkit cow 16k", least: 1.5, aim: 3 },
        ],
        load: { ...small("randwrite", depth), offsets },
        unit: "requests/s",
        before: "share",
        toTheFlush,
      });
    }
  for (const kib of [4, 64])
    all.push({
      name: `first write after a snapshot, ${kib}k chunks, QD16`,
      ours: `csnap ${kib}k`,
      peers: [{ peer: `nbdkit cow ${kib}k`, least: 1.5, aim: 3 }],
      load: { ...small("randwrite", 16), offsets },
      unit: "requests/s",
      before: "share",
    });
  return all;
}

/** Last: what comes back from the medium lies in other folios than what was written. */
function uncached(): Workload {
  return {
    name: "4k random read, QD16, not cached",
    ours: "csnap",
    peers: [{ peer: "nbdkit file", least: 1, aim: 1.3 }, { peer: "qemu-nbd raw" }],
    load: { ...small("randread", 16), seconds: 1 },
    unit: "requests/s",
    before: "drop-cache",
  };
}

/** @param offsets a file of offsetsFile() over regions of 64 KiB */
export function workloads(offsets: string): Workload[] {
  return [...origin(), ...firstWrites(offsets), uncached()];
}
