// What can be done with one volume, whether a server has it open or not. Two implementations:
// DirectOperations (direct.ts) on an open NativeVolume, ControlClient (src/control/client.ts) through
// a server's control socket. Commands know this interface only, so that both ways answer the same.
import type { Writable } from "node:stream";
import type { OnFull } from "../native.js";
import type { CheckRecord, HoldRecord, SnapshotRecord, VolumeRecord } from "./model.js";

export interface CreateSnapshotRequest {
  readonly name: string;
  readonly pinned: boolean;
  /** 0..100; the lowest is dropped first when the store fills */
  readonly priority: number;
  readonly labels: Readonly<Record<string, string>>;
}

export interface SnapshotChanges {
  readonly pinned?: boolean;
  readonly priority?: number;
  /** an empty value removes the label */
  readonly labels?: Readonly<Record<string, string>>;
}

export interface PropertyChanges {
  readonly on_full?: OnFull;
  readonly staged_limit?: number;
  readonly cache_limit?: number;
  readonly reclaim_rate?: number;
}

export interface DeleteResult {
  readonly deleted: readonly SnapshotRecord[];
  /** bytes that come free together, in the background */
  readonly freed: number;
}

export interface CheckRequest {
  /** verify every checksum of data too */
  readonly data: boolean;
  readonly onProgress?: (done: number, total: number) => void;
}

export interface EndHoldRequest {
  /** uuid: only this attachment's; undefined: whosever it is */
  readonly attachment?: string | undefined;
  /** its host did not ask: the attachment must never come back */
  readonly force: boolean;
}

export interface VolumeOperations {
  status(): Promise<VolumeRecord>;
  /** Live snapshots, oldest first. */
  snapshots(): Promise<SnapshotRecord[]>;
  createSnapshot(request: CreateSnapshotRequest): Promise<SnapshotRecord>;
  /** By name or uuid. All must exist, or none is deleted. `dryRun`: only says what would come free. */
  deleteSnapshots(ids: readonly string[], dryRun: boolean): Promise<DeleteResult>;
  /** By name or uuid. */
  updateSnapshot(id: string, changes: SnapshotChanges): Promise<SnapshotRecord>;
  updateProperties(changes: PropertyChanges): Promise<VolumeRecord>;
  /** Ends the read-write hold when its connections have ended. Null: there is no such hold. */
  endHold(which: EndHoldRequest): Promise<HoldRecord | null>;
  check(request: CheckRequest): Promise<CheckRecord>;
  /** Metadata as JSON lines; `out` is not ended. */
  dump(out: Writable): Promise<void>;
  /** Lets go: of the connection, or of the volume. */
  close(): Promise<void>;
}
