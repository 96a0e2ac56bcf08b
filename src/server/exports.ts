// The exports of one served volume: the origin, read-write, and every live snapshot, read-only.
//
// X1 Answers come from memory (the handshake must not wait). What a command changed is in here before
//    the command's caller hears that it is done.
// X2 What a client is offered of an export (a hold, an older TRY) is decided by `offer`, at once.
// X3 A snapshot that was deleted or dropped vanishes at once; connections that have it open get errors
//    from the core, never other data.

import type { NativeVolume } from "../native.js";
import {
  blockSizes,
  type ClientInfo,
  describeVolume,
  type ExportDirectory,
  type ExportInfo,
  type ExportRequest,
  type Refusal,
  unknownExport,
} from "../nbd/exports.js";

export interface VolumeExport extends ExportInfo {
  /** uuid of the snapshot, '' for the origin */
  readonly snapshotUuid: string;
}

export function isVolumeExport(info: ExportInfo): info is VolumeExport {
  return "snapshotUuid" in info;
}

/** What this client gets of the export, without any effect; see Clients.offer. */
export type Offer = (info: VolumeExport, request: ExportRequest) => VolumeExport | Refusal;

export class VolumeExports implements ExportDirectory {
  private readonly origin: VolumeExport;
  private readonly common: Pick<
    ExportInfo,
    "description" | "minBlockBytes" | "preferredBlockBytes" | "maxPayloadBytes"
  >;
  private byName = new Map<string, VolumeExport>();

  constructor(
    private readonly volume: string,
    private readonly native: NativeVolume,
    private readonly offer: Offer,
  ) {
    const info = native.info();
    const { volumeUuid: uuid, durabilityId, epoch } = info;
    this.common = {
      description: describeVolume({ uuid, durabilityId, epoch }),
      ...blockSizes(info.chunkBytes),
    };
    this.origin = {
      ...this.common,
      name: volume,
      kind: "origin",
      sizeBytes: info.originBytes,
      readOnly: false,
      snapshotUuid: "",
    };
  }

  /** Reads the live snapshots anew. Overlapping calls end in the newest state: each reads all. */
  async refresh(): Promise<void> {
    const found = new Map<string, VolumeExport>();
    for (const snapshot of await this.native.snapshots()) {
      if (snapshot.state !== "live") continue;
      const name = `${this.volume}@${snapshot.name}`;
      found.set(name, {
        ...this.common,
        name,
        kind: "snapshot",
        sizeBytes: snapshot.sizeBytes,
        readOnly: true,
        snapshotUuid: snapshot.uuid,
      });
    }
    this.byName = found;
  }

  /** X3 */
  remove(uuid: string): void {
    for (const [name, info] of this.byName) if (info.snapshotUuid === uuid) this.byName.delete(name);
  }

  list(_client: ClientInfo): readonly VolumeExport[] {
    return [this.origin, ...this.byName.values()];
  }

  resolve(request: ExportRequest): VolumeExport | Refusal {
    const { name } = request;
    const found = name === "" || name === this.volume ? this.origin : this.byName.get(name);
    return found ? this.offer(found, request) : unknownExport(name);
  }
}
