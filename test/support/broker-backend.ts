/** What the conformance suite needs of a broker's backend: brokers over one storage, here and in other processes. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import type { Broker, BrokerEvent, ServiceSpec, Ticket } from "../../src/broker/broker.js";

export interface Backend {
  /** Another user of the same storage, in this process. */
  open(): Broker;
  /** URL and state directory for another process. */
  readonly childArguments: readonly string[];
  /** Makes the service's storage hang; returns what makes it answer again. */
  hang(service: string): Promise<() => Promise<void>>;
  /** Makes all that was stored of the service vanish. */
  vanish(service: string): Promise<void>;
  close(): Promise<void>;
}

export const UUID = "11111111-2222-4333-8444-555555555555";
export const OTHER_UUID = "99999999-2222-4333-8444-555555555555";

export interface Answer {
  readonly ok?: boolean;
  readonly event?: string;
  readonly epoch?: string;
  readonly code?: string;
  readonly message?: string;
  readonly reason?: string;
  readonly valid_until?: number;
}

/** A process that uses the broker (broker-child.mjs). */
export class BrokerChild {
  readonly process: ChildProcess;
  readonly said: Answer[] = [];
  readonly #waiting: (() => void)[] = [];

  constructor(childArguments: readonly string[]) {
    const script = fileURLToPath(new URL("broker-child.mjs", import.meta.url));
    this.process = spawn(process.execPath, [script, ...childArguments], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    if (!this.process.stdout) throw new Error("no stdout");
    createInterface({ input: this.process.stdout }).on("line", (line) => {
      this.said.push(JSON.parse(line) as Answer);
      for (const wake of this.#waiting.splice(0)) wake();
    });
    this.process.on("exit", () => {
      for (const wake of this.#waiting.splice(0)) wake();
    });
  }

  async up(): Promise<this> {
    await this.saying((answer) => answer.event === "up");
    return this;
  }

  send(command: string, options: object = {}): void {
    this.process.stdin?.write(`${JSON.stringify({ command, ...options })}\n`);
  }

  /** The answer to this command; one at a time. */
  async ask(command: string, options: object = {}): Promise<Answer> {
    const before = this.said.length;
    this.send(command, options);
    return this.saying((answer) => answer.ok !== undefined, before);
  }

  async must(command: string, options: object = {}): Promise<Answer> {
    const answer = await this.ask(command, options);
    if (!answer.ok) throw new Error(`${command}: ${answer.code} ${answer.message}`);
    return answer;
  }

  async saying(wanted: (answer: Answer) => boolean, from = 0): Promise<Answer> {
    for (;;) {
      const found = this.said.slice(from).find(wanted);
      if (found) return found;
      if (this.isGone) throw new Error(`the process ended; it said ${JSON.stringify(this.said)}`);
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
  }

  get isGone(): boolean {
    return this.process.exitCode !== null || this.process.signalCode !== null;
  }

  async kill(): Promise<void> {
    this.process.kill("SIGKILL");
    await this.gone();
  }

  async gone(): Promise<void> {
    if (!this.isGone) await once(this.process, "exit");
  }
}

/** Listens to a ticket and keeps what it heard. */
export class Ear {
  readonly heard: BrokerEvent[] = [];
  readonly #waiting: (() => void)[] = [];
  readonly off: () => void;

  constructor(ticket: Ticket) {
    this.off = ticket.on((event) => {
      this.heard.push(event);
      for (const wake of this.#waiting.splice(0)) wake();
    });
  }

  /** The first event of this type (and, if given, that satisfies) heard from index `from` on. */
  async until<T extends BrokerEvent["type"]>(
    type: T,
    satisfies: (event: Extract<BrokerEvent, { type: T }>) => boolean = () => true,
    from = 0,
  ): Promise<Extract<BrokerEvent, { type: T }>> {
    const isWanted = (event: BrokerEvent): event is Extract<BrokerEvent, { type: T }> =>
      event.type === type && satisfies(event as Extract<BrokerEvent, { type: T }>);
    for (;;) {
      const found = this.heard.slice(from).find(isWanted);
      if (found) return found;
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
  }

  types(): string[] {
    return this.heard.map((event) => event.type);
  }
}

export function spec(service: string, changes: Partial<ServiceSpec> = {}): ServiceSpec {
  return {
    service,
    kind: "csnap",
    instances: { max: 1, min: 0 },
    volumeUuid: UUID,
    storeClass: "local",
    fencing: { policy: "none" },
    hosts: [],
    ...changes,
  };
}
