// The NBD connections of one served volume from admission to their end: who is connected, and which
// attachment (`EXPORT?attachment=UUID.TRY`) holds which connections.
//
// C1 Connections of one TRY belong together. A greater TRY closes those of the smaller ones and is
//    admitted only when they have ended (F5); a smaller TRY is refused.
// C2 A connection is listed from the start of its transmission until the core says that it ended.

import type { NativeVolume } from "../native.js";
import type { TransmissionStart } from "../nbd/connection.js";
import type { Attachment, ExportInfo, Refusal } from "../nbd/exports.js";
import type { Admission } from "../nbd/handshake.js";
import type { ClientRecord } from "../volume/model.js";
import { isVolumeExport } from "./exports.js";

/** Attachments that are remembered without a connection; the oldest are forgotten first. */
const rememberedAttachments = 4096;

interface Held {
  attempt: number;
  readonly connections: Set<number>;
}

type Connected = Omit<ClientRecord, "requests" | "read_bytes" | "write_bytes" | "in_flight">;

export class Clients {
  private readonly connected = new Map<number, Connected>();
  private readonly attachments = new Map<string, Held>();
  private readonly waiters = new Set<() => void>();

  constructor(
    private readonly native: NativeVolume,
    private readonly now: () => Date = () => new Date(),
  ) {}

  /** C1. The NBD server's hook before GO and EXPORT_NAME succeed. */
  async admit({ request, info }: Admission): Promise<ExportInfo | Refusal> {
    const { attachment } = request;
    if (attachment === undefined) return info;
    const held = this.hold(attachment);
    if ("refused" in held) return held;
    const former = [...held.connections];
    for (const id of former) this.native.closeConnection(id);
    await this.until(() => former.every((id) => !this.connected.has(id)));
    // Meanwhile a still greater TRY may have come.
    return held.attempt === attachment.attempt ? info : olderAttempt(held.attempt);
  }

  /** Takes the attachment for this TRY; returns it with the connections of smaller ones still in it. */
  private hold({ uuid, attempt }: Attachment): Held | Refusal {
    const held = this.attachments.get(uuid) ?? { attempt, connections: new Set<number>() };
    if (attempt < held.attempt) return olderAttempt(held.attempt);
    const isNewer = attempt > held.attempt;
    held.attempt = attempt;
    this.attachments.delete(uuid);
    this.attachments.set(uuid, held);
    this.forgetOldest();
    return isNewer ? held : { attempt, connections: new Set() };
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
    if (held && attachment && attachment.attempt < held.attempt)
      throw new Error("a newer attempt has taken over");
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
    return { ...record, requests: 0, read_bytes: 0, write_bytes: 0, in_flight: 0 };
  }

  /** The core's 'connection-closed'. Returns who it was. */
  ended(id: number): { readonly export: string; readonly peer: string } | undefined {
    const record = this.connected.get(id);
    this.connected.delete(id);
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

  closeAll(): void {
    for (const id of this.connected.keys()) this.native.closeConnection(id);
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

function olderAttempt(newest: number): Refusal {
  return {
    refused: "POLICY",
    text: `attempt ${newest} of this attachment has taken over; older ones are refused`,
  };
}
