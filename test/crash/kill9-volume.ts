/**
 * One volume under verified load whose server is killed with SIGKILL, for kill9.test.ts.
 *
 * 1. Everything the load sends is in the model before it is sent, and acknowledged there after its reply.
 * 2. A snapshot's content is held against the model once and hashed; from then on only the hash counts.
 * 3. What was under way at the kill may have happened or not: names() after the restart decides.
 * 4. Choices come from the seed; how threads and processes interleave does not, so a seed gives a similar run, not the
 *    same.
 */
import { createHash } from "node:crypto";
import { ControlClient } from "../../src/control/client.js";
import type { Sandbox, Server } from "../support/csnap.js";
import { ConnectionLost, NbdClient } from "../support/nbd-client.js";
import { Command, CommandFlag, type Request } from "../support/nbd-requests.js";
import { type Cut, contentOf, type Kind, SECTOR, SectorModel } from "./sector-model.js";

export const SIZE_BYTES = 8 << 20;
export const VOLUME = "vol";
const SECTORS = SIZE_BYTES / SECTOR;
const HOT_SECTORS = 1024;
const CONNECTIONS = 3;
const DEPTH = 6;
/** So many are never answered when the server dies. */
export const REQUESTS_AT_ONCE = CONNECTIONS * DEPTH;
const MANAGERS = ["a", "b"] as const;
const SNAPSHOTS_EACH = 4;
const READ_BYTES = 1 << 20;

export type Random = (below: number) => number;

/** mulberry32 */
export function seeded(seed: number): Random {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}

export type Moment = "acked" | "create" | "created" | "delete" | "deleted";

/** The server dies `delayMs` after the `count`-th such moment. */
export interface Plan {
  readonly moment: Moment;
  readonly count: number;
  readonly delayMs: number;
}

interface Snapshot {
  readonly name: string;
  readonly cut: Cut;
  /** unknown: its creation or deletion was under way when the server died. */
  state: "live" | "unknown";
  hash: string | undefined;
}

export interface Tally {
  acked: number;
  unanswered: number;
  created: number;
  deleted: number;
  cutOff: number;
}

export class Kill9Volume {
  readonly model = new SectorModel(SECTORS);
  readonly snapshots = new Map<string, Snapshot>();
  readonly gone = new Set<string>();
  tally: Tally = { acked: 0, unanswered: 0, created: 0, deleted: 0, cutOff: 0 };
  #killed = false;
  #plan: Plan | undefined;
  #moments = 0;
  #waiting: { until: number; resolve: () => void }[] = [];

  constructor(
    readonly sandbox: Sandbox,
    readonly random: Random,
    private server: Server,
  ) {}

  // ---- One round -----------------------------------------------------------------------------------

  /** Load and snapshots until the plan strikes. Returns when the server is dead and nothing is under way. */
  async runUntilKilled(plan: Plan, limitMs: number): Promise<void> {
    this.tally = { acked: 0, unanswered: 0, created: 0, deleted: 0, cutOff: 0 };
    this.#killed = false;
    this.#plan = plan;
    this.#moments = 0;
    const clients = await Promise.all(
      Array.from({ length: CONNECTIONS }, () => NbdClient.open(this.server.uri, { structured: true })),
    );
    const limit = setTimeout(() => this.#kill(), limitMs);
    const workers = [
      ...clients.flatMap((client) => Array.from({ length: DEPTH }, () => this.#load(client))),
      ...MANAGERS.map((manager) => this.#manage(manager)),
    ];
    const failures: unknown[] = [];
    await Promise.all(
      workers.map((worker) =>
        worker.catch((error: unknown) => {
          failures.push(error);
          this.#kill();
        }),
      ),
    );
    clearTimeout(limit);
    await this.server.exit();
    for (const client of clients) client.destroy();
    for (const { cut } of this.snapshots.values()) this.model.endCut(cut);
    if (failures.length > 0) throw failures[0];
  }

  /** The server runs again: everything acknowledged must be there, and every snapshot unchanged. */
  async verify(server: Server): Promise<void> {
    this.server = server;
    await this.#verifyNames();
    this.model.settle(await this.#content(VOLUME));
    for (const snapshot of this.snapshots.values()) await this.#verifySnapshot(snapshot);
  }

  async #verifyNames(): Promise<void> {
    const listed = new Set((await this.#control().snapshots()).map(({ name }) => name));
    for (const name of this.gone) {
      if (listed.has(name)) throw new Error(`@${name} is listed although its deletion returned`);
    }
    for (const snapshot of [...this.snapshots.values()]) {
      const { name } = snapshot;
      if (listed.delete(name)) snapshot.state = "live";
      else if (snapshot.state === "unknown") this.snapshots.delete(name);
      else throw new Error(`@${name} is gone although nobody deleted it`);
    }
    if (listed.size > 0) throw new Error(`nobody asked for ${[...listed].join(", ")}`);
    for (const name of this.gone) {
      const client = await NbdClient.open(this.server.uri, { export: `${VOLUME}@${name}` }).catch(() => {});
      if (client !== undefined) throw new Error(`@${name} is exported although its deletion returned`);
    }
  }

  async #verifySnapshot(snapshot: Snapshot): Promise<void> {
    const content = await this.#content(`${VOLUME}@${snapshot.name}`);
    const hash = createHash("sha256").update(content).digest("hex");
    if (snapshot.hash === hash) return;
    const was = snapshot.hash === undefined ? "" : " It was read right after its creation, and is other now:";
    try {
      this.model.checkCut(snapshot.cut, content);
    } catch (error) {
      throw new Error(`@${snapshot.name}:${was} ${(error as Error).message}`);
    }
    if (snapshot.hash !== undefined) throw new Error(`@${snapshot.name} has changed since it was created`);
    snapshot.hash = hash;
  }

  async #content(name: string): Promise<Buffer> {
    const client = await NbdClient.open(this.server.uri, { export: name, structured: true });
    try {
      const pieces: Buffer[] = [];
      for (let offset = 0; offset < SIZE_BYTES; offset += READ_BYTES)
        pieces.push(await client.read(offset, READ_BYTES));
      return Buffer.concat(pieces);
    } finally {
      client.destroy();
    }
  }

  #control(): ControlClient {
    return new ControlClient(this.sandbox.path(`run/${VOLUME}.control`), VOLUME);
  }

  // ---- The kill ------------------------------------------------------------------------------------

  #kill(): void {
    if (this.#killed) return;
    this.#killed = true;
    this.server.child.kill("SIGKILL");
    for (const { resolve } of this.#waiting.splice(0)) resolve();
  }

  #strike(moment: Moment): void {
    if (this.#plan?.moment !== moment || ++this.#moments !== this.#plan.count) return;
    if (this.#plan.delayMs === 0) this.#kill();
    else setTimeout(() => this.#kill(), this.#plan?.delayMs);
  }

  /** Resolves after so many more acknowledgements, or when the server is dead. */
  #acks(count: number): Promise<void> {
    if (this.#killed) return Promise.resolve();
    return new Promise((resolve) => {
      this.#waiting.push({ until: this.tally.acked + count, resolve });
    });
  }

  #acked(): void {
    this.tally.acked += 1;
    this.#waiting = this.#waiting.filter(({ until, resolve }) => {
      if (until <= this.tally.acked) resolve();
      return until > this.tally.acked;
    });
    this.#strike("acked");
  }

  // ---- Load ----------------------------------------------------------------------------------------

  /** Goes on after the kill until the connection ends: the server dies with requests under way. */
  async #load(client: NbdClient): Promise<void> {
    for (;;) {
      try {
        await this.#request(client);
      } catch (error) {
        if (this.#killed && error instanceof ConnectionLost) {
          this.tally.unanswered += 1;
          return;
        }
        throw new Error(`${(error as Error).message}; the server's log: ${this.server.log}`);
      }
      this.#acked();
    }
  }

  /** Small and large, aligned to nothing but sectors, half of them where others write as well. */
  #range(most: number): [first: number, count: number] {
    const count = 1 + this.random(this.random(8) === 0 ? most : 16);
    const area = this.random(2) === 0 ? HOT_SECTORS : SECTORS;
    return [this.random(area - count + 1), count];
  }

  async #request(client: NbdClient): Promise<void> {
    const dice = this.random(100);
    const flags = this.random(10) === 0 ? CommandFlag.FUA : 0;
    if (dice < 70) await this.#change(client, "write", { command: Command.WRITE, flags }, 256);
    else if (dice < 78) {
      const hole = this.random(2) === 0 ? CommandFlag.NO_HOLE : 0;
      await this.#change(client, "zero", { command: Command.WRITE_ZEROES, flags: flags | hole }, 512);
    } else if (dice < 83) await this.#change(client, "trim", { command: Command.TRIM, flags }, 512);
    else if (dice < 88) await client.flush();
    else {
      const [first, count] = this.#range(256);
      const check = this.model.beginRead(first, count);
      check(await client.read(first * SECTOR, count * SECTOR));
    }
  }

  async #change(client: NbdClient, kind: Kind, request: Request, most: number): Promise<void> {
    const operation = this.model.issue(kind, ...this.#range(most));
    const { first, count } = operation;
    const data = kind === "write" ? { data: contentOf(operation) } : { length: count * SECTOR };
    await client.must({ ...request, offset: first * SECTOR, ...data });
    this.model.acknowledge(operation);
  }

  // ---- Snapshots -----------------------------------------------------------------------------------

  /** Creates and deletes its own snapshots; two managers do so at once. */
  async #manage(manager: string): Promise<void> {
    for (;;) {
      await this.#acks(1 + this.random(150));
      if (this.#killed) return;
      const own = [...this.snapshots.values()].filter(({ name }) => name.startsWith(manager));
      const victim = own[this.random(Math.max(1, own.length))];
      if (victim === undefined || (own.length < SNAPSHOTS_EACH && this.random(5) < 3))
        await this.#create(manager);
      else await this.#delete(victim);
    }
  }

  async #create(manager: string): Promise<void> {
    const numbers = Array.from({ length: SNAPSHOTS_EACH + 2 }, (_, i) => `${manager}${i}`);
    const free = numbers.filter((name) => !this.snapshots.has(name));
    const name = free[this.random(free.length)] as string;
    const snapshot: Snapshot = { name, cut: this.model.beginCut(), state: "unknown", hash: undefined };
    this.snapshots.set(name, snapshot);
    this.gone.delete(name);
    const done = this.random(12) === 0 ? this.#createByCommand(name) : this.#createByControl(name);
    this.#strike("create");
    if (!(await done)) return;
    this.model.endCut(snapshot.cut);
    snapshot.state = "live";
    this.tally.created += 1;
    this.#strike("created");
    await this.#survivingKill(() => this.#verifySnapshot(snapshot));
  }

  async #createByControl(name: string): Promise<boolean> {
    const request = { name, pinned: false, priority: 50, labels: {} };
    return this.#survivingKill(() => this.#control().createSnapshot(request));
  }

  async #createByCommand(name: string): Promise<boolean> {
    const { status, stderr } = await this.sandbox.csnap("snapshot", `${VOLUME}@${name}`);
    if (status !== 0 && !this.#killed) throw new Error(`csnap snapshot ended with ${status}: ${stderr}`);
    if (status !== 0) this.tally.cutOff += 1;
    return status === 0;
  }

  async #delete(snapshot: Snapshot): Promise<void> {
    const { name } = snapshot;
    snapshot.state = "unknown";
    const done = this.#survivingKill(() => this.#control().deleteSnapshots([name], false));
    this.#strike("delete");
    if (!(await done)) return;
    this.snapshots.delete(name);
    this.gone.add(name);
    this.tally.deleted += 1;
    this.#strike("deleted");
  }

  /** False if the server died meanwhile. */
  async #survivingKill(attempt: () => Promise<unknown>): Promise<boolean> {
    try {
      await attempt();
      return true;
    } catch (error) {
      const lost = error instanceof ConnectionLost || isConnectionError(error);
      if (!this.#killed || !lost) throw error;
      this.tally.cutOff += 1;
      return false;
    }
  }
}

/** What connecting to a dead server, or asking one that dies, gives. */
function isConnectionError(error: unknown): boolean {
  const code = (error as { code?: unknown }).code;
  return ["ECONNREFUSED", "ECONNRESET", "ENOENT", "EPIPE", "NOT_SERVED", "PROTOCOL"].includes(String(code));
}
