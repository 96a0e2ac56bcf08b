/** The origin without snapshots: what serving alone costs. */
import { type Aim, PINS, small, type Workload } from "./workload.js";

const MIB = 1024 * 1024;

const others: readonly Aim[] = [{ peer: "qemu-storage-daemon" }, { peer: "nbd-server" }];

const asked = {
  randread: { 1: [1.5, 2], 4: [2, 2.5], raw: [4, 5] },
  randwrite: { 1: [1.2, 1.5], 4: [1.5, 2], raw: [3, 4] },
} as const;

const wordOf = { randread: "read", randwrite: "write" } as const;
const requests = { ours: "csnap", unit: "requests/s" } as const;
const beside: readonly Aim[] = [{ peer: "nbdkit file" }, { peer: "qemu-nbd raw" }];

function random(rw: "randread" | "randwrite"): Workload[] {
  const name = `4k random ${wordOf[rw]}`;
  const qd1 = Object.entries(PINS).map(([cores, pin]) => ({
    ...requests,
    name: `${name}, QD1, ${cores}`,
    peers: beside,
    load: { ...small(rw, 1), pin },
  }));
  const qd16 = ([1, 4] as const).map((connections) => {
    const [least, aim] = asked[rw][connections];
    const [rawLeast, rawAim] = asked[rw].raw;
    const raw: Aim =
      connections === 1 ? { peer: "qemu-nbd raw", least: rawLeast, aim: rawAim } : { peer: "qemu-nbd raw" };
    return {
      ...requests,
      name: `${name}, QD16, ${connections} connection${connections === 1 ? "" : "s"}`,
      peers: [{ peer: "nbdkit file", least, aim }, raw, ...others],
      load: small(rw, 16, connections),
    };
  });
  const tcp: Workload = {
    ...requests,
    name: `${name}, QD16, 1 connection, TCP`,
    peers: beside,
    load: small(rw, 16),
    transport: "tcp",
  };
  const qd64: Workload = { ...requests, name: `${name}, QD64`, peers: beside, load: small(rw, 64) };
  return [...qd1, ...qd16, tcp, qd64];
}

function sequential(): Workload[] {
  const rows = [
    ["read", 1.1, 1.5],
    ["write", 1.1, 1.3],
  ] as const;
  return rows.map(([rw, least, aim]) => ({
    name: `1 MiB sequential ${rw}, QD8`,
    ours: "csnap",
    peers: [{ peer: "nbdkit file", least, aim }, { peer: "qemu-nbd raw" }, ...others],
    load: { rw, blockBytes: MIB, depth: 8, connections: 1, seconds: 2 },
    unit: "MB/s",
  }));
}

function mixed(): Workload[] {
  return [
    {
      ...requests,
      name: "4k random 70 % read, QD16, 4 clients",
      peers: beside,
      load: { ...small("randrw", 16, 4), readPercent: 70 },
    },
    {
      ...requests,
      name: "4k random write, QD16, a flush after every 8",
      peers: beside,
      load: { ...small("randwrite", 16), flushEvery: 8 },
    },
    {
      ...requests,
      name: "like a database: 8k random 70 % read, QD16, a flush after every 8 writes",
      peers: beside,
      load: { ...small("randrw", 16), blockBytes: 8192, readPercent: 70, flushEvery: 8 },
    },
  ];
}

export function originWorkloads(): Workload[] {
  return [...random("randread"), ...random("randwrite"), ...sequential(), ...mixed()];
}

/** What comes back from the medium lies in other folios than what was written: after everything else. */
export function uncachedWorkload(): Workload {
  return {
    ...requests,
    name: "4k random read, QD16, not cached",
    peers: [{ peer: "nbdkit file", least: 1, aim: 1.3 }, { peer: "qemu-nbd raw" }],
    load: { ...small("randread", 16), seconds: 1 },
    before: "drop-cache",
  };
}
