/**
 * A raw NBD client for tests of the transmission phase, written from the protocol and not from src/nbd. It can
 * misbehave: every request field can be set, raw bytes can be sent, and nothing is read from the socket while
 * nobody waits for an answer, so that a server's replies pile up where the test wants them to.
 *
 * 1. Replies are checked as they are read: magics, known cookies, chunk order, overlap and bounds, DONE, and in
 *    structured mode no simple reply to a READ. A server that breaks a rule fails the test that met it.
 * 2. A lost connection rejects everything that waits with ConnectionLost; nothing waits longer than its time-out.
 */
import { connect, type Socket } from "node:net";
import {
  type Answer,
  Assembly,
  Command,
  type Extent,
  encodeRequest,
  type Request,
  RequestFailed,
} from "./nbd-requests.js";
import { ask, FLAGS, GREETING, type OptionReply, readReply } from "./nbd-wire.js";

export type Address = { readonly path: string } | { readonly host: string; readonly port: number };

/** The socket's address of an NBD URI, `nbd+unix:///NAME?socket=PATH` or `nbd://HOST:PORT/NAME`. */
export function addressOf(uri: string): Address {
  const url = new URL(uri);
  const path = url.searchParams.get("socket");
  if (path !== null) return { path };
  return { host: url.hostname.replace(/^\[|\]$/g, ""), port: Number(url.port || 10809) };
}

export interface ClientOptions {
  /** Default: the empty name. */
  readonly export?: string;
  readonly structured?: boolean;
  /** Asks for base:allocation; implies structured. */
  readonly baseAllocation?: boolean;
  /** EXPORT_NAME instead of GO. */
  readonly byExportName?: boolean;
  /** Bytes sent in one piece with GO or EXPORT_NAME. */
  readonly behind?: Buffer;
  /** Asks for the export's description. */
  readonly described?: boolean;
  /** How long anything may be waited for. */
  readonly timeoutMs?: number;
  readonly allowHalfOpen?: boolean;
}

/** NBD_INFO_DESCRIPTION. */
const DESCRIPTION = 2;

export class ConnectionLost extends Error {
  constructor(readonly how: "end" | "reset") {
    super(`the server ended the connection (${how})`);
    this.name = "ConnectionLost";
  }
}

interface Waiter {
  readonly resolve: (answer: Answer) => void;
  readonly reject: (error: Error) => void;
}

export class NbdClient {
  /** How the connection ended, once that has been noticed. */
  ended: "end" | "reset" | undefined;
  sizeBytes = 0;
  /** The transmission flags. */
  flags = 0;
  /** Of base:allocation, where it was asked for. */
  contextId = -1;
  /** The export's, where it was asked for. */
  description = "";
  readonly socket: Socket;
  readonly #options: ClientOptions;
  readonly #timeoutMs: number;
  #chunks: Buffer[] = [];
  #buffered = 0;
  #news: (() => void) | undefined;
  #nextCookie = 1n;
  /** Sent and not answered yet, oldest first, by cookie. */
  readonly #pending = new Map<bigint, Assembly[]>();
  readonly #waiters = new Map<bigint, Waiter[]>();
  readonly #anyWaiters: Waiter[] = [];
  #stash: Answer[] = [];
  #pumping = false;

  private constructor(socket: Socket, options: ClientOptions) {
    this.socket = socket;
    this.#options = options;
    this.#timeoutMs = options.timeoutMs ?? 20_000;
    const wake = () => this.#news?.();
    const end = (how: "end" | "reset") => {
      this.ended ??= how;
      wake();
    };
    socket.on("readable", wake);
    socket.on("end", () => end("end"));
    socket.on("error", () => end("reset"));
    socket.on("close", () => end("end"));
  }

  /** Connected and in transmission. */
  static async open(address: Address | string, options: ClientOptions = {}): Promise<NbdClient> {
    const target = typeof address === "string" ? addressOf(address) : address;
    const socket = connect({ ...target, allowHalfOpen: options.allowHalfOpen ?? true });
    await new Promise((resolve, reject) => socket.once("connect", resolve).once("error", reject));
    socket.setNoDelay(true);
    const client = new NbdClient(socket, options);
    try {
      await client.#negotiate();
    } catch (error) {
      socket.destroy();
      throw error;
    }
    return client;
  }

  /** The server's term, of a described csnap export. */
  get epoch(): number {
    const found = / epoch=(\d+)/.exec(this.description)?.[1];
    if (found === undefined) throw new Error(`no epoch in the description '${this.description}'`);
    return Number(found);
  }

  get structured(): boolean {
    return this.#options.structured === true || this.#options.baseAllocation === true;
  }

  async #negotiate(): Promise<void> {
    const name = this.#options.export ?? "";
    const greeting = await this.take(GREETING.length);
    if (!greeting.equals(GREETING)) throw new Error(`greeting ${greeting.toString("hex")}`);
    this.raw(FLAGS);
    if (this.structured) {
      this.raw(ask.structuredReply());
      await this.#acknowledged();
    }
    if (this.#options.baseAllocation === true) {
      this.raw(ask.setMeta(name, "base:allocation"));
      const context = (await this.#acknowledged()).find(({ type }) => type === "META_CONTEXT");
      if (context === undefined) throw new Error("no base:allocation");
      this.contextId = context.payload.readUInt32BE(0);
    }
    const behind = this.#options.behind ?? Buffer.alloc(0);
    if (this.#options.byExportName === true) {
      this.raw(ask.exportName(name), behind);
      const reply = await this.take(10);
      this.sizeBytes = Number(reply.readBigUInt64BE(0));
      this.flags = reply.readUInt16BE(8);
      return;
    }
    this.raw(ask.go(name, ...(this.#options.described ? [DESCRIPTION] : [])), behind);
    const replies = await this.#acknowledged();
    const ofType = (type: number) => replies.find((reply) => reply.payload.readUInt16BE(0) === type);
    this.description = ofType(DESCRIPTION)?.payload.toString("utf8", 2) ?? "";
    const info = ofType(0);
    if (info === undefined) throw new Error("no INFO_EXPORT");
    this.sizeBytes = Number(info.payload.readBigUInt64BE(2));
    this.flags = info.payload.readUInt16BE(10);
  }

  /** What the server says before it acknowledges the option. */
  async #acknowledged(): Promise<OptionReply[]> {
    const replies: OptionReply[] = [];
    for (;;) {
      const head = await this.take(20);
      const whole = Buffer.concat([head, await this.take(head.readUInt32BE(16))]);
      const reply = readReply(whole)?.reply;
      if (reply?.type === "ACK") return replies;
      if (reply === undefined || !["INFO", "META_CONTEXT"].includes(reply.type))
        throw new Error(`option ${reply?.option} was answered ${reply?.type}: ${reply?.payload}`);
      replies.push(reply);
    }
  }

  // ---- Bytes -------------------------------------------------------------------------------------

  raw(...pieces: Buffer[]): void {
    this.socket.write(Buffer.concat(pieces));
  }

  async take(count: number): Promise<Buffer> {
    await this.#until(() => this.#buffered >= count, `${count} bytes`);
    const [first, ...others] = this.#chunks;
    const all = first !== undefined && others.length === 0 ? first : Buffer.concat(this.#chunks);
    this.#chunks = all.length > count ? [all.subarray(count)] : [];
    this.#buffered = all.length - count;
    return all.subarray(0, count);
  }

  /** Reads until the server has ended the connection; what came before that. */
  async rest(): Promise<Buffer> {
    await this.#until(() => this.ended !== undefined, "the end of the connection").catch((error: unknown) => {
      if (!(error instanceof ConnectionLost)) throw error;
    });
    return Buffer.concat(this.#chunks);
  }

  /** Ends the connection by a TCP reset, or as abruptly as a unix socket can. */
  reset(): void {
    if ("resetAndDestroy" in this.socket && this.socket.remoteFamily !== undefined)
      this.socket.resetAndDestroy();
    else this.socket.destroy();
  }

  destroy(): void {
    this.socket.destroy();
  }

  async #until(condition: () => boolean, what: string): Promise<void> {
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      this.#news?.();
    }, this.#timeoutMs);
    try {
      for (;;) {
        for (let bytes = this.#read(); bytes !== null; bytes = this.#read()) {
          this.#chunks.push(bytes);
          this.#buffered += bytes.length;
        }
        if (condition()) return;
        if (this.ended !== undefined) throw new ConnectionLost(this.ended);
        if (late) throw new Error(`waited ${this.#timeoutMs} ms for ${what}`);
        await new Promise<void>((resolve) => {
          this.#news = resolve;
        });
        this.#news = undefined;
      }
    } finally {
      clearTimeout(timer);
    }
  }

  #read(): Buffer | null {
    return this.socket.read() as Buffer | null;
  }

  // ---- Requests ----------------------------------------------------------------------------------

  /** Sends several requests in one piece; their cookies. Their answers are awaited with answer(). */
  send(...requests: Request[]): bigint[] {
    const cookies = requests.map((request) => request.cookie ?? this.#nextCookie++);
    this.raw(...requests.map((request, i) => encodeRequest({ ...request, cookie: cookies[i] ?? 0n })));
    requests.forEach((request, i) => {
      if (request.command === Command.DISC) return;
      const cookie = cookies[i] ?? 0n;
      this.#pending.set(cookie, [...(this.#pending.get(cookie) ?? []), new Assembly(request)]);
    });
    return cookies;
  }

  /** The answer to a request that was sent. */
  answer(cookie: bigint): Promise<Answer> {
    const at = this.#stash.findIndex((answer) => answer.cookie === cookie);
    if (at >= 0) return Promise.resolve(this.#stash.splice(at, 1)[0] as Answer);
    return new Promise((resolve, reject) => {
      this.#waiters.set(cookie, [...(this.#waiters.get(cookie) ?? []), { resolve, reject }]);
      void this.#pump();
    });
  }

  /** The next answer to come, whatever it answers. */
  next(): Promise<Answer> {
    const first = this.#stash.shift();
    if (first !== undefined) return Promise.resolve(first);
    return new Promise((resolve, reject) => {
      this.#anyWaiters.push({ resolve, reject });
      void this.#pump();
    });
  }

  call(request: Request): Promise<Answer> {
    return this.answer(this.send(request)[0] as bigint);
  }

  /** Unlike call(): throws RequestFailed for an error. */
  async must(request: Request): Promise<Answer> {
    const answer = await this.call(request);
    if (answer.error !== 0) {
      const name = Object.entries(Command).find(([, number]) => number === request.command)?.[0];
      throw new RequestFailed(`${name} at ${request.offset ?? 0}`, answer.error, answer.message);
    }
    return answer;
  }

  async read(offset: number, length: number, flags = 0): Promise<Buffer> {
    return (await this.must({ command: Command.READ, offset, length, flags })).data;
  }

  async write(offset: number, data: Buffer, flags = 0): Promise<void> {
    await this.must({ command: Command.WRITE, offset, data, flags });
  }

  async zero(offset: number, length: number, flags = 0): Promise<void> {
    await this.must({ command: Command.WRITE_ZEROES, offset, length, flags });
  }

  async trim(offset: number, length: number, flags = 0): Promise<void> {
    await this.must({ command: Command.TRIM, offset, length, flags });
  }

  async flush(): Promise<void> {
    await this.must({ command: Command.FLUSH });
  }

  async blockStatus(offset: number, length: number, flags = 0): Promise<readonly Extent[]> {
    return (await this.must({ command: Command.BLOCK_STATUS, offset, length, flags })).extents;
  }

  /** DISC; resolves when the server has closed. */
  async disconnect(): Promise<void> {
    this.send({ command: Command.DISC });
    await this.rest();
    this.destroy();
  }

  // ---- Answers -----------------------------------------------------------------------------------

  /** Reads answers while somebody waits for one. */
  async #pump(): Promise<void> {
    if (this.#pumping) return;
    this.#pumping = true;
    try {
      while (this.#waiters.size > 0 || this.#anyWaiters.length > 0) {
        const answer = await this.#readAnswer();
        const mine = this.#waiters.get(answer.cookie);
        const waiter = mine?.shift() ?? this.#anyWaiters.shift();
        if (mine?.length === 0) this.#waiters.delete(answer.cookie);
        if (waiter === undefined) this.#stash.push(answer);
        else waiter.resolve(answer);
      }
    } catch (error) {
      const failure = error instanceof Error ? error : new Error(String(error));
      const waiting = [...[...this.#waiters.values()].flat(), ...this.#anyWaiters.splice(0)];
      this.#waiters.clear();
      for (const { reject } of waiting) reject(failure);
    } finally {
      this.#pumping = false;
    }
  }

  async #readAnswer(): Promise<Answer> {
    for (;;) {
      const magic = (await this.take(4)).readUInt32BE(0);
      if (magic === 0x67446698) return this.#readSimple();
      if (magic !== 0x668e33ef) throw new Error(`no reply magic: ${magic.toString(16)}`);
      if (!this.structured) throw new Error("a structured reply where none was negotiated");
      const answer = await this.#readChunk();
      if (answer !== undefined) return answer;
    }
  }

  async #readSimple(): Promise<Answer> {
    const head = await this.take(12);
    const cookie = head.readBigUInt64BE(4);
    const error = head.readUInt32BE(0);
    const assembly = this.#assembly(cookie);
    const { command, length = 0 } = assembly.request;
    if (command === Command.READ && this.structured) throw new Error("a simple reply to a READ");
    const data = await this.take(command === Command.READ && error === 0 ? length : 0);
    this.#forget(cookie);
    return { cookie, error, message: "", data, extents: [], simple: true, chunks: [] };
  }

  /** The answer, if this chunk was its last. */
  async #readChunk(): Promise<Answer | undefined> {
    const head = await this.take(16);
    const cookie = head.readBigUInt64BE(4);
    const payload = await this.take(head.readUInt32BE(12));
    const assembly = this.#assembly(cookie);
    const done = (head.readUInt16BE(0) & 1) !== 0;
    assembly.add(head.readUInt16BE(2), done, payload, this.contextId);
    if (!done) return undefined;
    this.#forget(cookie);
    return assembly.answer(cookie);
  }

  #assembly(cookie: bigint): Assembly {
    const assembly = this.#pending.get(cookie)?.[0];
    if (assembly === undefined) throw new Error(`an answer to cookie ${cookie}, which nothing waits for`);
    return assembly;
  }

  #forget(cookie: bigint): void {
    const left = (this.#pending.get(cookie) ?? []).slice(1);
    if (left.length === 0) this.#pending.delete(cookie);
    else this.#pending.set(cookie, left);
  }
}
