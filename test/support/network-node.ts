/** A network namespace on a bridge of its own, and what can happen to its link. Needs root. */
import { execFileSync } from "node:child_process";
import type { Place } from "./etcd.js";

/** A script of the shell that must succeed; what it prints. */
export function sh(script: string): string {
  return execFileSync("/bin/sh", ["-ec", script], { encoding: "utf8" }).trim();
}

export interface NodePlace {
  readonly name: string;
  readonly address: string;
  readonly bridge: string;
  readonly index: number;
}

export class NetworkNode implements Place {
  readonly name: string;
  readonly address: string;
  readonly by: readonly string[];
  readonly #link: string;

  constructor({ name, address, bridge, index }: NodePlace) {
    this.name = name;
    this.address = address;
    this.by = ["ip", "netns", "exec", name];
    this.#link = `${bridge}${index}`;
    sh(`ip netns add ${name}
        ip link add ${this.#link} type veth peer name eth0 netns ${name}
        ip link set ${this.#link} master ${bridge} up
        ip -n ${name} addr add ${address}/24 dev eth0
        ip -n ${name} link set eth0 up
        ip -n ${name} link set lo up`);
  }

  /** Nothing comes in or goes out. */
  isolate(): void {
    sh(`ip link set ${this.#link} down`);
  }

  heal(): void {
    sh(`ip link set ${this.#link} up; ip -n ${this.name} route flush type blackhole 2>/dev/null || true`);
  }

  /** What is sent from here to there is lost; the other way works. */
  loseTo(...others: readonly NetworkNode[]): void {
    for (const { address } of others) sh(`ip -n ${this.name} route replace blackhole ${address}/32`);
  }

  processes(): number[] {
    const own = sh(`ip netns pids ${this.name}`);
    return own === "" ? [] : own.split("\n").map(Number);
  }

  /** As when the power goes; what runs here is gone at once. */
  crash(): void {
    for (const pid of this.processes()) signalled(pid, "SIGKILL");
  }

  remove(): void {
    this.crash();
    sh(`ip netns del ${this.name}; ip link del ${this.#link} 2>/dev/null || true`);
  }
}

/** What these send to those is lost, and the other way round. */
export function part(these: readonly NetworkNode[], those: readonly NetworkNode[]): void {
  for (const node of these) node.loseTo(...those);
  for (const node of those) node.loseTo(...these);
}

export function signalled(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // It has ended.
  }
}
