/** A raw NBD client over any stream: sends bytes, reads whole replies, notices the end of the connection. */
import { connect, type Socket } from "node:net";
import type { Duplex } from "node:stream";
import type { ListenerAddress } from "../../src/nbd/uri.js";
import { FLAGS, GREETING, type OptionReply, readReply } from "./nbd-wire.js";

export class RawClient {
  /** How the connection ended, once it has. */
  ended: "end" | "reset" | undefined;
  #bytes = Buffer.alloc(0);
  #wake = () => {};
  #stream: Duplex;
  #heard: ((bytes: Buffer) => void) | undefined;

  constructor(stream: Duplex) {
    this.#stream = stream;
    this.listenTo(stream);
  }

  static async connect(address: ListenerAddress): Promise<RawClient> {
    const socket = connect(address.transport === "unix" ? { path: address.path } : address);
    await new Promise((resolve, reject) => socket.once("connect", resolve).once("error", reject));
    return new RawClient(socket);
  }

  /** Connected, greeted, flags sent. */
  static async start(address: ListenerAddress): Promise<RawClient> {
    const client = await RawClient.connect(address);
    const greeting = await client.take(GREETING.length);
    if (!greeting.equals(GREETING)) throw new Error(`greeting ${greeting.toString("hex")}`);
    client.send(FLAGS);
    return client;
  }

  get stream(): Duplex {
    return this.#stream;
  }

  get socket(): Socket {
    return this.#stream as Socket;
  }

  send(...pieces: Buffer[]): void {
    this.#stream.write(Buffer.concat(pieces));
  }

  async take(count: number): Promise<Buffer> {
    await this.#until(() => this.#bytes.length >= count);
    const taken = this.#bytes.subarray(0, count);
    this.#bytes = this.#bytes.subarray(count);
    return taken;
  }

  async reply(): Promise<OptionReply> {
    await this.#until(() => readReply(this.#bytes) !== undefined);
    const next = readReply(this.#bytes);
    if (next === undefined) throw new Error("no reply");
    this.#bytes = Buffer.from(next.rest);
    return next.reply;
  }

  /** Replies up to and with the one that ends an option, as `OPTION TYPE`. */
  async answer(): Promise<string[]> {
    const seen: string[] = [];
    for (;;) {
      const { option, type } = await this.reply();
      seen.push(`${option} ${type}`);
      if (!["SERVER", "INFO", "META_CONTEXT"].includes(type)) return seen;
    }
  }

  /** Resolves to what came before the connection ended. */
  async rest(): Promise<Buffer> {
    while (this.ended === undefined) await this.#news();
    return this.#bytes;
  }

  destroy(): void {
    this.#stream.destroy();
  }

  /** Stops hearing the stream and gives it away, say to TLS. */
  release(): Duplex {
    if (this.#heard !== undefined) this.#stream.off("data", this.#heard);
    return this.#stream;
  }

  private listenTo(stream: Duplex): void {
    this.#heard = (bytes) => {
      this.#bytes = Buffer.concat([this.#bytes, bytes]);
      this.#wake();
    };
    stream.on("data", this.#heard);
    const end = (how: "end" | "reset") => {
      this.ended ??= how;
      this.#wake();
    };
    stream.on("end", () => end("end"));
    stream.on("error", () => end("reset"));
    stream.on("close", () => end("end"));
  }

  async #until(condition: () => boolean): Promise<void> {
    while (!condition()) {
      if (this.ended !== undefined) throw new Error(`the server closed (${this.ended})`);
      await this.#news();
    }
  }

  #news(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve;
    });
  }
}
