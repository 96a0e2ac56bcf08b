/** A load, who takes part, and which ratios csnap shall reach (the project's own aims). */
import type { Transport } from "./contestant.js";
import type { Load } from "./fio.js";

const KIB = 1024;

/** Files of offsetsFile() over regions of 64 KiB, the largest unit of copying that is compared. */
export interface Offsets {
  readonly every: string;
  /** an eighth of them, for servers that sync each write */
  readonly some: string;
}

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
  /** Default: a unix socket. */
  readonly transport?: Transport;
  /**
   * Before each run, where the contestant knows how: everything is owed to a snapshot again; or everything has been
   * copied for one; or what is read leaves the page cache.
   */
  readonly before?: "share" | "copy" | "drop-cache";
  /**
   * The rate counts what the writes left to be done: a flush and the server's clean stop, after which nothing is staged.
   * (A flush alone may be answered as soon as a journal is durable.)
   */
  readonly sustained?: boolean;
}

/** 4 KiB requests at random. */
export const small = (rw: "randread" | "randwrite" | "randrw", depth: number, connections = 1): Load => ({
  ...{ rw, depth, connections },
  blockBytes: 4 * KIB,
  seconds: 2,
});

/** The processors of client and server where one request at a time is measured. */
export const PINS = {
  "one core": { client: "0", server: "0" },
  "two cores": { client: "0", server: "1" },
} as const;
