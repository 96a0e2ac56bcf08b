// Offers this host to the broker for every volume that is defined here, as it comes and goes.
//
// RO1 Definitions are read without waiting for the disk; one look at a time.
// RO2 A volume that is not defined any more is offered no more; its server goes on.
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import type { Broker, InstanceAgent, Ticket } from "../broker/broker.js";
import { codeOf, messageOf } from "../volume/errors.js";
import { hostName } from "../volume/host.js";
import { isName } from "../volume/names.js";

const lookEveryMs = 3000;
const suffix = ".toml";

export class Roster {
  private readonly offered = new Map<string, Ticket>();
  private timer: NodeJS.Timeout | undefined;
  private looking = false;
  private lastProblem = "";

  constructor(
    private readonly stateDir: string,
    private readonly broker: Broker,
    private readonly agent: InstanceAgent,
    private readonly log: (line: string) => void,
  ) {}

  start(): void {
    this.timer = setInterval(() => void this.look(), lookEveryMs);
    void this.look();
  }

  /** The broker takes the offers back when it is closed. */
  close(): void {
    clearInterval(this.timer);
    this.timer = undefined;
  }

  private async look(): Promise<void> {
    if (this.looking) return;
    this.looking = true;
    try {
      const volumes = await this.defined();
      if (this.timer !== undefined) this.offer(volumes);
      this.lastProblem = "";
    } catch (error) {
      this.tellOnce(`the definitions of volumes can't be read: ${messageOf(error)}`);
    } finally {
      this.looking = false;
    }
  }

  private async defined(): Promise<string[]> {
    const names = await readdir(join(this.stateDir, "volumes")).catch((error: unknown) => {
      if (codeOf(error) === "NOT_FOUND") return [];
      throw error;
    });
    return names
      .filter((name) => name.endsWith(suffix))
      .map((name) => name.slice(0, -suffix.length))
      .filter(isName);
  }

  private offer(volumes: readonly string[]): void {
    for (const [volume, ticket] of this.offered) {
      if (volumes.includes(volume)) continue;
      this.broker.release(ticket);
      this.offered.delete(volume);
    }
    for (const service of volumes) {
      if (this.offered.has(service)) continue;
      const ticket = this.broker.registerAgent({ service, host: hostName() }, this.agent);
      this.offered.set(service, ticket);
      ticket.on((event) => {
        if (event.type === "failed") this.tellOnce(`${service} is not offered: ${event.detail}`);
      });
    }
  }

  private tellOnce(problem: string): void {
    if (problem !== this.lastProblem) this.log(problem);
    this.lastProblem = problem;
  }
}
