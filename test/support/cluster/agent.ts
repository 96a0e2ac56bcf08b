// A simulated `csnap agent`: the shipped HostServers and the shipped runner behind registerAgent(), with
// simulated processes to start. Its service manager starts it again whenever it ends.
import { HostServers, type ServerProcess } from "../../../src/agent/servers.js";
import type { SimHost, SimProcess } from "./machine.js";
import { SimServer } from "./server.js";
import { VOLUME, type World } from "./world.js";

export class SimAgent {
  process: SimProcess | undefined;

  constructor(
    readonly host: SimHost,
    private readonly world: World,
  ) {}

  start(): void {
    const { host, world } = this;
    const { time, chance } = world.universe;
    if (!host.isOn || this.process?.state === "alive") return;
    const { boots } = host;
    const process = host.start("agent");
    this.process = process;
    process.onExit(() =>
      time.after(chance.between(200, 2000), () => {
        if (host.boots === boots) this.start();
      }),
    );
    process.main.later(chance.between(50, 400), () => {
      const broker = world.brokerOf(process, undefined);
      // Its volume is declared with a power switch.
      const noReservations = () => Promise.reject(new Error("these devices take none"));
      const servers = new HostServers(
        broker,
        () => this.launch(process),
        noReservations,
        world.universe.trace,
        {
          self: process.identity,
          isAlive: async (identity) => host.isAlive(identity),
          signal: (pid, name) => host.processes.get(pid)?.signal(name),
          look: ({ uri }) => world.look(process, uri),
          runtime: process.main.runtime,
        },
      );
      broker.registerAgent({ service: VOLUME, host: host.name }, servers);
      if (world.mistakes.has("starts without a claim"))
        void servers.start({ service: VOLUME, instance: "none", epoch: 1n }, new AbortController().signal);
    });
  }

  private launch(agent: SimProcess): ServerProcess {
    const child = this.host.start("server", agent);
    new SimServer(child, this.world);
    const { chance } = this.world.universe;
    const readyMs = chance.between(20, 300);
    const input = (text: string | undefined, delayMs: number) =>
      child.main.later(delayMs, () => child.onInput?.(text));
    return {
      pid: child.pid,
      stdin: {
        on: () => {},
        // Read once the spare has loaded.
        write: (text) => input(text, readyMs),
        end: () => input(undefined, 1),
        destroy: () => {},
      },
      kill: (name) => {
        if (child.state === "gone") return false;
        child.signal(typeof name === "string" ? name : "SIGTERM");
        return true;
      },
      unref: () => {},
      once: (event: "error" | "exit", listener: (...details: never[]) => void) => {
        if (event !== "exit") return;
        child.onExit(({ status, signal }) =>
          (listener as (status: number | null, signal: NodeJS.Signals | null) => void)(status, signal),
        );
      },
    };
  }
}
