// A simulated `csnap serve --standby`: the order of things is that of src/server/serve.ts; the claim, the
// grant, its renewals and the term are the shipped ones; the data path and its gate are models of the
// core's.
import type { Broker, StartOrder } from "../../../src/broker/broker.js";
import { claimEpoch } from "../../../src/broker/claim_epoch.js";
import type { NativeGates } from "../../../src/broker/lease_keeper.js";
import { sleep, within } from "../../../src/broker/runtime.js";
import { Term } from "../../../src/server/term.js";
import { CsnapError } from "../../../src/volume/errors.js";
import type { SimClient } from "./client.js";
import type { SimProcess } from "./machine.js";
import { VOLUME, type World } from "./world.js";

/** as in serve.ts and open.ts */
const drainLimitMs = 30_000;
const lostCloseLimitMs = 5_000;
const lockWaitMs = 1000;
const lockRetryMs = 50;
/** How often the store's epoch is looked at again (F3). */
const lookEveryMs = 1000;

export class Connection {
  isOpen = true;
  inFlight = 0;

  constructor(
    readonly client: SimClient,
    readonly server: SimServer,
    public former: Connection | undefined,
  ) {}

  /** The client's end was closed. */
  hungUp(): void {
    this.isOpen = false;
  }

  /** Something that was issued on it, or on one before it, is still under way. */
  get isBusy(): boolean {
    return this.inFlight > 0 || this.former?.isBusy === true;
  }

  /** At the server's end; the client hears of it. */
  cut(): void {
    if (!this.isOpen) return;
    this.isOpen = false;
    this.client.disconnected(this);
  }
}

export class SimServer {
  instance = "";
  epoch = 0n;
  isRecovered = false;
  /** slots of the superblock with its epoch */
  stamped = 0;
  isListening = false;
  /** It opened the store for writing, and has not closed it. */
  private isOpen = false;
  private isFenced = false;
  private isStopping = false;
  private inFlight = 0;
  private readonly connections = new Map<SimClient, Connection>();
  private readonly gates = new Map<number, { untilMs: number; isShut: boolean }>();
  private gate: number | undefined;
  private end: ((how: { readonly lost: boolean }) => void) | undefined;

  constructor(
    readonly process: SimProcess,
    private readonly world: World,
  ) {
    process.onInput = (text) => this.input(text);
    process.onSigterm = () => process.exit(1);
    world.rules.servers.add(this);
    process.onGone = () => world.rules.servers.delete(this);
  }

  get uri(): string {
    return `sim:${this.process.name}`;
  }

  /** Whether anything of it can still reach the store. */
  get mayWrite(): boolean {
    return this.isOpen && this.process.state !== "gone";
  }

  /** AS1 of servers.ts. */
  private input(text: string | undefined): void {
    if (text === undefined) {
      if (this.instance === "") this.process.exit(0);
      return;
    }
    if (this.instance !== "") return;
    const { instance, epoch } = JSON.parse(text) as { instance: string; epoch: string };
    this.instance = instance;
    this.epoch = BigInt(epoch);
    this.world.rules.activated({ service: VOLUME, instance, epoch: this.epoch }, this.process);
    this.serve({ service: VOLUME, instance, epoch: this.epoch }).then(
      () => this.process.exit(0),
      (error: unknown) => {
        this.world.universe.trace(`${this.process.name}: ${error}`);
        this.process.exit(1);
      },
    );
  }

  private async serve(order: StartOrder): Promise<void> {
    const { process, world } = this;
    const { runtime } = process.main;
    const broker: Broker = world.brokerOf(process, this.nativeGates());
    const native = { readStore: async () => ({ epoch: await world.store.readEpoch(process) }) };
    const definition = { name: VOLUME, uuid: world.uuid, store: "shared", origin: "shared", serve: {} };
    const grant = await claimEpoch(broker, native, definition, {
      purpose: "serve",
      instance: order.instance,
      ordered: true,
    });
    this.epoch = grant.epoch;
    this.gate = grant.gate;
    const log = (line: string) => world.universe.trace(`${process.name}: ${line}`);
    const term = new Term(grant, log, (_service, uri) => this.probe(uri), runtime);
    const ended = new Promise<{ readonly lost: boolean }>((resolve) => {
      this.end = resolve;
    });
    process.onSigterm = () => this.end?.({ lost: false });
    try {
      await this.open(term.epoch);
      term.listen(
        () => this.end?.({ lost: false }),
        () => this.end?.({ lost: true }),
      );
      this.isListening = true;
      await term.publish({ uris: [this.uri] });
    } catch (error) {
      this.cutAll();
      await this.close();
      await term.release();
      throw error;
    }
    const watch = runtime.every(lookEveryMs, () => void this.lookForNewer());
    const { lost } = await ended;
    watch.cancel();
    if (lost) {
      this.cutAll();
      const closed = this.close().then(() => true);
      if (await within(runtime, lostCloseLimitMs, closed, () => false)) await term.release();
      throw new CsnapError("FENCED", "its grant has ended");
    }
    await term.withdraw("stopping");
    this.isStopping = true;
    await within(runtime, drainLimitMs, this.drained(), () => {});
    this.cutAll();
    await this.close();
    await term.release();
  }

  /** F3: both slots, one after the other, before anything is served. */
  private async open(epoch: bigint): Promise<void> {
    const { process, world } = this;
    const { host } = process;
    const { runtime } = process.main;
    for (const endMs = runtime.monotonicMs() + lockWaitMs; host.storeUser; await sleep(runtime, lockRetryMs))
      if (runtime.monotonicMs() >= endMs) throw new CsnapError("BUSY", "the store is locked");
    host.storeUser = process;
    if (world.faults.opensFail) throw new CsnapError("IO_ERROR", "the store can't be read");
    const found = await world.store.readEpoch(process);
    if (found >= epoch) throw new CsnapError("FENCED", `the store has epoch ${found}`);
    this.isOpen = true;
    for (const slot of [0, 1] as const) {
      if (!this.gateIsOpen()) throw new CsnapError("FENCED", "its grant has ended");
      await world.store.stamp(process, slot, epoch);
      this.stamped++;
      if (world.mistakes.has("stamps one slot")) break;
    }
    if (world.faults.startsHang) process.main.isStuck = true;
    await world.store.io(process, () => {});
    await sleep(runtime, world.universe.chance.between(1, 60));
    this.isRecovered = true;
  }

  private async probe(uri: string): Promise<void> {
    if (this.world.mistakes.has("publishes without a probe")) return;
    await this.world.look(this.process, uri);
    this.world.rules.answered(this);
  }

  private async lookForNewer(): Promise<void> {
    if ((await this.world.store.readEpoch(this.process)) <= this.epoch) return;
    this.isFenced = true;
    this.end?.({ lost: true });
  }

  private nativeGates(): NativeGates {
    const { host } = this.process;
    return {
      createGate: () => {
        const gate = this.gates.size + 1;
        this.gates.set(gate, { untilMs: Number.NEGATIVE_INFINITY, isShut: false });
        return gate;
      },
      extendGate: (number, deadlineMs) => {
        const gate = this.gates.get(number);
        if (gate && !gate.isShut) gate.untilMs = Math.max(gate.untilMs, deadlineMs);
      },
      shutGate: (number) => {
        const gate = this.gates.get(number);
        if (gate) gate.isShut = true;
      },
      boottimeMs: () => host.boottimeMs(),
    };
  }

  private gateIsOpen(): boolean {
    const gate = this.gates.get(this.gate ?? 0);
    return (
      gate !== undefined && !gate.isShut && this.process.host.boottimeMs() < gate.untilMs && !this.isFenced
    );
  }

  /** On the main thread: the handshake. F5: the client's former connection ends and drains first. */
  async connect(client: SimClient, epoch: bigint, accepted: (connection: Connection) => void): Promise<void> {
    if (!this.isListening || this.isStopping || epoch !== this.epoch) {
      client.refused(this);
      return;
    }
    const former = this.connections.get(client);
    const connection = new Connection(client, this, former);
    this.connections.set(client, connection);
    former?.cut();
    while (former?.isBusy) await sleep(this.process.main.runtime, 5);
    connection.former = undefined;
    if (connection.isOpen && this.isListening) accepted(connection);
    else connection.cut();
  }

  /** On the native threads. F2: the gate before the I/O is issued, and after it has completed. */
  async write(connection: Connection, key: string, version: number): Promise<void> {
    if (!connection.isOpen || this.isStopping) return;
    if (!this.gateIsOpen() && !this.world.mistakes.has("issues past the gate")) {
      connection.cut();
      return;
    }
    this.begin(connection);
    this.world.rules.issued(this);
    await this.world.store.write(this.process, key, { version, epoch: this.epoch });
    this.finish(connection, () => connection.client.written(connection, key, version));
  }

  async read(connection: Connection, key: string): Promise<void> {
    if (!connection.isOpen || this.isStopping) return;
    if (!this.gateIsOpen()) {
      connection.cut();
      return;
    }
    this.begin(connection);
    let version = 0;
    await this.world.store.io(this.process, () => {
      version = this.world.store.data.get(key)?.version ?? 0;
    });
    this.finish(connection, () => connection.client.found(connection, key, version));
  }

  private begin(connection: Connection): void {
    connection.inFlight++;
    this.inFlight++;
  }

  private finish(connection: Connection, reply: () => void): void {
    connection.inFlight--;
    this.inFlight--;
    if (!connection.isOpen) return;
    if (!this.gateIsOpen() && !this.world.mistakes.has("acknowledges past the gate")) {
      connection.cut();
      return;
    }
    this.world.rules.acknowledged(this);
    reply();
  }

  private cutAll(): void {
    this.isListening = false;
    this.isStopping = true;
    for (const connection of this.connections.values()) connection.cut();
  }

  private async drained(): Promise<void> {
    while (this.inFlight > 0) await sleep(this.process.main.runtime, 5);
  }

  /** The last write is the clean mark, which a closed gate forbids. */
  private async close(): Promise<void> {
    await this.drained();
    if (this.isOpen && this.gateIsOpen()) await this.world.store.stamp(this.process, 0, this.epoch);
    this.isOpen = false;
    if (this.process.host.storeUser === this.process) this.process.host.storeUser = undefined;
  }

  /** Whether it still has the store open; for the end of a schedule. */
  get isServing(): boolean {
    return this.isOpen && this.isListening && this.process.state === "alive";
  }
}
