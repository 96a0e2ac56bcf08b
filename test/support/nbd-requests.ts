/**
 * Requests and replies of NBD's transmission phase as bytes, for nbd-client.ts. A reply that breaks a rule of the
 * protocol throws.
 */
import { u16, u32, u64 } from "./nbd-wire.js";

export const Command = {
  READ: 0,
  WRITE: 1,
  DISC: 2,
  FLUSH: 3,
  TRIM: 4,
  CACHE: 5,
  WRITE_ZEROES: 6,
  BLOCK_STATUS: 7,
} as const;

export const CommandFlag = { FUA: 1, NO_HOLE: 2, DF: 4, REQ_ONE: 8, FAST_ZERO: 16 } as const;

/** Errors as they stand on the wire. */
export const Errno = { EPERM: 1, EIO: 5, EINVAL: 22, ENOSPC: 28, ENOTSUP: 95 } as const;

export const HOLE = 1;
export const ZERO = 2;

export interface Request {
  readonly command: number;
  readonly flags?: number;
  readonly offset?: number | bigint;
  /** Default: the length of `data`, or 0. */
  readonly length?: number;
  readonly data?: Buffer;
  /** Default: a fresh one. */
  readonly cookie?: bigint;
  readonly magic?: number;
}

export interface Extent {
  readonly length: number;
  readonly flags: number;
}

export interface Answer {
  readonly cookie: bigint;
  readonly error: number;
  /** The text of an error chunk. */
  readonly message: string;
  /** Of a READ that succeeded; holes are zeros. */
  readonly data: Buffer;
  readonly extents: readonly Extent[];
  readonly simple: boolean;
  /** Types of the chunks, in order; empty for a simple reply. */
  readonly chunks: readonly number[];
}

/** A request that the server answered with an error. */
export class RequestFailed extends Error {
  constructor(
    what: string,
    readonly error: number,
    detail: string,
  ) {
    super(`${what} was answered with error ${error}${detail === "" ? "" : `: ${detail}`}`);
    this.name = "RequestFailed";
  }
}

/** The bytes of one request. */
export function encodeRequest(request: Request & { cookie: bigint }): Buffer {
  const { command, flags = 0, offset = 0, data, magic = 0x25609513, cookie } = request;
  const length = request.length ?? data?.length ?? 0;
  const header = [u32(magic), u16(flags), u16(command), u64(cookie), u64(BigInt(offset)), u32(length)];
  return Buffer.concat(data === undefined ? header : [...header, data]);
}

/** The chunks of one structured reply, on their way to an answer. */
export class Assembly {
  readonly #pieces: { start: number; bytes: Buffer | number }[] = [];
  readonly #chunks: number[] = [];
  readonly #extents: Extent[] = [];
  #error = 0;
  #message = "";

  constructor(readonly request: Request) {}

  add(type: number, done: boolean, payload: Buffer, contextId: number): void {
    const wrong = (why: string) => new Error(`a chunk of type ${type} ${why}`);
    const { length } = payload;
    this.#chunks.push(type);
    if (type === 0) {
      if (!done || length !== 0) throw wrong("without DONE or with a payload");
    } else if (type === 1 && length > 8) {
      this.#pieces.push({ start: Number(payload.readBigUInt64BE(0)), bytes: payload.subarray(8) });
    } else if (type === 2 && length === 12) {
      this.#pieces.push({ start: Number(payload.readBigUInt64BE(0)), bytes: payload.readUInt32BE(8) });
    } else if (type === 5 && length >= 12 && length % 8 === 4) {
      if (payload.readUInt32BE(0) !== contextId) throw wrong("of another context");
      for (let at = 4; at < length; at += 8)
        this.#extents.push({ length: payload.readUInt32BE(at), flags: payload.readUInt32BE(at + 4) });
    } else if (type === 0x8001 && length >= 6 && length === 6 + payload.readUInt16BE(4)) {
      this.#error ||= payload.readUInt32BE(0);
      this.#message = payload.toString("utf8", 6);
      if (this.#error === 0) throw wrong("without an error");
    } else {
      throw wrong(`is not known or has a bad length, ${length}`);
    }
  }

  answer(cookie: bigint): Answer {
    const content = this.request.command === Command.READ && this.#error === 0;
    return {
      cookie,
      error: this.#error,
      message: this.#message,
      data: content ? this.#join() : Buffer.alloc(0),
      extents: this.#extents,
      simple: false,
      chunks: this.#chunks,
    };
  }

  /** The content of a READ: every byte of the request exactly once. */
  #join(): Buffer {
    const data = Buffer.alloc(this.request.length ?? 0);
    const offset = Number(this.request.offset ?? 0);
    let covered = 0;
    for (const { start, bytes } of [...this.#pieces].sort((a, b) => a.start - b.start)) {
      const length = typeof bytes === "number" ? bytes : bytes.length;
      if (start - offset !== covered || length === 0 || covered + length > data.length)
        throw new Error(`a READ at ${offset} was answered with ${length} bytes at ${start}`);
      if (typeof bytes !== "number") bytes.copy(data, covered);
      covered += length;
    }
    if (covered !== data.length) throw new Error(`a READ of ${data.length} bytes got ${covered}`);
    return data;
  }
}
