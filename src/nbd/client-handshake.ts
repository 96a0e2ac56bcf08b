/**
 * The client's side of the fixed newstyle handshake as a pure state machine: bytes in, actions out.
 * For the agent, whose connections go to the kernel: no structured replies, no extended headers, no TLS
 * (the kernel speaks none of them). dial.ts feeds it and performs what it returns.
 *
 * 1. The same bytes give the same result however they are cut into pieces.
 * 2. Nothing may follow GO's last reply: a server that sends more before the first request is refused,
 *    as those bytes would be lost when the kernel takes the socket.
 * 3. No length from the wire is trusted: a reply of more than 64 KiB ends the handshake.
 */
import { ByteQueue } from "./byte-queue.js";
import {
  encodeU16,
  encodeU32,
  HandshakeFlag,
  Info,
  NBD_MAGIC,
  OPTION_MAGIC,
  Option,
  REPLY_MAGIC,
  Reply,
  ReplyError,
  type ReplyErrorName,
} from "./wire.js";

/** What the server says of the export. */
export interface ServerOffer {
  readonly sizeBytes: number;
  readonly transmissionFlags: number;
  /** '' where the server gave none */
  readonly description: string;
  readonly minBlockBytes: number;
  readonly maxPayloadBytes: number;
}

export type ClientAction =
  | { readonly kind: "send"; readonly bytes: Buffer }
  /** `go`: transmission may start. `info`: close the connection. */
  | { readonly kind: "agreed"; readonly offer: ServerOffer }
  /** The server said no; its name for it and its words. */
  | { readonly kind: "refused"; readonly error: ReplyErrorName | "UNKNOWN_ERROR"; readonly text: string }
  /** The peer does not speak the protocol. */
  | { readonly kind: "broken"; readonly reason: string };

const GREETING_BYTES = 18;
const REPLY_HEADER_BYTES = 20;
const REPLY_BYTES_MAX = 64 * 1024;
/** What a client may assume where the server says nothing. */
const DEFAULT_MIN_BLOCK_BYTES = 1;
const DEFAULT_MAX_PAYLOAD_BYTES = 32 * 1024 * 1024;

const errorNames = new Map<number, ReplyErrorName>(
  Object.entries(ReplyError).map(([name, value]) => [value, name as ReplyErrorName]),
);

export class ClientHandshake {
  readonly #option: number;
  readonly #exportName: string;
  readonly #input = new ByteQueue();
  #phase: "greeting" | "replies" | "over" = "greeting";
  #size: number | undefined;
  #flags = 0;
  #description = "";
  #minBlockBytes = DEFAULT_MIN_BLOCK_BYTES;
  #maxPayloadBytes = DEFAULT_MAX_PAYLOAD_BYTES;

  constructor(purpose: "info" | "go", exportName: string) {
    this.#option = purpose === "go" ? Option.GO : Option.INFO;
    this.#exportName = exportName;
  }

  receive(bytes: Uint8Array): ClientAction[] {
    if (this.#phase === "over") return [];
    this.#input.append(bytes);
    if (this.#phase === "greeting") {
      if (this.#input.length < GREETING_BYTES) return [];
      return this.#greeted(this.#input.take(GREETING_BYTES));
    }
    return this.#readReplies();
  }

  #greeted(greeting: Buffer): ClientAction[] {
    if (!greeting.subarray(0, 8).equals(NBD_MAGIC)) return this.#broken("it is no NBD server");
    if (!greeting.subarray(8, 16).equals(OPTION_MAGIC)) return this.#broken("it speaks oldstyle NBD only");
    const offered = greeting.readUInt16BE(16);
    if ((offered & HandshakeFlag.FIXED_NEWSTYLE) === 0)
      return this.#broken("it does not speak fixed newstyle NBD");
    if (this.#input.length > 0) return this.#broken("it talks out of turn");
    this.#phase = "replies";
    const name = Buffer.from(this.#exportName);
    const wanted = [Info.BLOCK_SIZE, Info.DESCRIPTION];
    const data = Buffer.concat([
      encodeU32(name.length),
      name,
      encodeU16(wanted.length),
      ...wanted.map((info) => encodeU16(info)),
    ]);
    const clientFlags = offered & (HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES);
    const bytes = Buffer.concat([
      encodeU32(clientFlags),
      OPTION_MAGIC,
      encodeU32(this.#option),
      encodeU32(data.length),
      data,
    ]);
    return [{ kind: "send", bytes }];
  }

  #header: { type: number; length: number } | undefined;

  #readReplies(): ClientAction[] {
    for (;;) {
      if (!this.#header) {
        if (this.#input.length < REPLY_HEADER_BYTES) return [];
        const bytes = this.#input.take(REPLY_HEADER_BYTES);
        if (bytes.readBigUInt64BE(0) !== REPLY_MAGIC || bytes.readUInt32BE(8) !== this.#option)
          return this.#broken("its reply has a wrong header");
        this.#header = { type: bytes.readUInt32BE(12), length: bytes.readUInt32BE(16) };
        if (this.#header.length > REPLY_BYTES_MAX) return this.#broken("its reply is far too long");
      }
      if (this.#input.length < this.#header.length) return [];
      const { type, length } = this.#header;
      this.#header = undefined;
      const end = this.#reply(type, this.#input.take(length));
      if (end) return end;
    }
  }

  #reply(type: number, payload: Buffer): ClientAction[] | undefined {
    if (type === Reply.INFO) return this.#info(payload);
    if (type === Reply.ACK) return this.#acknowledged();
    if (type >= 0x80000000) {
      this.#phase = "over";
      const error = errorNames.get(type) ?? "UNKNOWN_ERROR";
      return [{ kind: "refused", error, text: payload.toString("utf8") }];
    }
    return this.#broken(`its reply is of an unknown kind (${type})`);
  }

  #info(payload: Buffer): ClientAction[] | undefined {
    const type = payload.length >= 2 ? payload.readUInt16BE(0) : -1;
    if (type === Info.EXPORT) {
      if (payload.length !== 12) return this.#broken("its description of the export has a wrong length");
      const size = payload.readBigUInt64BE(2);
      if (size > BigInt(Number.MAX_SAFE_INTEGER)) return this.#broken(`the export has ${size} bytes`);
      this.#size = Number(size);
      this.#flags = payload.readUInt16BE(10);
    } else if (type === Info.BLOCK_SIZE) {
      if (payload.length !== 14) return this.#broken("its block sizes have a wrong length");
      this.#minBlockBytes = payload.readUInt32BE(2);
      this.#maxPayloadBytes = payload.readUInt32BE(10);
    } else if (type === Info.DESCRIPTION) {
      this.#description = payload.subarray(2).toString("utf8");
    }
    return undefined;
  }

  #acknowledged(): ClientAction[] {
    if (this.#size === undefined) return this.#broken("it agreed without a word on the export");
    if (this.#input.length > 0) return this.#broken("it sends replies before the first request");
    this.#phase = "over";
    return [
      {
        kind: "agreed",
        offer: {
          sizeBytes: this.#size,
          transmissionFlags: this.#flags,
          description: this.#description,
          minBlockBytes: this.#minBlockBytes,
          maxPayloadBytes: this.#maxPayloadBytes,
        },
      },
    ];
  }

  #broken(reason: string): ClientAction[] {
    this.#phase = "over";
    return [{ kind: "broken", reason }];
  }
}
