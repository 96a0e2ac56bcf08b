/**
 * The NBD handshake's numbers and its two smallest encoders. Read by handshake.ts and by tests; the
 * transmission phase has its own twin in native/nbd/wire.h.
 *
 * 1. Every integer on the wire is big-endian.
 * 2. Names are those of the NBD protocol document without the NBD_ prefix, so that a number can be
 *    looked up there by its name.
 */

export const DEFAULT_PORT = 10809;

/** "NBDMAGIC" and "IHAVEOPT": both open the greeting, the second one opens every option. */
export const NBD_MAGIC = Buffer.from("NBDMAGIC", "latin1");
export const OPTION_MAGIC = Buffer.from("IHAVEOPT", "latin1");
/** Opens every option reply. */
export const REPLY_MAGIC = 0x0003e889045565a9n;

/** Handshake flags of the server; a client answers with the same bits. */
export const HandshakeFlag = { FIXED_NEWSTYLE: 1 << 0, NO_ZEROES: 1 << 1 } as const;

export const Option = {
  EXPORT_NAME: 1,
  ABORT: 2,
  LIST: 3,
  PEEK_EXPORT: 4,
  STARTTLS: 5,
  INFO: 6,
  GO: 7,
  STRUCTURED_REPLY: 8,
  LIST_META_CONTEXT: 9,
  SET_META_CONTEXT: 10,
  EXTENDED_HEADERS: 11,
} as const;

export const Reply = { ACK: 1, SERVER: 2, INFO: 3, META_CONTEXT: 4 } as const;

/** Error replies: 2^31 + n, payload an optional text for people. */
export const ReplyError = {
  UNSUP: 0x80000001,
  POLICY: 0x80000002,
  INVALID: 0x80000003,
  PLATFORM: 0x80000004,
  TLS_REQD: 0x80000005,
  UNKNOWN: 0x80000006,
  SHUTDOWN: 0x80000007,
  BLOCK_SIZE_REQD: 0x80000008,
  TOO_BIG: 0x80000009,
  EXT_HEADER_REQD: 0x8000000a,
} as const;
export type ReplyErrorName = keyof typeof ReplyError;

export const Info = { EXPORT: 0, NAME: 1, DESCRIPTION: 2, BLOCK_SIZE: 3 } as const;

export const TransmissionFlag = {
  HAS_FLAGS: 1 << 0,
  READ_ONLY: 1 << 1,
  SEND_FLUSH: 1 << 2,
  SEND_FUA: 1 << 3,
  ROTATIONAL: 1 << 4,
  SEND_TRIM: 1 << 5,
  SEND_WRITE_ZEROES: 1 << 6,
  SEND_DF: 1 << 7,
  CAN_MULTI_CONN: 1 << 8,
  SEND_RESIZE: 1 << 9,
  SEND_CACHE: 1 << 10,
  SEND_FAST_ZERO: 1 << 11,
  BLOCK_STATUS_PAYLOAD: 1 << 12,
} as const;

/** The longest string the protocol allows, in bytes. */
export const STRING_BYTES_MAX = 4096;
/** An option's header: magic, option, length of its data. */
export const OPTION_HEADER_BYTES = 16;
/** Size, transmission flags and, unless NO_ZEROES was agreed, this much padding answer EXPORT_NAME. */
export const EXPORT_NAME_PADDING_BYTES = 124;

export function encodeU16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
}

export function encodeU32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

export function encodeU64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(value));
  return bytes;
}

/** One option reply: header and payload. */
export function encodeReply(option: number, type: number, payload: Uint8Array = new Uint8Array(0)): Buffer {
  const bytes = Buffer.alloc(20 + payload.length);
  bytes.writeBigUInt64BE(REPLY_MAGIC, 0);
  bytes.writeUInt32BE(option, 8);
  bytes.writeUInt32BE(type, 12);
  bytes.writeUInt32BE(payload.length, 16);
  bytes.set(payload, 20);
  return bytes;
}
