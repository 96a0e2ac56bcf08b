/**
 * The server's side of the fixed newstyle handshake as a pure state machine: bytes in, actions out. No
 * sockets, no timers. connection.ts feeds it and performs what it returns; the handshake timeout is
 * the caller's.
 *
 * 1. The same bytes give the same replies however they are cut into pieces.
 * 2. A client sends no option before the final reply to the former one. After STARTTLS that is a
 *    safety rule: bytes that came behind it close the connection, they are never read as TLS or text.
 * 3. STARTTLS resets everything negotiated before it.
 * 4. Memory is bounded: data of up to 64 KiB is kept, up to 1 MiB is skipped and refused, more closes
 *    the connection at once. Replies are produced at most one option beyond 256 KiB, then the machine
 *    waits (`drain`) until they have left.
 * 5. `drain`, `startTls`, `admit` and `close` come last in what one call returns. Until the matching call
 *    comes, the machine interprets nothing; the caller stops reading.
 * 6. TLS_REQD is sent only where TLS is to be had: not without TLS, not within TLS.
 */
import { ByteQueue } from "./byte-queue.js";
import type { MetaContext, MetaContextProvider } from "./contexts.js";
import { listContexts, selectContexts } from "./contexts.js";
import type { ClientInfo, ExportDirectory, ExportInfo, ExportRequest, Identity, Refusal } from "./exports.js";
import { parseExportName, transmissionFlags } from "./exports.js";
import { decodeInfoRequest, decodeMetaContextRequest, decodeString, invalid } from "./option-data.js";
import {
  EXPORT_NAME_PADDING_BYTES,
  encodeReply,
  encodeU16,
  encodeU32,
  encodeU64,
  HandshakeFlag,
  Info,
  NBD_MAGIC,
  OPTION_HEADER_BYTES,
  OPTION_MAGIC,
  Option,
  Reply,
  ReplyError,
} from "./wire.js";

/** none: NOTLS, plaintext only. allow: SELECTIVETLS, the directory may ask for it. require: FORCEDTLS. */
export type TlsMode = "none" | "allow" | "require";

export interface HandshakeOptions {
  readonly directory: ExportDirectory;
  readonly client: ClientInfo;
  readonly tlsMode: TlsMode;
  readonly metaContexts: readonly MetaContextProvider[];
}

/** What GO or EXPORT_NAME asks the caller to let in. */
export interface Admission {
  readonly request: ExportRequest;
  readonly info: ExportInfo;
}

/** What transmission must know of the handshake. */
export interface Negotiated {
  readonly structuredReplies: boolean;
  readonly transmissionFlags: number;
  readonly metaContexts: readonly MetaContext[];
}

export interface Admitted {
  /** The last bytes of the handshake; transmission starts right behind them. */
  readonly reply: Buffer;
  /** What the client has already sent behind GO. */
  readonly initialBytes: Buffer;
  readonly negotiated: Negotiated;
}

export type Action =
  | { readonly kind: "send"; readonly bytes: Buffer }
  /** Call `drained` once everything sent has left. */
  | { readonly kind: "drain" }
  /** Once everything sent has left, run TLS, then call `tlsEstablished`. */
  | { readonly kind: "startTls" }
  /** Decide, then call `admitted` or `refused`. */
  | { readonly kind: "admit"; readonly admission: Admission }
  /** Close after everything sent has left. */
  | { readonly kind: "close"; readonly reason: string };

const OPTION_DATA_BYTES_MAX = 64 * 1024;
const OPTION_SKIP_BYTES_MAX = 1024 * 1024;
const OUTPUT_BYTES_MAX = 256 * 1024;
/** Queued while the caller should not be reading at all. */
const WAITING_BYTES_MAX = 1024 * 1024;
const REFUSAL_CHARS_MAX = 1024;
/** Every known client needs a handful; those that walk a list ask a few more for each export listed. */
const OPTION_COUNT_MAX = 64;
const OPTION_COUNT_MAX_PER_LISTED_EXPORT = 4;

type Phase = "greeting" | "flags" | "options" | "draining" | "tls" | "admission" | "over";

interface PendingGo {
  readonly option: number;
  readonly request: ExportRequest;
  readonly asked: string;
  readonly infoTypes: readonly number[];
}

export class Handshake {
  readonly #options: HandshakeOptions;
  readonly #input = new ByteQueue();
  #client: ClientInfo;
  #phase: Phase = "greeting";
  #optionCount = 0;
  #optionCountMax = OPTION_COUNT_MAX;
  #clientFlags = 0;
  /** The option whose header was read. */
  #current: { option: number; dataBytes: number; skipBytes: number } | undefined;
  #pendingGo: PendingGo | undefined;
  #structuredReplies = false;
  #metaContexts: readonly MetaContext[] = [];
  /** Contexts count only for the export they were set for. */
  #metaContextsFor = "";

  constructor(options: HandshakeOptions) {
    this.#options = options;
    this.#client = options.client;
  }

  /** False while the caller has something to do first, and at the end. */
  get wantsInput(): boolean {
    return this.#phase === "flags" || this.#phase === "options";
  }

  /** The greeting. Called once, first. */
  start(): Action[] {
    if (this.#phase !== "greeting") throw new Error("the handshake has already started");
    this.#phase = "flags";
    const flags = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES;
    return [{ kind: "send", bytes: Buffer.concat([NBD_MAGIC, OPTION_MAGIC, encodeU16(flags)]) }];
  }

  receive(bytes: Uint8Array): Action[] {
    if (this.#phase === "over") return [];
    this.#input.append(bytes);
    if (this.#phase === "tls") return this.#close("bytes behind STARTTLS");
    if (this.wantsInput) return this.#run();
    return this.#input.length > WAITING_BYTES_MAX ? this.#close("too much sent ahead of a reply") : [];
  }

  drained(): Action[] {
    if (this.#phase !== "draining") throw new Error("nothing waits for a drain");
    this.#phase = "options";
    return this.#run();
  }

  /** From here on bytes given to `receive` came through TLS. */
  tlsEstablished(identity: Identity | undefined): Action[] {
    if (this.#phase !== "tls") throw new Error("TLS was not asked for");
    this.#client = { ...this.#client, tls: true, identity };
    this.#structuredReplies = false;
    this.#metaContexts = [];
    this.#phase = "options";
    return this.#run();
  }

  /** Ends the handshake with the export as the caller admitted it. */
  admitted(info: ExportInfo): Admitted {
    const go = this.#takePendingGo();
    this.#phase = "over";
    const structuredReplies = this.#structuredReplies;
    const flags = transmissionFlags(info, structuredReplies);
    const reply =
      go.option === Option.GO
        ? Buffer.concat([...this.#encodeInfos(go, info), encodeReply(go.option, Reply.ACK)])
        : this.#encodeExportName(info, flags);
    const metaContexts = this.#metaContextsFor === go.asked ? this.#metaContexts : [];
    const initialBytes = this.#input.take(this.#input.length);
    return { reply, initialBytes, negotiated: { structuredReplies, transmissionFlags: flags, metaContexts } };
  }

  /** The export is not admitted; the client may go on asking. */
  refused(refusal: Refusal): Action[] {
    const go = this.#takePendingGo();
    this.#phase = "options";
    if (go.option === Option.EXPORT_NAME) return this.#close(refusal.text);
    return [...this.#refuse(go.option, refusal), ...this.#run()];
  }

  #run(): Action[] {
    const actions: Action[] = [];
    let outputBytes = 0;
    for (let step = this.#step(); step !== undefined; step = this.#step()) {
      for (const action of step) if (action.kind === "send") outputBytes += action.bytes.length;
      actions.push(...step);
      if (outputBytes < OUTPUT_BYTES_MAX || this.#phase !== "options") continue;
      this.#phase = "draining";
      actions.push({ kind: "drain" });
    }
    return actions;
  }

  /** Does the next thing that the input allows; undefined if it must wait. */
  #step(): Action[] | undefined {
    if (this.#phase === "flags") return this.#readClientFlags();
    if (this.#phase !== "options") return undefined;
    const current = this.#current;
    if (current === undefined) return this.#readOptionHeader();
    if (current.skipBytes > 0) {
      current.skipBytes -= this.#input.skip(current.skipBytes);
      if (current.skipBytes > 0) return undefined;
    } else if (this.#input.length < current.dataBytes) {
      return undefined;
    }
    this.#current = undefined;
    if (current.dataBytes > OPTION_DATA_BYTES_MAX) return this.#answerOversized(current.option);
    return this.#answer(current.option, this.#input.take(current.dataBytes));
  }

  #readClientFlags(): Action[] | undefined {
    if (this.#input.length < 4) return undefined;
    this.#clientFlags = this.#input.take(4).readUInt32BE();
    const known = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES;
    if ((this.#clientFlags & ~known) !== 0) return this.#close("unknown client flags");
    this.#phase = "options";
    return [];
  }

  #readOptionHeader(): Action[] | undefined {
    if (this.#input.length < OPTION_HEADER_BYTES) return undefined;
    const header = this.#input.take(OPTION_HEADER_BYTES);
    const option = header.readUInt32BE(8);
    const dataBytes = header.readUInt32BE(12);
    if (!header.subarray(0, 8).equals(OPTION_MAGIC)) return this.#close("bad option magic");
    if (dataBytes > OPTION_SKIP_BYTES_MAX) {
      return this.#close(`option ${option} announces ${dataBytes} bytes of data`);
    }
    this.#optionCount++;
    if (this.#optionCount > this.#optionCountMax) {
      return this.#close(`more than ${this.#optionCountMax} options`);
    }
    this.#current = { option, dataBytes, skipBytes: dataBytes > OPTION_DATA_BYTES_MAX ? dataBytes : 0 };
    return [];
  }

  #answer(option: number, data: Buffer): Action[] {
    const blocked = this.#blockedOption(option);
    if (blocked !== undefined) return this.#refuse(option, blocked);
    switch (option) {
      case Option.EXPORT_NAME:
        return this.#exportName(data);
      case Option.ABORT:
        return this.#abort();
      case Option.LIST:
        return data.length > 0 ? this.#refuseData(option) : this.#list();
      case Option.STARTTLS:
        return this.#startTls(data);
      case Option.INFO:
      case Option.GO:
        return this.#infoOrGo(option, data);
      case Option.STRUCTURED_REPLY:
        if (data.length > 0) return this.#refuseData(option);
        this.#structuredReplies = true;
        return [reply(option, Reply.ACK)];
      case Option.LIST_META_CONTEXT:
      case Option.SET_META_CONTEXT:
        return this.#metaContext(option, data);
      default:
        return this.#refuse(option, { refused: "UNSUP", text: `option ${option} is not supported` });
    }
  }

  /** An option with more data than any real one has; the data is gone. */
  #answerOversized(option: number): Action[] {
    if (option === Option.ABORT) return this.#abort();
    if (option === Option.EXPORT_NAME) return this.#close("the export name is too long");
    if (option === Option.SET_META_CONTEXT) this.#metaContexts = [];
    const known = option <= Option.SET_META_CONTEXT && option !== Option.PEEK_EXPORT && option !== 0;
    const text = `the data of option ${option} is longer than ${OPTION_DATA_BYTES_MAX} bytes`;
    const refusal: Refusal = { refused: known ? "TOO_BIG" : "UNSUP", text };
    return this.#refuse(option, this.#blockedOption(option) ?? refusal);
  }

  /** Options that the state of the connection does not allow, whatever their data. */
  #blockedOption(option: number): Refusal | undefined {
    if (option === Option.ABORT || option === Option.EXPORT_NAME) return undefined;
    if ((this.#clientFlags & HandshakeFlag.FIXED_NEWSTYLE) === 0) {
      return invalid("options need the client flag FIXED_NEWSTYLE");
    }
    return option !== Option.STARTTLS && this.#needsTls()
      ? { refused: "TLS_REQD", text: "this server requires TLS" }
      : undefined;
  }

  #needsTls(): boolean {
    return this.#options.tlsMode === "require" && !this.#client.tls;
  }

  #abort(): Action[] {
    return [reply(Option.ABORT, Reply.ACK), ...this.#close("the client aborted")];
  }

  #startTls(data: Buffer): Action[] {
    const option = Option.STARTTLS;
    if (data.length > 0) return this.#refuseData(option);
    if (this.#client.tls) return this.#refuse(option, invalid("TLS is already running"));
    if (this.#options.tlsMode === "none") {
      return this.#refuse(option, { refused: "POLICY", text: "TLS is not configured on this server" });
    }
    if (this.#input.length > 0) return this.#close("bytes behind STARTTLS");
    this.#phase = "tls";
    return [reply(option, Reply.ACK), { kind: "startTls" }];
  }

  #list(): Action[] {
    const exports = this.#options.directory.list(this.#client);
    const walk = OPTION_COUNT_MAX + OPTION_COUNT_MAX_PER_LISTED_EXPORT * exports.length;
    this.#optionCountMax = Math.max(this.#optionCountMax, walk);
    const replies = exports.map(({ name, description }) => {
      const nameBytes = Buffer.from(name);
      const payload = Buffer.concat([encodeU32(nameBytes.length), nameBytes, Buffer.from(description)]);
      return encodeReply(Option.LIST, Reply.SERVER, payload);
    });
    const bytes = Buffer.concat([...replies, encodeReply(Option.LIST, Reply.ACK)]);
    return [{ kind: "send", bytes }];
  }

  #exportName(data: Buffer): Action[] {
    if (this.#needsTls()) return this.#close("EXPORT_NAME without TLS");
    const asked = decodeString(data, "the export name");
    if (typeof asked !== "string") return this.#close(asked.text);
    const found = this.#resolve(asked, "use");
    if ("refused" in found) return this.#close(found.text);
    return this.#admit(
      { option: Option.EXPORT_NAME, request: found.request, asked, infoTypes: [] },
      found.info,
    );
  }

  #infoOrGo(option: number, data: Buffer): Action[] {
    const decoded = decodeInfoRequest(data);
    if ("refused" in decoded) return this.#refuse(option, decoded);
    const { asked, infoTypes } = decoded;
    const found = this.#resolve(asked, option === Option.GO ? "use" : "look");
    if ("refused" in found) return this.#refuse(option, found);
    const go: PendingGo = { option, request: found.request, asked, infoTypes };
    if (option === Option.GO) return this.#admit(go, found.info);
    const infos = this.#encodeInfos(go, found.info);
    return [{ kind: "send", bytes: Buffer.concat([...infos, encodeReply(option, Reply.ACK)]) }];
  }

  #metaContext(option: number, data: Buffer): Action[] {
    const setting = option === Option.SET_META_CONTEXT;
    if (setting) this.#metaContexts = [];
    if (setting && !this.#structuredReplies) {
      return this.#refuse(option, invalid("structured replies must be negotiated first"));
    }
    const decoded = decodeMetaContextRequest(data);
    if ("refused" in decoded) return this.#refuse(option, decoded);
    const found = this.#resolve(decoded.asked, "look");
    if ("refused" in found) return this.#refuse(option, found);
    const providers = this.#options.metaContexts;
    const contexts = setting
      ? selectContexts(providers, found.info, decoded.queries)
      : listContexts(providers, found.info, decoded.queries).map((name) => ({ id: 0, name }));
    if (setting) {
      this.#metaContexts = contexts;
      this.#metaContextsFor = decoded.asked;
    }
    const replies = contexts.map(({ id, name }) =>
      encodeReply(option, Reply.META_CONTEXT, Buffer.concat([encodeU32(id), Buffer.from(name)])),
    );
    return [{ kind: "send", bytes: Buffer.concat([...replies, encodeReply(option, Reply.ACK)]) }];
  }

  #resolve(
    asked: string,
    purpose: ExportRequest["purpose"],
  ): { request: ExportRequest; info: ExportInfo } | Refusal {
    const parsed = parseExportName(asked);
    if (parsed === undefined)
      return invalid(`'${asked}' is not EXPORT or EXPORT?attachment=UUID.TRY, &ro or &held behind it`);
    const request: ExportRequest = { ...parsed, client: this.#client, purpose };
    const info = this.#options.directory.resolve(request);
    return "refused" in info ? info : { request, info };
  }

  #admit(go: PendingGo, info: ExportInfo): Action[] {
    this.#pendingGo = go;
    this.#phase = "admission";
    return [{ kind: "admit", admission: { request: go.request, info } }];
  }

  #takePendingGo(): PendingGo {
    const go = this.#pendingGo;
    if (this.#phase !== "admission" || go === undefined) throw new Error("no admission is pending");
    this.#pendingGo = undefined;
    return go;
  }

  /** EXPORT always, the others where asked for. */
  #encodeInfos(go: PendingGo, info: ExportInfo): Buffer[] {
    const flags = transmissionFlags(info, this.#structuredReplies);
    const payloads = [Buffer.concat([encodeU16(Info.EXPORT), encodeU64(info.sizeBytes), encodeU16(flags)])];
    for (const type of new Set(go.infoTypes)) {
      if (type === Info.NAME) payloads.push(Buffer.concat([encodeU16(type), Buffer.from(info.name)]));
      if (type === Info.DESCRIPTION) {
        payloads.push(Buffer.concat([encodeU16(type), Buffer.from(info.description)]));
      }
      if (type === Info.BLOCK_SIZE) {
        const sizes = [info.minBlockBytes, info.preferredBlockBytes, info.maxPayloadBytes];
        payloads.push(Buffer.concat([encodeU16(type), ...sizes.map(encodeU32)]));
      }
    }
    return payloads.map((payload) => encodeReply(go.option, Reply.INFO, payload));
  }

  #encodeExportName(info: ExportInfo, flags: number): Buffer {
    const padded = (this.#clientFlags & HandshakeFlag.NO_ZEROES) === 0;
    const padding = Buffer.alloc(padded ? EXPORT_NAME_PADDING_BYTES : 0);
    return Buffer.concat([encodeU64(info.sizeBytes), encodeU16(flags), padding]);
  }

  #refuseData(option: number): Action[] {
    return this.#refuse(option, invalid(`option ${option} takes no data`));
  }

  #refuse(option: number, refusal: Refusal): Action[] {
    const tlsAvailable = this.#options.tlsMode !== "none" && !this.#client.tls;
    const error = refusal.refused === "TLS_REQD" && !tlsAvailable ? "POLICY" : refusal.refused;
    // The text may repeat a name of up to 4096 bytes; a string of the protocol is no longer than that.
    return [reply(option, ReplyError[error], Buffer.from(refusal.text.slice(0, REFUSAL_CHARS_MAX)))];
  }

  #close(reason: string): Action[] {
    this.#phase = "over";
    return [{ kind: "close", reason }];
  }
}

function reply(option: number, type: number, payload?: Uint8Array): Action {
  return { kind: "send", bytes: encodeReply(option, type, payload) };
}
