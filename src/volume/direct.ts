// The operations on a volume that this process has open: the server behind its control socket, and
// a command while no server runs.
//
// D1 A snapshot is found by name among the live ones, then by uuid; deleted ones can't be reached.
// D2 Deleting several starts only when all of them were found.
import { closeSync } from "node:fs";
import { Socket } from "node:net";
import type { Writable } from "node:stream";
import { finished } from "node:stream/promises";
import type { NativeBinding, NativeHold, NativeSnapshot, NativeVolume } from "../native.js";
import { CsnapError } from "./errors.js";
import type { ServerRecord, VolumeRecord } from "./model.js";
import {
  type CheckRecord,
  checkRecord,
  type HoldRecord,
  holdRecord,
  type SnapshotRecord,
  snapshotRecord,
  volumeRecord,
} from "./model.js";
import type {
  CheckRequest,
  CreateSnapshotRequest,
  DeleteResult,
  EndHoldRequest,
  PropertyChanges,
  SnapshotChanges,
  VolumeOperations,
} from "./operations.js";

export interface DirectContext {
  readonly volume: string;
  readonly originPath: string;
  readonly storePath: string;
  /** What a server adds to the status; absent for a command that has the volume open itself. */
  readonly server?: () => ServerRecord;
  /** Called and awaited after snapshots came or went, before the caller hears of it. */
  readonly snapshotsChanged?: () => Promise<void>;
  /** The hold as the server knows it; the core's own figure may be a moment old. */
  readonly hold?: () => NativeHold | null;
  /** What a person should know of how the server runs, a line each. */
  readonly warnings?: () => readonly string[];
  /** How a server ends a hold: it has connections to close first. See VolumeOperations.endHold. */
  readonly endHold?: (which: EndHoldRequest) => Promise<NativeHold | null>;
}

export class DirectOperations implements VolumeOperations {
  private checking = false;

  constructor(
    private readonly binding: Pick<NativeBinding, "socketPair">,
    private readonly native: NativeVolume,
    private readonly context: DirectContext,
  ) {}

  async status(): Promise<VolumeRecord> {
    const { volume, originPath, storePath, server } = this.context;
    const context = {
      volume,
      originPath,
      storePath,
      served: server !== undefined,
      server: server?.() ?? null,
      warnings: this.context.warnings?.() ?? [],
    };
    const info = this.native.info();
    const { hold = () => info.hold } = this.context;
    return volumeRecord(context, { ...info, hold: hold() });
  }

  async snapshots(): Promise<SnapshotRecord[]> {
    return (await this.live()).map((snapshot) => snapshotRecord(this.context.volume, snapshot));
  }

  async createSnapshot(request: CreateSnapshotRequest): Promise<SnapshotRecord> {
    const { name, pinned, priority, labels } = request;
    // The core refuses a taken name itself; asking first gives the line that names the volume.
    if ((await this.live()).some((snapshot) => snapshot.name === name)) {
      throw new CsnapError(
        "ALREADY_EXISTS",
        `${this.context.volume}@${name} exists already: choose another name, or delete it first`,
      );
    }
    const made = await this.native.createSnapshot({ name, pinned, priority, labels });
    await this.context.snapshotsChanged?.();
    return snapshotRecord(this.context.volume, made);
  }

  async deleteSnapshots(ids: readonly string[], dryRun: boolean): Promise<DeleteResult> {
    const live = await this.live();
    const chosen = [...new Set(ids.map((id) => this.find(live, id)))];
    const freed = await this.native.freedIfDeleted(chosen.map((snapshot) => snapshot.uuid));
    if (!dryRun) {
      for (const snapshot of chosen) await this.native.deleteSnapshot(snapshot.uuid, false);
      await this.context.snapshotsChanged?.();
    }
    return { deleted: chosen.map((snapshot) => snapshotRecord(this.context.volume, snapshot)), freed };
  }

  async updateSnapshot(id: string, changes: SnapshotChanges): Promise<SnapshotRecord> {
    const snapshot = this.find(await this.live(), id);
    return snapshotRecord(this.context.volume, await this.native.updateSnapshot(snapshot.uuid, changes));
  }

  async updateProperties(changes: PropertyChanges): Promise<VolumeRecord> {
    await this.native.updateSettings({
      ...(changes.on_full !== undefined && { onFull: changes.on_full }),
      ...(changes.staged_limit !== undefined && { stagedLimitBytes: changes.staged_limit }),
      ...(changes.cache_limit !== undefined && { cacheLimitBytes: changes.cache_limit }),
      ...(changes.reclaim_rate !== undefined && { reclaimRateBytes: changes.reclaim_rate }),
    });
    return this.status();
  }

  async endHold(which: EndHoldRequest): Promise<HoldRecord | null> {
    if (this.context.endHold) return holdRecord(await this.context.endHold(which));
    const { hold } = this.native.info();
    return (await this.native.clearHold(which.attachment ?? "")) ? holdRecord(hold) : null;
  }

  async check(request: CheckRequest): Promise<CheckRecord> {
    if (this.checking) {
      throw new CsnapError(
        "BUSY",
        `${this.context.volume}: a check is running already: wait until it is done`,
      );
    }
    this.checking = true;
    try {
      const { data, onProgress } = request;
      const report = await this.native.check({ data, ...(onProgress && { onProgress }) });
      return checkRecord(this.context.volume, report);
    } finally {
      this.checking = false;
    }
  }

  async dump(out: Writable): Promise<void> {
    const [readFd, writeFd] = this.binding.socketPair();
    const reader = new Socket({ fd: readFd, readable: true, writable: false });
    reader.pipe(out, { end: false });
    const drained = finished(reader, { writable: false });
    // A reader that goes away must end the core's dump: its next write finds no peer.
    const abandon = () => reader.destroy();
    out.once("close", abandon);
    try {
      const dumped = this.native.dump(writeFd).finally(() => closeSync(writeFd));
      await Promise.all([dumped, drained]);
    } finally {
      out.off("close", abandon);
      reader.destroy();
    }
  }

  close(): Promise<void> {
    return this.native.close();
  }

  private async live(): Promise<NativeSnapshot[]> {
    return (await this.native.snapshots()).filter((snapshot) => snapshot.state === "live");
  }

  private find(live: readonly NativeSnapshot[], id: string): NativeSnapshot {
    const found =
      live.find((snapshot) => snapshot.name === id) ?? live.find((snapshot) => snapshot.uuid === id);
    if (!found) {
      throw new CsnapError(
        "NOT_FOUND",
        `${this.context.volume}@${id} does not exist: \`csnap list ${this.context.volume}\` shows the snapshots`,
      );
    }
    return found;
  }
}
