// The records that `--json` and the control API show, made from the addon's figures. One shape for
// online and offline.
//
// M1 Keys are stable and snake_case; sizes are bytes; times are ISO 8601 UTC; opaque counters that
//    fit a JSON number are numbers (checked).
import type { NativeCheckReport, NativeHold, NativeSnapshot, NativeVolumeInfo, OnFull } from "../native.js";
import { isoTime } from "./sizes.js";

const blockBytes = 4096;

export interface SnapshotRecord {
  readonly volume: string;
  readonly name: string;
  readonly uuid: string;
  readonly created: string;
  readonly size: number;
  readonly generation: number;
  readonly unique: number;
  readonly shared: number;
  readonly freed_if_deleted: number;
  /** true: the three figures above are estimates */
  readonly estimated: boolean;
  readonly priority: number;
  readonly pinned: boolean;
  readonly suspect: boolean;
  readonly use_count: number;
  readonly labels: Readonly<Record<string, string>>;
}

export type VolumeState =
  /** a server answers */
  | "serving"
  /** nobody has it open; the origin alone is current */
  | "stopped"
  /** its last server did not stop in order; the next open recovers */
  | "unclean"
  /** stopped by an error (W9) */
  | "failed"
  /** locked by a process that answers on no control socket here */
  | "in-use"
  /** store or origin can't be opened; `error` says why */
  | "unavailable";

export interface ClientRecord {
  readonly id: number;
  readonly export: string;
  readonly peer: string;
  readonly tls: boolean;
  readonly user: string | null;
  readonly read_only: boolean;
  readonly attachment: string | null;
  readonly connected: string;
  readonly requests: number;
  readonly read_bytes: number;
  readonly write_bytes: number;
  readonly in_flight: number;
}

/** The read-write hold of an attachment: while it lasts, all others may only read the origin. */
export interface HoldRecord {
  /** uuid */
  readonly attachment: string;
  readonly host: string;
  readonly since: string;
}

export interface ServerRecord {
  readonly pid: number;
  readonly version: string;
  readonly started: string;
  readonly listeners: readonly string[];
  readonly metrics: string | null;
  /** ms until its grant ends unless renewed; 0: ended; null: a kernel lock decides, not time */
  readonly grant_remaining_ms: number | null;
  /** ms from the claim of its term to the published address; null: it is starting */
  readonly start_ms: number | null;
  readonly clients: readonly ClientRecord[];
}

export interface VolumeRecord {
  readonly volume: string;
  readonly uuid: string;
  readonly state: VolumeState;
  readonly failure: string | null;
  /** what a person should know and may want to remedy, a line each */
  readonly warnings: readonly string[];
  /** how the store was found when it was opened */
  readonly found_clean: boolean;
  readonly suspect: boolean;
  readonly sync_failed: boolean;
  readonly created: string;
  readonly epoch: number;
  readonly generation: number;
  readonly durability: "flush" | "sync" | null;
  readonly durability_id: string;
  readonly chunk_size: number;
  readonly properties: VolumeProperties;
  readonly origin: { readonly path: string; readonly size: number; readonly identity: string };
  readonly store: {
    readonly path: string;
    readonly uuid: string;
    readonly size: number;
    readonly data: number;
    readonly metadata: number;
    readonly reserve: number;
    readonly free: number;
    readonly journal_size: number;
    readonly journal_used: number;
    /** in RAM, of acknowledged writes that are in the journal and not yet in the origin */
    readonly staged: number;
  };
  readonly hold: HoldRecord | null;
  readonly snapshots: { readonly live: number; readonly deleting: number; readonly exceptions: number };
  readonly recovery: {
    readonly replayed_records: number;
    readonly dropped_entries: number;
    readonly lost_entries: number;
  };
  readonly counters: Readonly<Record<CounterName, number>>;
  readonly server: ServerRecord | null;
}

export interface VolumeProperties {
  readonly on_full: OnFull;
  readonly staged_limit: number;
  readonly cache_limit: number;
  readonly reclaim_rate: number;
}

const counterNames = {
  reads: "reads",
  writes: "writes",
  flushes: "flushes",
  read_bytes: "readBytes",
  write_bytes: "writeBytes",
  copy_outs: "copyOuts",
  zero_chunks: "zeroChunks",
  commits: "commits",
  checkpoints: "checkpoints",
  parked: "parked",
  staged: "staged",
  applied: "applied",
  checksum_errors: "checksumErrors",
  chunks_freed: "chunksFreed",
  acks_refused: "gateRefusals",
} as const satisfies Record<string, keyof NativeVolumeInfo>;

export type CounterName = keyof typeof counterNames;

export interface CheckRecord {
  readonly volume: string;
  readonly clean: boolean;
  readonly problem_count: number;
  /** the first 100 */
  readonly problems: readonly string[];
  readonly index_nodes: number;
  readonly entries: number;
  readonly chunks_verified: number;
  readonly lost_entries: number;
  readonly snapshots: number;
  readonly used: number;
}

function exactNumber(value: bigint): number {
  const number = Number(value);
  if (!Number.isSafeInteger(number)) throw new RangeError(`counter ${value} exceeds 2^53`);
  return number;
}

export function snapshotRecord(volume: string, snapshot: NativeSnapshot): SnapshotRecord {
  return {
    volume,
    name: snapshot.name,
    uuid: snapshot.uuid,
    created: isoTime(snapshot.createdNs),
    size: snapshot.sizeBytes,
    generation: exactNumber(snapshot.generation),
    unique: snapshot.uniqueBytes,
    shared: snapshot.sharedBytes,
    // Deleting one snapshot alone frees exactly what no other holds.
    freed_if_deleted: snapshot.uniqueBytes,
    estimated: snapshot.estimated,
    priority: snapshot.priority,
    pinned: snapshot.pinned,
    suspect: snapshot.suspect,
    use_count: snapshot.useCount,
    labels: snapshot.labels,
  };
}

export interface RecordContext {
  readonly volume: string;
  readonly storePath: string;
  readonly originPath: string;
  /** false: opened by a command that only looks or changes something and goes */
  readonly served: boolean;
  readonly server: ServerRecord | null;
  /** absent: none */
  readonly warnings?: readonly string[];
}

export function volumeRecord(context: RecordContext, info: NativeVolumeInfo): VolumeRecord {
  const counters = {} as Record<CounterName, number>;
  for (const [name, key] of Object.entries(counterNames) as [
    CounterName,
    (typeof counterNames)[CounterName],
  ][]) {
    counters[name] = info[key];
  }
  return {
    volume: context.volume,
    uuid: info.volumeUuid,
    state: volumeState(context.served, info),
    failure: info.failed ? info.failure : null,
    warnings: context.warnings ?? [],
    found_clean: info.clean,
    suspect: info.suspect,
    sync_failed: info.syncFailed,
    created: isoTime(info.createdNs),
    epoch: exactNumber(info.epoch),
    generation: exactNumber(info.generation),
    durability: context.served ? info.durability : null,
    durability_id: info.durabilityId,
    chunk_size: info.chunkBytes,
    properties: volumeProperties(info),
    origin: { path: context.originPath, size: info.originBytes, identity: info.originIdentity },
    store: {
      path: context.storePath,
      uuid: info.storeUuid,
      size: info.storeBytes,
      data: info.blocksData * blockBytes,
      metadata: info.blocksMetadata * blockBytes,
      reserve: info.blocksReserve * blockBytes,
      free: info.blocksFree * blockBytes,
      journal_size: info.journalBytes,
      journal_used: info.journalUsedBytes,
      staged: info.stagedBytes,
    },
    hold: holdRecord(info.hold),
    snapshots: { live: info.snapshotsLive, deleting: info.snapshotsDeleting, exceptions: info.exceptions },
    recovery: {
      replayed_records: info.replayedRecords,
      dropped_entries: info.droppedEntries,
      lost_entries: info.lostEntries,
    },
    counters,
    server: context.server,
  };
}

export function holdRecord(hold: NativeHold | null): HoldRecord | null {
  return hold && { attachment: hold.attachment, host: hold.host, since: isoTime(hold.sinceNs) };
}

function volumeState(served: boolean, info: NativeVolumeInfo): VolumeState {
  if (info.failed || info.syncFailed) return "failed";
  if (served) return "serving";
  return info.clean ? "stopped" : "unclean";
}

export function volumeProperties(info: NativeVolumeInfo): VolumeProperties {
  return {
    on_full: info.onFull,
    staged_limit: info.stagedLimitBytes,
    cache_limit: info.cacheLimitBytes,
    reclaim_rate: info.reclaimRateBytes,
  };
}

export function checkRecord(volume: string, report: NativeCheckReport): CheckRecord {
  return {
    volume,
    clean: report.clean,
    problem_count: report.problemCount,
    problems: report.problems,
    index_nodes: report.indexNodes,
    entries: report.entries,
    chunks_verified: report.chunksVerified,
    lost_entries: report.lostEntries,
    snapshots: report.snapshots,
    used: report.blocksUsed * blockBytes,
  };
}
