// The servers that this host's agent runs: a warm spare for each volume that it may be told to start,
// which becomes the server when an order comes, and orphans of a former agent. The agent's side of the
// broker (InstanceAgent).
//
// AS1 A spare has loaded everything and opened nothing; it ends with the agent (its standard input
//     does). A server that was activated goes on without the agent.
// AS2 Nothing but an order activates a spare (F7); one spare takes one order.
// AS3 'dead' is only said of a process that was reaped, or that the kernel does not know any more.
// AS4 A server that answers no handshake for probeLimitMs is reported; only a second silence, by the
//     broker's own question, has it replaced: one that is merely slow answers.
import { type ChildProcess, spawn } from "node:child_process";
import type { Broker, InstanceAgent, Reservation, StartedInstance, StartOrder } from "../broker/broker.js";
import {
  type IsAlive,
  isAlive,
  isOfThisHost,
  ownIdentity,
  type ProcessIdentity,
} from "../broker/process_identity.js";
import { nodeRuntime, type Runtime, sleep, type Timer, within } from "../broker/runtime.js";
import { messageOf } from "../volume/errors.js";
import type { DeviceFence } from "./device_fence.js";
import { type DialOptions, DialRefused, look } from "./dial.js";
import { ServiceTallies } from "./tally.js";

/** From SIGKILL to the end of a process that is not stuck in the kernel. */
const killLimitMs = 5000;
const probeLimitMs = 2000;
const pollMs = 50;
const probeEveryMs = 3000;

/** What is used of a child process. */
export interface ServerProcess extends Pick<ChildProcess, "pid" | "kill" | "unref"> {
  readonly stdin: {
    on(event: "error", listener: () => void): unknown;
    write(text: string): unknown;
    end(): unknown;
    destroy(): unknown;
  } | null;
  once(event: "error", listener: (error: Error) => void): unknown;
  once(event: "exit", listener: (status: number | null, signal: NodeJS.Signals | null) => void): unknown;
}

/** Starts `csnap serve VOLUME --standby`; its standard input takes the order. */
export type ServerLauncher = (volume: string) => ServerProcess;

/** The host as its agent meets it. */
export interface AgentHost {
  readonly self: ProcessIdentity;
  readonly isAlive: IsAlive;
  /** Throws if there is no such process. */
  readonly signal: (pid: number, signal: NodeJS.Signals) => void;
  /** dial.ts: whether a server answers, and what */
  readonly look: (options: DialOptions) => Promise<unknown>;
  readonly runtime: Runtime;
}

function thisHost(): AgentHost {
  const signal = (pid: number, name: NodeJS.Signals) => void process.kill(pid, name);
  return { self: ownIdentity(), isAlive, signal, look, runtime: nodeRuntime };
}

/** `program`: node and csnap's script, with the global options of this agent. */
export function launcher(program: readonly string[], env: NodeJS.ProcessEnv): ServerLauncher {
  const [command = process.execPath, ...args] = program;
  return (volume) =>
    spawn(command, [...args, "serve", volume, "--standby"], { env, stdio: ["pipe", "ignore", "inherit"] });
}

interface Spare {
  readonly process: ServerProcess;
  readonly ended: Promise<string>;
}

interface Running extends Spare {
  readonly order: StartOrder;
}

export class HostServers implements InstanceAgent {
  private readonly spares = new Map<string, Spare>();
  private readonly running = new Map<string, Running>();
  readonly tallies = new ServiceTallies();
  private closed = false;
  private readonly timer: Timer;

  constructor(
    private readonly broker: Broker,
    private readonly launch: ServerLauncher,
    private readonly fenceDevices: DeviceFence,
    private readonly log: (line: string) => void,
    private readonly host: AgentHost = thisHost(),
  ) {
    this.timer = host.runtime.every(probeEveryMs, () => this.probeAll());
  }

  prepare(service: string): void {
    if (this.closed || this.spares.has(service)) return;
    this.spares.set(service, this.startSpare(service));
  }

  private startSpare(service: string): Spare {
    const child = this.launch(service);
    const ended = new Promise<string>((resolve) => {
      child.once("error", (error) => resolve(`its process could not be started: ${messageOf(error)}`));
      child.once("exit", (status, signal) =>
        resolve(signal ? `its process was killed by ${signal}` : `its process ended with status ${status}`),
      );
    });
    // Told on its own exit; a write to one that has gone is no news.
    child.stdin?.on("error", () => {});
    const spare = { process: child, ended };
    void ended.then(() => {
      if (this.spares.get(service) === spare) this.spares.delete(service);
    });
    return spare;
  }

  /** AS2 */
  async start(order: StartOrder, signal: AbortSignal): Promise<StartedInstance> {
    const { service, instance } = order;
    signal.throwIfAborted();
    const known = this.running.get(instance);
    if (known) return { ended: known.ended };
    const spare = this.spares.get(service) ?? this.startSpare(service);
    this.spares.delete(service);
    const server = { ...spare, order };
    this.running.set(instance, server);
    this.tallies.started(service);
    server.process.once("exit", (status) => {
      if (status !== 0) this.tallies.lost(service, "died");
    });
    void server.ended.then((why) => {
      this.running.delete(instance);
      this.log(`${service}: server with epoch ${order.epoch}: ${why}`);
    });
    server.process.stdin?.write(`${JSON.stringify({ instance, epoch: String(order.epoch) })}\n`);
    this.log(`${service}: starting its server, process ${server.process.pid}, epoch ${order.epoch}`);
    return { ended: server.ended };
  }

  async stop(order: StartOrder, graceMs: number): Promise<"stopped" | "dead" | "unknown"> {
    const server = this.running.get(order.instance);
    if (!server) return this.stopOrphan(order, graceMs);
    server.process.kill("SIGTERM");
    if (await this.endsWithin(server, graceMs)) return "stopped";
    server.process.kill("SIGKILL");
    return (await this.endsWithin(server, killLimitMs)) ? "dead" : "unknown";
  }

  private endsWithin({ ended }: Running, limitMs: number): Promise<boolean> {
    const end = ended.then(() => true);
    return within(this.host.runtime, limitMs, end, () => false);
  }

  /** One that a former agent started: known by the broker's record. */
  private async stopOrphan(
    { service, instance }: StartOrder,
    graceMs: number,
  ): Promise<"stopped" | "dead" | "unknown"> {
    const view = await this.broker.describe(service);
    if (view?.instance !== instance || !view.holder) return "unknown";
    const { host, machine, bootId: boot_id, pid, startTime: start_time } = view.holder;
    const process = { host, machine, boot_id, pid, start_time };
    if (!isOfThisHost(process, this.host.self)) return "unknown";
    for (const [signal, limitMs, outcome] of [
      ["SIGTERM", graceMs, "stopped"],
      ["SIGKILL", killLimitMs, "dead"],
    ] as const) {
      if (await this.signalled(process, signal, limitMs)) return outcome;
    }
    return "unknown";
  }

  /** Whether the process is gone within the limit. */
  private async signalled(
    identity: ProcessIdentity,
    signal: NodeJS.Signals,
    limitMs: number,
  ): Promise<boolean> {
    const { isAlive, runtime } = this.host;
    const endMs = runtime.monotonicMs() + limitMs;
    if (!(await isAlive(identity))) return true;
    try {
      this.host.signal(identity.pid, signal);
    } catch {
      // Gone between the two.
    }
    while (runtime.monotonicMs() < endMs) {
      if (!(await isAlive(identity))) return true;
      await sleep(runtime, pollMs);
    }
    return false;
  }

  fenced(service: string, method: string, confirmed: boolean): void {
    this.tallies.fenced(service, method, confirmed);
  }

  async fence(service: string, reservation: Reservation): Promise<void> {
    this.log(`${service}: reserving its devices for this host`);
    try {
      await this.fenceDevices(service, reservation);
    } catch (error) {
      this.log(`${service}: its devices are not reserved for this host: ${messageOf(error)}`);
      throw error;
    }
    this.log(`${service}: its devices are reserved for this host, no other can write to them`);
  }

  async probe({ service, instance }: StartOrder): Promise<boolean> {
    const view = await this.broker.describe(service);
    if (view?.instance !== instance || !view.address) return true;
    const [uri] = view.address.uris;
    if (uri === undefined) return true;
    return this.host.look({ uri, exportName: service, limitMs: probeLimitMs }).then(
      () => true,
      // A refusal (TLS, access rules) is an answer.
      (error: unknown) => error instanceof DialRefused,
    );
  }

  /** AS4 */
  private probeAll(): void {
    for (const { order } of this.running.values()) {
      void this.probe(order).then(
        (answers) => {
          if (!answers)
            this.broker.reportBad(order.service, order.epoch, `no handshake within ${probeLimitMs / 1000} s`);
        },
        () => {
          // The broker does not answer: nothing is known of the server.
        },
      );
    }
  }

  /** Spares end; servers go on (AS1). */
  close(): void {
    this.closed = true;
    this.timer.cancel();
    for (const { process } of this.spares.values()) process.stdin?.end();
    for (const { process } of this.running.values()) {
      process.stdin?.destroy();
      process.unref();
    }
  }
}
