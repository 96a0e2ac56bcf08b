/**
 * Hosts in network namespaces that share one origin and one store, as on a shared LUN: each has loop devices of its own
 * with direct I/O over the same two files, and its own view of the directory they lie in, read-only, so that no lock
 * reaches across. Needs root.
 */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import tmp from "tmp";
import { collect, MAIN, type Outcome } from "./csnap.js";
import { EtcdCluster, type Place } from "./etcd.js";

const ETCD_COUNT = 3;
const LIMIT_MS = 60_000;
export const VOLUME = "vol";

export interface Shown {
  readonly state: string;
  readonly epoch: number;
  readonly host: string | null;
  readonly pid: number | null;
  readonly alive: boolean;
  readonly uris: readonly string[];
  readonly agents: readonly string[];
  readonly reason: string;
}

const sh = (script: string) => execFileSync("/bin/sh", ["-ec", script], { encoding: "utf8" }).trim();

/** One namespace on the bridge. */
class Node implements Place {
  readonly by: readonly string[];
  readonly #link: string;

  constructor(
    readonly name: string,
    readonly address: string,
    bridge: string,
    index: number,
  ) {
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
  loseTo(address: string): void {
    sh(`ip -n ${this.name} route replace blackhole ${address}/32`);
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

export class Host extends Node {
  readonly env: NodeJS.ProcessEnv;
  readonly devices: { readonly origin: string; readonly store: string };
  agent: ChildProcess | undefined;
  log = "";

  constructor(
    readonly hostName: string,
    where: {
      readonly name: string;
      readonly address: string;
      readonly bridge: string;
      readonly index: number;
    },
    private readonly shared: string,
    directory: string,
    broker: string,
  ) {
    super(where.name, where.address, where.bridge, where.index);
    const loop = (file: string) => sh(`losetup --find --show --direct-io=on ${join(shared, file)}`);
    this.devices = { origin: loop("origin"), store: loop("store") };
    this.env = {
      ...process.env,
      CSNAP_HOST: hostName,
      CSNAP_BROKER: broker,
      CSNAP_STATE_DIR: join(directory, hostName),
      CSNAP_RUN_DIR: join(directory, `${hostName}.run`),
      NO_COLOR: "1",
    };
  }

  spawn(words: readonly string[]): ChildProcess {
    const script = `mount --make-rprivate / && mount --bind '${this.shared}' '${this.shared}' &&
      mount -o remount,ro,bind '${this.shared}' && exec "$@"`;
    const args = [
      "netns",
      "exec",
      this.name,
      "/bin/sh",
      "-ec",
      script,
      "-",
      process.execPath,
      MAIN,
      ...words,
    ];
    return spawn("ip", args, { env: this.env, stdio: ["ignore", "pipe", "pipe"] });
  }

  csnap(...words: string[]): Promise<Outcome> {
    return collect(this.spawn(words));
  }

  async must(...words: string[]): Promise<string> {
    const { status, stdout, stderr } = await this.csnap(...words);
    if (status !== 0)
      throw new Error(`${this.hostName}: csnap ${words.join(" ")} ended with ${status}: ${stderr}`);
    return stdout;
  }

  async show(): Promise<Shown> {
    return JSON.parse(await this.must("volume", "show", VOLUME, "--json")) as Shown;
  }

  async startAgent(): Promise<void> {
    const before = this.log.length;
    const agent = this.spawn(["agent"]);
    this.agent = agent;
    agent.stdout?.resume();
    agent.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.log += text.replace(/^/gm, `${(performance.now() / 1000).toFixed(2)} ${this.hostName}: `);
    });
    await until(
      () => this.log.slice(before).includes("agent: ready"),
      () => this.log,
    );
  }

  override remove(): void {
    super.remove();
    sh(`losetup -d ${this.devices.origin}; losetup -d ${this.devices.store}`);
  }
}

export class HostCluster {
  readonly directory = tmp.dirSync({ prefix: "csnap-hosts-" }).name;
  readonly hosts: Host[] = [];
  readonly etcdNodes: Node[] = [];
  etcd!: EtcdCluster;
  /** A file whose presence makes the fence command fail. */
  readonly fenceFails = join(this.directory, "fence-fails");
  #notes = "";
  readonly #bridge = `cs${process.pid % 100_000}`;
  readonly #net = `10.213.${process.pid % 250}`;

  static async start(names: readonly string[]): Promise<HostCluster> {
    const cluster = new HostCluster();
    try {
      await cluster.#start(names);
    } catch (error) {
      await cluster.close();
      throw error;
    }
    return cluster;
  }

  async #start(names: readonly string[]): Promise<void> {
    sh(
      `ip link add ${this.#bridge} type bridge; ip addr add ${this.#net}.1/24 dev ${this.#bridge}; ip link set ${this.#bridge} up`,
    );
    for (let i = 0; i < ETCD_COUNT; i++)
      this.etcdNodes.push(new Node(`${this.#bridge}e${i}`, `${this.#net}.${11 + i}`, this.#bridge, 11 + i));
    this.etcd = await EtcdCluster.start(ETCD_COUNT, [], "http", this.etcdNodes);
    const shared = join(this.directory, "shared");
    sh(`mkdir ${shared}; truncate -s 32M ${shared}/origin; truncate -s 96M ${shared}/store`);
    for (const [i, name] of names.entries()) {
      const where = {
        name: `${this.#bridge}h${i}`,
        address: `${this.#net}.${21 + i}`,
        bridge: this.#bridge,
        index: 21 + i,
      };
      this.hosts.push(new Host(name, where, shared, this.directory, this.etcd.url("insecure=1")));
    }
    const [first, ...others] = this.hosts;
    if (!first) throw new Error("no host");
    await first.must("init", VOLUME, "--origin", first.devices.origin, "--store", first.devices.store);
    for (const host of others) {
      // Each kernel of its own would have an empty cache; here a loop device may have read before.
      sh(`blockdev --flushbufs ${host.devices.store}; blockdev --flushbufs ${host.devices.origin}`);
      await host.must("import", host.devices.store, "--name", VOLUME, "--origin", host.devices.origin);
    }
    for (const host of this.hosts) {
      const file = join(this.directory, host.hostName, "volumes", `${VOLUME}.toml`);
      const serve = `\n[serve]\nlisten = ["${host.address}:10809"]\nplain = true\n`;
      writeFileSync(file, readFileSync(file, "utf8") + serve);
    }
    await first.must(
      "volume",
      "define",
      VOLUME,
      "--store-class",
      "shared-block",
      "--fence",
      `command=${this.#fence()}`,
    );
  }

  /** Takes the power of the host that is named; fails while `fenceFails` is there. */
  #fence(): string {
    const script = join(this.directory, "fence");
    const names = this.hosts.map(({ hostName, name }) => `${hostName}) ns=${name} ;;`).join(" ");
    writeFileSync(
      script,
      `#!/bin/sh
[ ! -e ${this.fenceFails} ] || { echo "no power switch answers" >&2; exit 1; }
case $CSNAP_FENCE_HOST in ${names} *) exit 2 ;; esac
for pid in $(ip netns pids $ns); do kill -9 $pid; done
while [ "$(ip netns pids $ns)" ]; do sleep 0.02; done
echo "$(date +%s.%N) $CSNAP_FENCE_HOST epoch $CSNAP_FENCE_EPOCH" >> ${this.directory}/fenced
`,
      { mode: 0o755 },
    );
    return script;
  }

  fenced(): string[] {
    try {
      return readFileSync(join(this.directory, "fenced"), "utf8").trim().split("\n");
    } catch {
      return [];
    }
  }

  host(name: string | null): Host {
    const found = this.hosts.find(({ hostName }) => hostName === name);
    if (!found) throw new Error(`no host ${name}`);
    return found;
  }

  /** Published by a live holder, with an epoch above this one; asked of a host that reaches etcd. */
  async served(above = 0, by?: Host): Promise<Shown> {
    let last: Shown | undefined;
    await until(
      async () => {
        last = await (by ?? this.host(this.hosts[0]?.hostName ?? "")).show().catch(() => undefined);
        return last?.state === "published" && last.alive && last.epoch > above;
      },
      () => `${JSON.stringify(last)}\n${this.logs()}`,
    );
    return last as Shown;
  }

  /** Into the log, beside what the hosts say. */
  note(text: string): void {
    this.#notes += `${(performance.now() / 1000).toFixed(2)} -- ${text}\n`;
  }

  /** By time. */
  logs(): string {
    const lines = (this.hosts.map(({ log }) => log).join("") + this.#notes).split("\n");
    return lines.sort((a, b) => Number.parseFloat(a) - Number.parseFloat(b)).join("\n");
  }

  async close(): Promise<void> {
    for (const host of this.hosts) host.remove();
    await this.etcd?.close();
    for (const node of this.etcdNodes) node.remove();
    sh(`ip link del ${this.#bridge} 2>/dev/null || true`);
    rmSync(this.directory, { recursive: true, force: true });
  }
}

export function signalled(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // It has ended.
  }
}

export async function until(
  condition: () => Promise<boolean> | boolean,
  what: () => string,
  limitMs = LIMIT_MS,
): Promise<void> {
  const end = performance.now() + limitMs;
  while (!(await condition())) {
    if (performance.now() > end) throw new Error(`it did not come: ${what()}`);
    await pause(20);
  }
}

/** Whether any process has this file open. */
export function isOpen(path: string): boolean {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .some((pid) => {
      try {
        return readdirSync(`/proc/${pid}/fd`).some((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`) === path);
      } catch {
        return false;
      }
    });
}

export async function gone(child: ChildProcess): Promise<void> {
  if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
}
