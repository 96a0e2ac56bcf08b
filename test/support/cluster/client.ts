// A simulated client: follows the address of the service as an agent's attachment does, writes unique
// versions to keys of its own, reads them back, and never gives up.
//
// SC1 A version is written again and again, over whatever connection, until it is acknowledged; only
//     then comes the next. What is read is at least the last acknowledged, and at most the one under way.
import type { BrokerEvent } from "../../../src/broker/broker.js";
import type { SimHost, SimProcess } from "./machine.js";
import type { Connection, SimServer } from "./server.js";
import { VOLUME, type World } from "./world.js";

const KEYS = 3;
const PATIENCE_MS = 2500;

export class SimClient {
  readonly process: SimProcess;
  /** acknowledged writes and reads of each epoch */
  readonly answersOf = new Map<bigint, number>();
  readonly acknowledged = new Map<string, number>();
  private target: { readonly epoch: bigint; readonly uri: string } | undefined;
  private connection: Connection | undefined;
  private isConnecting = false;
  private waitingSinceMs = 0;
  private next = 0;
  private under: { readonly key: string; readonly version: number; readonly isRead: boolean } | undefined;
  private heardEpoch = 0n;
  private failures = 0;

  constructor(
    readonly host: SimHost,
    private readonly world: World,
  ) {
    this.process = host.start("client");
    const broker = world.brokerOf(this.process, undefined);
    broker.request({ service: VOLUME }).on((event) => this.heard(event));
    this.process.main.runtime.every(world.universe.chance.between(120, 250), () => this.turn());
    this.reportBad = (epoch) => broker.reportBad(VOLUME, epoch, "it does not answer");
  }

  private readonly reportBad: (epoch: bigint) => void;

  private heard(event: BrokerEvent): void {
    if (event.type === "address") {
      const { epoch, uris } = event;
      this.world.rules.must(epoch >= this.heardEpoch, "F4", () => {
        return `${this.process.name} was told ${epoch} after ${this.heardEpoch}`;
      });
      this.heardEpoch = epoch;
      if (epoch !== this.target?.epoch) this.leave();
      this.target = { epoch, uri: uris[0] ?? "" };
    } else if (event.type === "withdrawn") {
      this.leave();
      this.target = undefined;
    }
  }

  private leave(): void {
    if (this.connection) this.hangUp(this.connection);
    this.connection = undefined;
    this.isConnecting = false;
  }

  /** The server learns of it when it reads again. */
  private hangUp(connection: Connection): void {
    const { process } = connection.server;
    this.world.send(this.host, process.host, () => process.data.run(() => connection.hungUp()));
  }

  private turn(): void {
    const { runtime } = this.process.main;
    const isLate = runtime.monotonicMs() - this.waitingSinceMs > PATIENCE_MS;
    if (!this.connection) {
      if (!this.target || (this.isConnecting && !isLate)) return;
      if (this.isConnecting && ++this.failures % 3 === 0) this.reportBad(this.target.epoch);
      this.isConnecting = true;
      this.waitingSinceMs = runtime.monotonicMs();
      this.connect(this.target);
    } else if (this.under) {
      if (isLate) this.leave();
    } else this.issue();
  }

  private connect({ epoch, uri }: { readonly epoch: bigint; readonly uri: string }): void {
    const server = this.world.serverAt(uri);
    if (!server) return;
    this.world.send(this.host, server.process.host, () =>
      server.process.main.run(() => {
        void server.connect(this, epoch, (connection) =>
          this.reply(connection, () => this.accepted(connection)),
        );
      }),
    );
  }

  private reply(connection: Connection, call: () => void): void {
    this.world.send(connection.server.process.host, this.host, () => this.process.main.run(call));
  }

  private accepted(connection: Connection): void {
    if (connection.server.epoch !== this.target?.epoch || this.connection) {
      this.hangUp(connection);
      return;
    }
    this.connection = connection;
    this.isConnecting = false;
    this.failures = 0;
    this.under = undefined;
    this.issue();
  }

  private issue(): void {
    const { connection } = this;
    if (!connection) return;
    const key = `${this.host.name}-${this.next % KEYS}`;
    const isRead = this.world.universe.chance.is(0.25);
    const version = (this.acknowledged.get(key) ?? 0) + 1;
    this.under = { key, version, isRead };
    this.waitingSinceMs = this.process.main.runtime.monotonicMs();
    this.world.send(this.host, connection.server.process.host, () =>
      connection.server.process.data.run(() => {
        void (isRead
          ? connection.server.read(connection, key)
          : connection.server.write(connection, key, version));
      }),
    );
  }

  refused(server: SimServer): void {
    this.world.send(server.process.host, this.host, () =>
      this.process.main.run(() => {
        this.isConnecting = false;
      }),
    );
  }

  /** The server's end was closed. */
  disconnected(connection: Connection): void {
    this.reply(connection, () => {
      if (this.connection === connection) this.leave();
    });
  }

  written(connection: Connection, key: string, version: number): void {
    this.reply(connection, () => {
      if (connection !== this.connection || this.under?.key !== key || this.under.isRead) return;
      this.acknowledged.set(key, version);
      this.next++;
      this.answered(connection);
    });
  }

  found(connection: Connection, key: string, version: number): void {
    this.reply(connection, () => {
      if (connection !== this.connection || this.under?.key !== key || !this.under.isRead) return;
      const last = this.acknowledged.get(key) ?? 0;
      this.world.rules.must(
        version === last || version === last + 1,
        "W8",
        () => `${this.process.name} read ${version} of ${key}, acknowledged is ${last}`,
      );
      this.answered(connection);
    });
  }

  private answered({ server }: Connection): void {
    this.under = undefined;
    this.answersOf.set(server.epoch, (this.answersOf.get(server.epoch) ?? 0) + 1);
  }
}
