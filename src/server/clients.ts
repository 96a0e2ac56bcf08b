// The NBD connections of one served volume from admission to their end: who is connected, and which
// attachment (`EXPORT?attachment=UUID.TRY`) holds which connections.
//
// C1 Connections of one TRY belong together. A greater TRY closes those of the smaller ones and is
//    admitted only when they have ended (F5); a smaller TRY is refused. An attachment whose hold was ended
//    is refused until a greater TRY; one that was ended by force for good: others may have written since.
// C2 A connection is listed from the start of its transmission until the core says that it ended.

// C3 A connection that may write the origin runs only as holds.ts allows, at its start too.

import type { NativeHold, NativeVolume } from "../native.js";
import type { TransmissionStart } from "../nbd/connection.js";
import {
  type Attachment,
  type ClientInfo,
  type ExportInfo,
  type ExportRequest,
  isRefusal,
  type Refusal,
} from "../nbd/exports.js";
import type { Admission } from "../nbd/handshake.js";
import { hostName } from "../volume/host.js";
import type { ClientRecord } from "../volume/model.js";
import type { EndHoldRequest } from "../volume/operations.js";
import { isVolumeExport } from "./exports.js";
import type { Holds } from "./holds.js";

/** Attachments that are remembered without a connection; the oldest are forgotten first. */
const rememberedAttachments = 4096;
/** Of a host's name in the store. */
const hostBytesMax = 63;

interface Held {
  attempt: number;
  readonly connections: Set<number>;
  /** its hold was ended, by whom */
  ended?: "detach" | "force" | undefined;
}

type Connected = Omit<ClientRecord, "requests" | "read_bytes" | "write_bytes" | "in_flight">;

export class Clients {
  private readonly connected = new Map<number, Connected>();
  private readonly attachments = new Map<string, Held>();
  private readonly waiters = new Set<() => void>();
  /** connections that may write the origin */
  private readonly writers = new Map<number, { attachment: string | undefined; who: string }>();

  constructor(
    private readonly native: NativeVolume,
    private readonly holds: Holds,
    private readonly now: () => Date = () => new Date(),
  ) {}

  /** What GO would get: the answer to INFO, which has no effects and counts as no TRY. */
  offer<T extends ExportInfo>(info: T, { attachment }: ExportRequest): T | Refusal {
    if (attachment === undefined) {
      return info.kind === "origin" && this.holds.isExclusive ? { ...info, readOnly: true } : info;
    }
    const older = this.overtaken(attachment);
    if (older) return older;
    if (attachment.readOnly) return { ...info, readOnly: true };
    return (info.kind === "origin" ? this.holds.refusal(attachment) : undefined) ?? info;
  }

  /** C1. The NBD server's hook before GO and EXPORT_NAME succeed. */
  async admit({ request, info }: Admission): Promise<ExportInfo | Refusal> {
    const { attachment, client } = request;
    const offered = this.offer(info, request);
    if (attachment === undefined || isRefusal(offered)) return offered;
    const former = this.enter(attachment);
    await this.closeAll(former);
    // Meanwhile a still greater TRY may have come, or a detach.
    const overtaken = () => this.overtaken(attachment);
    if (isWritableOrigin(offered)) {
      const refusal = await this.holds.take(attachment, hostOf(client), overtaken);
      if (refusal) return refusal;
    }
    return overtaken() ?? offered;
  }

  private overtaken({ uuid, attempt }: Attachment): Refusal | undefined {
    const held = this.attachments.get(uuid);
    if (held?.ended === "force") {
      return {
        refused: "POLICY",
        text: "this attachment was ended by force, and others may have written since: detach its device and attach anew",
      };
    }
    if (!held || attempt > held.attempt) return undefined;
    if (attempt < held.attempt) {
      return {
        refused: "POLICY",
        text: `attempt ${held.attempt} of this attachment has taken over; older ones are refused`,
      };
    }
    return held.ended && { refused: "POLICY", text: "this attachment was detached: attach anew" };
  }

  /** Takes the attachment for this TRY; returns the connections of smaller ones still in it. */
  private enter({ uuid, attempt }: Attachment): number[] {
    const held = this.attachments.get(uuid) ?? { attempt, connections: new Set<number>() };
    const isNewer = attempt > held.attempt;
    if (isNewer) held.ended = undefined;
    held.attempt = attempt;
    this.attachments.delete(uuid);
    this.attachments.set(uuid, held);
    this.forgetOldest();
    return isNewer ? [...held.connections] : [];
  }

  /** See VolumeOperations.endHold. */
  endHold(which: EndHoldRequest): Promise<NativeHold | null> {
    return this.holds.end(which, async (uuid) => {
      const held: Held = this.attachments.get(uuid) ?? { attempt: -1, connections: new Set() };
      held.ended = which.force ? "force" : "detach";
      this.attachments.set(uuid, held);
      await this.closeAll([...held.connections]);
    });
  }

  /** Who writes the origin beside this attachment, in words. */
  writerBeside(attachment: string | undefined): string | undefined {
    for (const writer of this.writers.values()) {
      if (attachment === undefined || writer.attachment !== attachment) return writer.who;
    }
    return undefined;
  }

  private forgetOldest(): void {
    for (const [uuid, held] of this.attachments) {
      if (this.attachments.size <= rememberedAttachments) return;
      if (held.connections.size === 0) this.attachments.delete(uuid);
    }
  }

  /** Hands the connection to the core. Throws where it must be closed instead. */
  start({ fd, initialBytes, negotiated, info, client, attachment }: TransmissionStart): ClientRecord {
    if (!isVolumeExport(info)) throw new Error(`export ${info.name} is not of this volume`);
    const held = attachment && this.attachments.get(attachment.uuid);
    const overtaken = attachment && this.overtaken(attachment);
    if (overtaken) throw new Error(overtaken.text);
    if (isWritableOrigin(info) && !this.holds.mayWrite(attachment?.uuid))
      throw new Error("the origin was attached read-write meanwhile");
    const allocation = negotiated.metaContexts.find((context) => context.name === "base:allocation");
    const id = this.native.serveConnection(fd, {
      snapshot: info.snapshotUuid,
      readOnly: info.readOnly,
      structuredReplies: negotiated.structuredReplies,
      baseAllocationId: allocation?.id ?? -1,
      initialBytes,
    });
    held?.connections.add(id);
    const record: Connected = {
      id,
      export: info.name,
      peer: client.transport === "unix" ? "unix socket" : client.address,
      tls: client.tls,
      user: client.identity?.names[0] ?? null,
      read_only: info.readOnly,
      attachment: attachment ? `${attachment.uuid}.${attachment.attempt}` : null,
      connected: this.now().toISOString(),
    };
    this.connected.set(id, record);
    if (isWritableOrigin(info)) {
      this.writers.set(id, { attachment: attachment?.uuid, who: `client #${id} (${record.peer})` });
    }
    return { ...record, requests: 0, read_bytes: 0, write_bytes: 0, in_flight: 0 };
  }

  /** The core's 'connection-closed'. Returns who it was. */
  ended(id: number): { readonly export: string; readonly peer: string } | undefined {
    const record = this.connected.get(id);
    this.connected.delete(id);
    this.writers.delete(id);
    for (const held of this.attachments.values()) held.connections.delete(id);
    for (const wake of [...this.waiters]) wake();
    return record;
  }

  list(): ClientRecord[] {
    const figures = new Map(this.native.connections().map((connection) => [connection.id, connection]));
    return [...this.connected.values()].map((record) => {
      const figure = figures.get(record.id);
      return {
        ...record,
        requests: figure?.requests ?? 0,
        read_bytes: figure?.readBytes ?? 0,
        write_bytes: figure?.writeBytes ?? 0,
        in_flight: figure?.inFlight ?? 0,
      };
    });
  }

  get count(): number {
    return this.connected.size;
  }

  drainAll(): void {
    for (const id of this.connected.keys()) this.native.drainConnection(id);
  }

  /** Cuts these, or all; resolves when they have ended, with what they had issued (F5). */
  async closeAll(ids: readonly number[] = [...this.connected.keys()]): Promise<void> {
    for (const id of ids) this.native.closeConnection(id);
    await this.until(() => ids.every((id) => !this.connected.has(id)));
  }

  /** Resolves when no connection is left. */
  allEnded(): Promise<void> {
    return this.until(() => this.connected.size === 0);
  }

  private until(done: () => boolean): Promise<void> {
    return new Promise((resolve) => {
      const wake = () => {
        if (!done()) return;
        this.waiters.delete(wake);
        resolve();
      };
      this.waiters.add(wake);
      wake();
    });
  }
}

function isWritableOrigin(info: ExportInfo): boolean {
  return info.kind === "origin" && !info.readOnly;
}

/** The name by which a hold tells its host: 1 to 63 bytes. */
function hostOf({ local, address, identity }: ClientInfo): string {
  if (local) return cut(hostName());
  const [name] = identity?.names ?? [];
  return cut(name === undefined ? address : `${address} (${name})`);
}

function cut(text: string): string {
  let name = text;
  while (Buffer.byteLength(name) > hostBytesMax) name = name.slice(0, -1);
  return name === "" ? "an unnamed host" : name;
}
