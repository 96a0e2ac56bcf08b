/**
 * A client that holds the origin as an attachment, follows the volume from server to server by the broker's word, and knows
 * what each block may hold: the last acknowledged version, or a later one that was sent and never answered.
 */
import { randomUUID } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";
import type { Broker, BrokerEvent } from "../../src/broker/broker.js";
import { addressOf, ConnectionLost, NbdClient } from "./nbd-client.js";
import { monotonicMs, TermSpans } from "./term-spans.js";

export const BLOCK = 4096;
const ANSWER_LIMIT_MS = 3000;
const TAG = 16;

interface Known {
  acknowledged: number;
  sent: number;
}

/**
 * Whether a failed call only says that nobody answered: a connection may end, be refused or stay silent; an answer with an
 * error is a defect (F2). EINVAL is what a blackhole route says to its sender.
 */
export function isSilence(error: unknown): boolean {
  const text = error instanceof Error ? error.message : String(error);
  return (
    error instanceof ConnectionLost ||
    /ECONN|EHOSTUNREACH|ENETUNREACH|EPIPE|ETIMEDOUT|EINVAL|timed out|no answer|not within|^waited \d+ ms/i.test(
      text,
    )
  );
}

/** What a client does: by default as much as it can, every third request a read. */
export interface Load {
  /** from the beginning of one request to that of the next, at least */
  readonly paceMs?: number;
  /** the part of the requests that are reads */
  readonly reads?: number;
  /** Told of each answer: of which term, and when (ms of CLOCK_MONOTONIC). */
  readonly answered?: (epoch: number, ms: number) => void;
}

export class VerifiedClient {
  readonly acknowledged = new TermSpans();
  /** ms of each time without an answer that lasted longer than 500 ms */
  readonly stalls: number[] = [];
  readonly problems: string[] = [];
  readonly #attachment = randomUUID();
  #attempt = 0;
  readonly #blocks: Known[];
  readonly #ticket;
  #address: Extract<BrokerEvent, { type: "address" }> | undefined;
  #addressChanged = () => {};
  #stopping = false;
  #done: Promise<void> | undefined;

  constructor(
    broker: Broker,
    readonly volume: string,
    readonly index: number,
    readonly count: number,
    blocks: number,
    private readonly random: () => number,
    private readonly load: Load = {},
  ) {
    this.#blocks = Array.from({ length: blocks }, () => ({ acknowledged: 0, sent: 0 }));
    this.#ticket = broker.request({ service: volume });
    this.#ticket.on((event) => {
      if (event.type === "address") this.#address = event;
      else if (event.type === "withdrawn") this.#address = undefined;
      else return;
      this.#addressChanged();
    });
  }

  start(): void {
    this.#done = this.#run();
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    await this.#done;
  }

  async #run(): Promise<void> {
    let lastMs = monotonicMs();
    while (!this.#stopping) {
      const address = this.#address;
      const uri = address?.uris.find((text) => text.startsWith("nbd://"));
      if (!address || uri === undefined) {
        await pause(10);
        continue;
      }
      try {
        // A new TRY closes the former connection and waits for its writes (F5): without that a request
        // that this client has given up could be performed after a later one.
        const client = await this.#open(uri);
        // A request to a server whose host is lost is never answered.
        this.#addressChanged = () => client.destroy();
        while (!this.#stopping && this.#address?.epoch === address.epoch) {
          const askedMs = monotonicMs();
          await this.#one(client);
          const now = monotonicMs();
          if (now - lastMs > 500) this.stalls.push(Math.round(now - lastMs));
          lastMs = now;
          this.acknowledged.saw(client.epoch, askedMs, now);
          this.load.answered?.(client.epoch, now);
          const restMs = askedMs + (this.load.paceMs ?? 0) - monotonicMs();
          if (restMs > 0) await pause(restMs);
        }
        await client.disconnect().catch(() => {});
      } catch (error) {
        if (!isSilence(error)) this.problems.push(error instanceof Error ? error.message : String(error));
        await pause(20);
      }
    }
  }

  /** Given up when the address changes: a lost host does not even refuse. */
  async #open(uri: string): Promise<NbdClient> {
    const opening = NbdClient.open(addressOf(uri), {
      export: `${this.volume}?attachment=${this.#attachment}.${++this.#attempt}`,
      timeoutMs: ANSWER_LIMIT_MS,
      described: true,
    });
    const changed = new Promise<undefined>((resolve) => {
      this.#addressChanged = () => resolve(undefined);
    });
    const client = await Promise.race([opening, changed]);
    if (client) return client;
    opening.then(
      (late) => late.destroy(),
      () => {},
    );
    throw new ConnectionLost("reset");
  }

  async #one(client: NbdClient): Promise<void> {
    const block = Math.floor(this.random() * this.#blocks.length);
    if (this.random() < (this.load.reads ?? 0.3)) return this.verify(client, block);
    const known = this.#known(block);
    const version = ++known.sent;
    await client.write(this.#offset(block), this.#content(block, version));
    known.acknowledged = version;
  }

  async verify(client: NbdClient, block: number): Promise<void> {
    const found = await client.read(this.#offset(block), BLOCK);
    const known = this.#known(block);
    const version = found.readUInt32LE(0);
    const isRight =
      version >= known.acknowledged &&
      version <= known.sent &&
      (version === 0 ? found.every((byte) => byte === 0) : found.equals(this.#content(block, version)));
    if (!isRight)
      this.problems.push(
        `client ${this.index}, block ${block}: version ${version}, acknowledged ${known.acknowledged}, sent ${known.sent}`,
      );
    // What was read stays: an older one may not come back.
    if (version > known.acknowledged && version <= known.sent) known.acknowledged = version;
  }

  async verifyAll(client: NbdClient): Promise<void> {
    for (let block = 0; block < this.#blocks.length; block++) await this.verify(client, block);
  }

  #known(block: number): Known {
    const known = this.#blocks[block];
    if (!known) throw new Error(`no block ${block}`);
    return known;
  }

  #offset(block: number): number {
    return (block * this.count + this.index) * BLOCK;
  }

  #content(block: number, version: number): Buffer {
    const content = Buffer.alloc(BLOCK, (version * 31 + block * 7 + this.index) & 0xff);
    for (let at = 0; at < BLOCK; at += 512) {
      content.writeUInt32LE(version, at);
      content.writeUInt32LE(block, at + 4);
      content.writeUInt32LE(this.index, at + 8);
      content.writeUInt32LE(TAG, at + 12);
    }
    return content;
  }
}
