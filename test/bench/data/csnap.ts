/** csnap as a contestant, with as many snapshots as a workload asks for, and one of its snapshots as another. */
import { setTimeout as pause } from "node:timers/promises";
import { ControlClient } from "../../../src/control/client.js";
import type { VolumeRecord } from "../../../src/volume/model.js";
import { Sandbox, type Server } from "../../support/csnap.js";
import { addressOf, NbdClient } from "../../support/nbd-client.js";
import { type Contestant, type Running, type Transport, uriOfPort } from "./contestant.js";
import { processTree } from "./fio.js";
import { dropCache, fillImage } from "./image.js";
import { freePort } from "./peers.js";

const VOLUME = "bench";
const KIB = 1024;
const MIB = 1024 * KIB;
const SETTLE_LIMIT_MS = 300_000;
/** Requests of preparation under way at once. */
const DEPTH = 64;

export interface CsnapOptions {
  readonly chunkKib?: number;
  /** That live while it is measured (1): the newest, which shareAll() replaces, and those taken once at first. */
  readonly snapshots?: number;
  readonly durability?: "flush" | "sync";
}

export class Csnap implements Contestant {
  readonly live = true;
  readonly #sandbox: Sandbox;
  readonly #options: CsnapOptions;
  #prepared: Promise<void> | undefined;
  #server: Server | undefined;
  /** Of snapshots that shareAll() took. */
  #number = 0;
  #newest: string | undefined;
  /** Every chunk since the newest snapshot. */
  #copied = false;

  constructor(
    readonly name: string,
    directory: string,
    readonly bytes: number,
    options: CsnapOptions = {},
  ) {
    this.#sandbox = new Sandbox(directory);
    this.#options = options;
  }

  get originPath(): string {
    return this.#sandbox.path("origin.img");
  }

  get storePath(): string {
    return this.#sandbox.path("store");
  }

  get chunkBytes(): number {
    return (this.#options.chunkKib ?? 16) * KIB;
  }

  /** Of the server that runs. */
  get control(): ControlClient {
    return new ControlClient(this.#sandbox.path(`run/${VOLUME}.control`), VOLUME);
  }

  /** The snapshot that shareAll() took last. */
  get newest(): string {
    if (this.#newest === undefined) throw new Error(`${this.name} has no newest snapshot`);
    return this.#newest;
  }

  prepare(): Promise<void> {
    this.#prepared ??= this.#make();
    return this.#prepared;
  }

  async #make(): Promise<void> {
    fillImage(this.originPath, this.bytes);
    await this.#sandbox.must(
      ...["init", VOLUME, "--origin", this.originPath, "--store", this.storePath, "--progress", "none"],
      ...["--store-size", String(2 * this.bytes), "--chunk-size", String(this.chunkBytes)],
    );
    const older = (this.#options.snapshots ?? 1) - 1;
    if (older <= 0) return;
    const running = await this.start("unix");
    for (let i = 1; i <= older; i++) await this.snapshot(`older${i}`);
    await running.stop();
  }

  async start(transport: Transport): Promise<Running> {
    const port = transport === "tcp" ? await freePort() : undefined;
    const server = await this.#sandbox.serve(
      VOLUME,
      ...["--durability", this.#options.durability ?? "flush"],
      ...(port === undefined ? [] : ["--listen", `127.0.0.1:${port}`]),
    );
    this.#server = server;
    return {
      uri: port === undefined ? server.uri : uriOfPort(port, VOLUME),
      pids: processTree(server.child.pid ?? 0),
      stop: async () => {
        this.#server = undefined;
        await server.stop();
      },
    };
  }

  /** The server that runs, killed with all it had not written. */
  async kill(): Promise<void> {
    await this.#server?.kill();
    this.#server = undefined;
  }

  snapshotUri(name: string): string {
    return this.#server?.exportUri(`${VOLUME}@${name}`) ?? "";
  }

  dropCache(): Promise<void> {
    return dropCache(this.originPath);
  }

  async snapshot(name: string): Promise<void> {
    await this.control.createSnapshot({ name, pinned: false, priority: 50, labels: {} });
  }

  /** The newest snapshot is replaced by one of now, so the number of snapshots stays; what it held has been reclaimed. */
  async shareAll(): Promise<void> {
    if (this.#options.snapshots === 0) return;
    const before = this.#newest;
    this.#number++;
    const name = `s${this.#number}`;
    await this.snapshot(name);
    this.#newest = name;
    this.#copied = false;
    if (before !== undefined) await this.control.deleteSnapshots([before], false);
    await this.settled();
  }

  /** Its space comes free in the background: reclaimed() waits for that. */
  async deleteNewest(): Promise<void> {
    await this.control.deleteSnapshots([this.newest], false);
    this.#newest = undefined;
    this.#copied = false;
  }

  async copyAll(): Promise<void> {
    if (this.#copied) return;
    if (this.#newest === undefined) await this.shareAll();
    const data = Buffer.alloc(4 * KIB, 0x5a);
    await this.#each(this.#server?.uri ?? "", "", this.chunkBytes, (client, offset) =>
      client.write(offset, data),
    );
    await this.settled();
    this.#copied = true;
  }

  /** All of the newest snapshot, so that the checksums of its chunks have been verified. */
  async readNewest(): Promise<void> {
    await this.#each(
      this.snapshotUri(this.newest),
      `${VOLUME}@${this.newest}`,
      MIB,
      async (client, offset) => {
        await client.read(offset, Math.min(MIB, this.bytes - offset));
      },
    );
  }

  /** No deleted snapshot holds space any more. */
  reclaimed(): Promise<void> {
    return this.#until(({ snapshots }) => snapshots.deleting === 0, "snapshots to be reclaimed");
  }

  /** Nothing is being reclaimed, and what was acknowledged is in its place. */
  async settled(): Promise<void> {
    await this.reclaimed();
    await this.#until(({ store }) => store.staged === 0, "staged writes to be in their place");
  }

  /** Writes arrive. */
  async written(): Promise<void> {
    const { counters } = await this.control.status();
    await this.#until((status) => status.counters.writes > counters.writes, "writes to arrive");
  }

  async #until(reached: (status: VolumeRecord) => boolean, what: string): Promise<void> {
    const end = performance.now() + SETTLE_LIMIT_MS;
    while (!reached(await this.control.status())) {
      if (performance.now() > end) throw new Error(`${this.name}: waited ${SETTLE_LIMIT_MS} ms for ${what}`);
      await pause(20);
    }
  }

  async #each(
    uri: string,
    name: string,
    step: number,
    request: (client: NbdClient, offset: number) => Promise<void>,
  ): Promise<void> {
    const client = await NbdClient.open(addressOf(uri), { export: name, timeoutMs: SETTLE_LIMIT_MS });
    let next = 0;
    const worker = async () => {
      while (next < this.bytes) {
        const offset = next;
        next += step;
        await request(client, offset);
      }
    };
    await Promise.all(Array.from({ length: step === MIB ? 4 : DEPTH }, worker));
    await client.flush();
    await client.disconnect();
  }

  async close(): Promise<void> {
    await this.#sandbox.close();
  }
}

/** The newest snapshot of a volume; every chunk of it has its copy in the store, and a checksum that was verified. */
export class CsnapSnapshot implements Contestant {
  readonly live = true;

  constructor(
    readonly name: string,
    private readonly volume: Csnap,
  ) {}

  prepare(): Promise<void> {
    return this.volume.prepare();
  }

  async start(transport: Transport): Promise<Running> {
    const running = await this.volume.start(transport);
    await this.volume.copyAll();
    await this.volume.readNewest();
    return { ...running, uri: this.volume.snapshotUri(this.volume.newest) };
  }

  dropCache(): Promise<void> {
    return this.volume.dropCache();
  }

  /** The volume is closed by itself, as it takes part in every workload that its snapshot does. */
  async close(): Promise<void> {}
}
