/**
 * Decoders of the options that carry data. Called by handshake.ts with the whole data of one option.
 *
 * 1. Data must be used up exactly; anything else is INVALID, and nothing of it takes effect.
 * 2. No count or length from the wire is trusted before it was compared with the bytes that are there.
 */
import type { Refusal } from "./exports.js";
import { STRING_BYTES_MAX } from "./wire.js";

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

export interface InfoRequest {
  /** As sent, attachment included. */
  readonly asked: string;
  readonly infoTypes: readonly number[];
}

export interface MetaContextRequest {
  readonly asked: string;
  readonly queries: readonly string[];
}

export function invalid(text: string): Refusal {
  return { refused: "INVALID", text };
}

/** A protocol string: UTF-8, no NUL, at most 4096 bytes. */
export function decodeString(bytes: Uint8Array, what: string): string | Refusal {
  if (bytes.length > STRING_BYTES_MAX) {
    return { refused: "TOO_BIG", text: `${what} is longer than ${STRING_BYTES_MAX} bytes` };
  }
  if (bytes.includes(0)) return invalid(`${what} contains a NUL byte`);
  try {
    return utf8.decode(bytes);
  } catch {
    return invalid(`${what} is not UTF-8`);
  }
}

/** INFO and GO: name length u32, name, count u16, count information types u16. */
export function decodeInfoRequest(data: Buffer): InfoRequest | Refusal {
  const nameBytes = data.length >= 6 ? data.readUInt32BE(0) : 0;
  if (data.length < 6 || nameBytes > data.length - 6) return invalid("the name is longer than the data");
  const count = data.readUInt16BE(4 + nameBytes);
  if (data.length !== 6 + nameBytes + 2 * count) {
    return invalid("the data does not end where its information requests end");
  }
  const asked = decodeString(data.subarray(4, 4 + nameBytes), "the export name");
  if (typeof asked !== "string") return asked;
  const infoTypes: number[] = [];
  for (let at = 6 + nameBytes; at < data.length; at += 2) infoTypes.push(data.readUInt16BE(at));
  return { asked, infoTypes };
}

/** LIST_META_CONTEXT and SET_META_CONTEXT: name length u32, name, count u32, count strings with u32 lengths. */
export function decodeMetaContextRequest(data: Buffer): MetaContextRequest | Refusal {
  const nameBytes = data.length >= 8 ? data.readUInt32BE(0) : 0;
  if (data.length < 8 || nameBytes > data.length - 8) return invalid("the name is longer than the data");
  const asked = decodeString(data.subarray(4, 4 + nameBytes), "the export name");
  if (typeof asked !== "string") return asked;
  const count = data.readUInt32BE(4 + nameBytes);
  const queries: string[] = [];
  let at = 8 + nameBytes;
  for (let index = 0; index < count; index++) {
    const queryBytes = data.length - at >= 4 ? data.readUInt32BE(at) : -1;
    if (queryBytes < 0 || queryBytes > data.length - at - 4)
      return invalid("a query is longer than the data");
    const query = decodeString(data.subarray(at + 4, at + 4 + queryBytes), "a query");
    if (typeof query !== "string") return query;
    queries.push(query);
    at += 4 + queryBytes;
  }
  if (at !== data.length) return invalid("the data does not end where its queries end");
  return { asked, queries };
}
