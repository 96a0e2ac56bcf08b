/**
 * What the handshake needs to know of exports and clients: the interface between the NBD listener and
 * whoever decides (the volume's export directory, the access rules, the holds of attachments).
 * handshake.ts asks; the server process implements ExportDirectory.
 *
 * 1. An ExportDirectory answers from memory, without waiting, and has no side effects: INFO, GO and
 *    LIST may ask it as often as they like. What takes effect (a hold, closing an attachment's former
 *    connections) belongs into the listener's `admit` hook.
 * 2. "Not there" and "not allowed to see it" must look the same: both are `unknownExport(name)`.
 */
import type { ReplyErrorName } from "./wire.js";
import { TransmissionFlag } from "./wire.js";

/** Who a TLS client proved to be. Names carry their kind: `cn=host1`, `dns=host1.lan`, `psk=alice`. */
export interface Identity {
  readonly kind: "certificate" | "psk";
  readonly names: readonly string[];
}

export interface ClientInfo {
  readonly transport: "unix" | "tcp";
  /** The peer's IP address, empty on a unix socket; for limits and messages. */
  readonly address: string;
  /** True on a unix socket and for a peer on this host. */
  readonly local: boolean;
  readonly tls: boolean;
  readonly identity?: Identity | undefined;
}

/**
 * The agent's half of an export name, `EXPORT?attachment=UUID.TRY`: `…&ro` for reading only, `…&held` for
 * a reconnect, which never takes a hold anew.
 */
export interface Attachment {
  readonly uuid: string;
  readonly attempt: number;
  /** Asks for no hold; the connection can't write. */
  readonly readOnly: boolean;
  /** The attachment has had its hold; if that was ended meanwhile, others may have written. */
  readonly isHeld: boolean;
}

export interface ExportInfo {
  /** The canonical name: `volume`, `volume@snapshot` or a clone's name; never empty. */
  readonly name: string;
  readonly kind: "origin" | "snapshot" | "clone";
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  /** For NBD_INFO_DESCRIPTION; see describeVolume. */
  readonly description: string;
  readonly minBlockBytes: number;
  readonly preferredBlockBytes: number;
  readonly maxPayloadBytes: number;
}

/** An error reply and its text for people. On EXPORT_NAME, which has no errors, it closes. */
export interface Refusal {
  readonly refused: ReplyErrorName;
  readonly text: string;
}

export interface ExportRequest {
  /** As asked for, without the attachment; empty means the volume's origin. */
  readonly name: string;
  readonly attachment?: Attachment | undefined;
  readonly client: ClientInfo;
  /** `look`: INFO and meta contexts; `use`: GO and EXPORT_NAME. */
  readonly purpose: "look" | "use";
}

export interface ExportDirectory {
  /** What LIST shows to this client. */
  list(client: ClientInfo): readonly ExportInfo[];
  resolve(request: ExportRequest): ExportInfo | Refusal;
}

export function isRefusal(answer: ExportInfo | Refusal): answer is Refusal {
  return "refused" in answer;
}

/** The one answer for an export that does not exist or must not be seen. */
export function unknownExport(name: string): Refusal {
  return { refused: "UNKNOWN", text: `no export named '${name}'` };
}

/** Design §3: what an agent must compare before it installs a connection. */
export function describeVolume(volume: {
  readonly uuid: string;
  readonly durabilityId: string;
  readonly epoch: bigint;
}): string {
  return `csnap volume=${volume.uuid} durability=${volume.durabilityId} epoch=${volume.epoch}`;
}

/** Requests up to 32 MiB are what every known client stays below, the kernel included. */
const MAX_PAYLOAD_BYTES = 32 * 1024 * 1024;

/**
 * Block sizes of an export in a volume of this chunk size. Any offset and length is served (1); whole
 * chunks cost least, but above 64 KiB a client that reads the preferred size ahead only wastes.
 */
export function blockSizes(
  chunkBytes: number,
): Pick<ExportInfo, "minBlockBytes" | "preferredBlockBytes" | "maxPayloadBytes"> {
  const preferredBlockBytes = Math.max(4096, Math.min(chunkBytes, 64 * 1024));
  return { minBlockBytes: 1, preferredBlockBytes, maxPayloadBytes: MAX_PAYLOAD_BYTES };
}

/** The flags of GO, INFO and EXPORT_NAME. DF exists only where structured replies do. */
export function transmissionFlags(info: ExportInfo, structuredReplies: boolean): number {
  const f = TransmissionFlag;
  let flags = f.HAS_FLAGS | f.SEND_FLUSH | f.SEND_FUA | f.SEND_CACHE | f.CAN_MULTI_CONN;
  flags |= info.readOnly ? f.READ_ONLY : f.SEND_TRIM | f.SEND_WRITE_ZEROES | f.SEND_FAST_ZERO;
  return structuredReplies ? flags | f.SEND_DF : flags;
}

const ATTACHMENT =
  /^attachment=([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.(0|[1-9][0-9]{0,15})(&ro|&held)?$/;

/** Splits an asked name; undefined if what follows the `?` is not an attachment. */
export function parseExportName(asked: string): { name: string; attachment?: Attachment } | undefined {
  const mark = asked.indexOf("?");
  if (mark < 0) return { name: asked };
  const match = ATTACHMENT.exec(asked.slice(mark + 1));
  const attempt = Number(match?.[2]);
  if (match?.[1] === undefined || !Number.isSafeInteger(attempt)) return undefined;
  return {
    name: asked.slice(0, mark),
    attachment: { uuid: match[1], attempt, readOnly: match[3] === "&ro", isHeld: match[3] === "&held" },
  };
}
