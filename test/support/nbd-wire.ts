/**
 * The client's half of the NBD handshake for tests, written from the protocol and not from src/nbd: raw
 * bytes of options, and a reader of whatever the server sent.
 */
export const u16 = (value: number): Buffer => {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
};
export const u32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
};
export const u64 = (value: bigint): Buffer => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(value);
  return bytes;
};

export const GREETING = Buffer.concat([Buffer.from("NBDMAGICIHAVEOPT"), u16(3)]);
/** FIXED_NEWSTYLE and NO_ZEROES. */
export const FLAGS = u32(3);

export function option(number: number, data: Buffer = Buffer.alloc(0), length = data.length): Buffer {
  return Buffer.concat([Buffer.from("IHAVEOPT"), u32(number), u32(length), data]);
}

export const string32 = (text: string | Buffer): Buffer => {
  const bytes = Buffer.from(text);
  return Buffer.concat([u32(bytes.length), bytes]);
};

export function infoData(name: string | Buffer, ...types: number[]): Buffer {
  return Buffer.concat([string32(name), u16(types.length), ...types.map(u16)]);
}

export function metaData(name: string, ...queries: string[]): Buffer {
  return Buffer.concat([string32(name), u32(queries.length), ...queries.map(string32)]);
}

export const ask = {
  exportName: (name: string) => option(1, Buffer.from(name)),
  abort: () => option(2),
  list: () => option(3),
  startTls: () => option(5),
  info: (name: string, ...types: number[]) => option(6, infoData(name, ...types)),
  go: (name: string, ...types: number[]) => option(7, infoData(name, ...types)),
  structuredReply: () => option(8),
  listMeta: (name: string, ...queries: string[]) => option(9, metaData(name, ...queries)),
  setMeta: (name: string, ...queries: string[]) => option(10, metaData(name, ...queries)),
} as const;

export interface OptionReply {
  readonly option: number;
  /** ACK, SERVER, INFO, META_CONTEXT or the name of the error. */
  readonly type: string;
  readonly payload: Buffer;
}

const TYPES: Record<number, string> = { 1: "ACK", 2: "SERVER", 3: "INFO", 4: "META_CONTEXT" };
const ERRORS = [
  "UNSUP",
  "POLICY",
  "INVALID",
  "PLATFORM",
  "TLS_REQD",
  "UNKNOWN",
  "SHUTDOWN",
  "BLOCK_SIZE_REQD",
  "TOO_BIG",
  "EXT_HEADER_REQD",
];
ERRORS.forEach((name, index) => {
  TYPES[0x80000001 + index] = name;
});

/** The next reply at the start of `bytes`; undefined while it is incomplete. Throws if it is none. */
export function readReply(bytes: Buffer): { reply: OptionReply; rest: Buffer } | undefined {
  if (bytes.length < 20) return undefined;
  if (bytes.readBigUInt64BE(0) !== 0x3e889045565a9n)
    throw new Error(`no reply magic: ${bytes.toString("hex", 0, 20)}`);
  const end = 20 + bytes.readUInt32BE(16);
  if (bytes.length < end) return undefined;
  const type = TYPES[bytes.readUInt32BE(12)];
  if (type === undefined) throw new Error(`unknown reply type ${bytes.readUInt32BE(12)}`);
  const reply = { option: bytes.readUInt32BE(8), type, payload: Buffer.from(bytes.subarray(20, end)) };
  return { reply, rest: bytes.subarray(end) };
}

/** Everything after the greeting as replies; throws on trailing bytes. */
export function readReplies(bytes: Buffer): OptionReply[] {
  const replies: OptionReply[] = [];
  let rest = bytes;
  while (rest.length > 0) {
    const next = readReply(rest);
    if (next === undefined) throw new Error(`incomplete reply: ${rest.toString("hex")}`);
    replies.push(next.reply);
    rest = next.rest;
  }
  return replies;
}

/** INFO payloads by their type's name. */
export function decodeInfo(payload: Buffer): Record<string, unknown> {
  switch (payload.readUInt16BE(0)) {
    case 0:
      return { size: payload.readBigUInt64BE(2), flags: payload.readUInt16BE(10) };
    case 1:
      return { name: payload.toString("utf8", 2) };
    case 2:
      return { description: payload.toString("utf8", 2) };
    case 3:
      return { blocks: [payload.readUInt32BE(2), payload.readUInt32BE(6), payload.readUInt32BE(10)] };
    default:
      throw new Error(`unknown info ${payload.toString("hex")}`);
  }
}
