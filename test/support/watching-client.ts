/**
 * A client that believes no broker: it keeps a read-only connection to every host that may serve, asks there at a steady
 * pace whether or not answers come, and so hears a server that goes on after its term. What it reads of a block may never
 * become older, whoever answers; and the content of a snapshot, read again under every term, may never change (I4).
 */
import { createHash, randomUUID } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";
import { NbdClient } from "./nbd-client.js";
import { monotonicMs, TermSpans } from "./term-spans.js";
import { BLOCK, isSilence } from "./verified-client.js";

const PACE_MS = 25;
const RETRY_MS = 200;
/** Longer than any host is stopped: what was asked meanwhile is answered then, or never. */
const ANSWER_LIMIT_MS = 20_000;
const OUTSTANDING_MAX = 2000;
const PIECE = 64 * BLOCK;
/** The protocol's own, at which the hosts listen. */
const NBD_PORT = 10809;

interface WatchedSnapshot {
  hash: string | undefined;
  epoch: number;
}

export class WatchingClient {
  readonly acknowledged = new TermSpans();
  readonly problems: string[] = [];
  /** How often a snapshot was found as it was under another term. */
  compared = 0;
  /** By block: the newest version that was read. */
  readonly #newest: number[];
  readonly #snapshots = new Map<string, WatchedSnapshot>();
  /** The newest term that answered, and where. */
  #latest: { readonly epoch: number; readonly host: string } | undefined;
  #stopping = false;
  #done: Promise<unknown> = Promise.resolve();

  constructor(
    private readonly hosts: readonly string[],
    readonly volume: string,
    blocks: number,
    private readonly random: () => number,
  ) {
    this.#newest = Array.from({ length: blocks }, () => 0);
  }

  start(): void {
    this.#done = Promise.all([...this.hosts.map((host) => this.#watch(host)), this.#watchSnapshots()]);
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    await this.#done;
  }

  /** Its content is read at once, and again under every term from now on. */
  addSnapshot(name: string): void {
    this.#snapshots.set(name, { hash: undefined, epoch: 0 });
  }

  removeSnapshot(name: string): void {
    this.#snapshots.delete(name);
  }

  async #watch(host: string): Promise<void> {
    const attachment = randomUUID();
    for (let attempt = 1; !this.#stopping; attempt++) {
      try {
        const client = await NbdClient.open(
          { host, port: NBD_PORT },
          {
            export: `${this.volume}?attachment=${attachment}.${attempt}&ro`,
            timeoutMs: ANSWER_LIMIT_MS,
            described: true,
          },
        );
        await this.#askOn(client, host);
        client.destroy();
      } catch (error) {
        this.#judge(error);
      }
      await pause(RETRY_MS);
    }
  }

  /** Until the connection ends. */
  async #askOn(client: NbdClient, host: string): Promise<void> {
    const { epoch } = client;
    let outstanding = 0;
    let isOver = false;
    while (!this.#stopping && !isOver) {
      if (outstanding < OUTSTANDING_MAX) {
        outstanding++;
        this.#ask(client, host, epoch)
          .catch((error: unknown) => {
            isOver = true;
            this.#judge(error);
          })
          .finally(() => outstanding--);
      }
      await pause(PACE_MS);
    }
  }

  async #ask(client: NbdClient, host: string, epoch: number): Promise<void> {
    const block = Math.floor(this.random() * this.#newest.length);
    const before = this.#newest[block] ?? 0;
    const askedMs = monotonicMs();
    const content = await client.read(block * BLOCK, BLOCK);
    this.acknowledged.saw(epoch, askedMs, monotonicMs());
    if (epoch > (this.#latest?.epoch ?? 0)) this.#latest = { epoch, host };
    const version = content.readUInt32LE(0);
    if (version < before)
      this.problems.push(
        `block ${block}: version ${version} of epoch ${epoch}, after version ${before} was read`,
      );
    this.#newest[block] = Math.max(version, this.#newest[block] ?? 0);
  }

  async #watchSnapshots(): Promise<void> {
    while (!this.#stopping) {
      const latest = this.#latest;
      for (const [name, snapshot] of this.#snapshots)
        if (latest && snapshot.epoch < latest.epoch) await this.#compare(name, snapshot, latest);
      await pause(PACE_MS);
    }
  }

  async #compare(
    name: string,
    snapshot: WatchedSnapshot,
    { host, epoch }: { readonly host: string; readonly epoch: number },
  ): Promise<void> {
    try {
      const address = { host, port: NBD_PORT };
      const client = await NbdClient.open(address, { export: `${this.volume}@${name}`, timeoutMs: 3000 });
      const hash = await this.#hash(client);
      client.destroy();
      if (snapshot.hash === undefined) snapshot.hash = hash;
      else if (snapshot.hash === hash) this.compared++;
      else if (this.#snapshots.has(name))
        this.problems.push(`snapshot ${name} has changed: read under epoch ${epoch}`);
      snapshot.epoch = epoch;
    } catch (error) {
      // Of one that is being deleted an error is the right answer.
      if (this.#snapshots.has(name)) this.#judge(error);
    }
  }

  async #hash(client: NbdClient): Promise<string> {
    const hash = createHash("sha256");
    for (let at = 0; at < this.#newest.length * BLOCK; at += PIECE)
      hash.update(await client.read(at, Math.min(PIECE, this.#newest.length * BLOCK - at)));
    return hash.digest("hex");
  }

  #judge(error: unknown): void {
    if (!isSilence(error)) this.problems.push(error instanceof Error ? error.message : String(error));
  }
}
