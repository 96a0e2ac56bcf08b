/**
 * Hosts in network namespaces that share one origin and one store, as on a shared LUN: each has loop devices of its own
 * with direct I/O over the same two files, and its own view of the directory they lie in, read-only, so that no lock
 * reaches across. Needs root.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import tmp from "tmp";
import { ClientHost } from "./client-host.js";
import { collect, MAIN, type Outcome } from "./csnap.js";
import { EtcdCluster } from "./etcd.js";
import { NetworkNode, type NodePlace, sh } from "./network-node.js";

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

export class Host extends NetworkNode {
  readonly env: NodeJS.ProcessEnv;
  /** of the server that runs here, if any: reached whatever happens to the network */
  readonly controlSocket: string;
  readonly devices: { readonly origin: string; readonly store: string };
  agent: ChildProcess | undefined;
  log = "";

  constructor(
    readonly hostName: string,
    where: NodePlace,
    private readonly shared: string,
    directory: string,
    broker: string,
    /** of the csnap processes here, and of nothing that starts them */
    private readonly ownEnv: NodeJS.ProcessEnv = {},
  ) {
    super(where);
    const loop = (file: string) => sh(`losetup --find --show --direct-io=on ${join(shared, file)}`);
    this.devices = { origin: loop("origin"), store: loop("store") };
    this.controlSocket = join(directory, `${hostName}.run`, `${VOLUME}.control`);
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
    // What is preloaded may leave shared memory behind when it is killed: it ends with the namespace.
    const script = `mount --make-rprivate / && mount --bind '${this.shared}' '${this.shared}' &&
      mount -o remount,ro,bind '${this.shared}' && mount -t tmpfs tmpfs /dev/shm && exec "$@"`;
    const args = [
      "netns",
      "exec",
      this.name,
      "/bin/sh",
      "-ec",
      script,
      "-",
      "/usr/bin/env",
      ...Object.entries(this.ownEnv).map(([name, value]) => `${name}=${value}`),
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

  get isAgentAlive(): boolean {
    return this.agent !== undefined && this.agent.exitCode === null && this.agent.signalCode === null;
  }

  /** Until it is ready. A fence, late, may kill it as it starts: then it starts again, as after one more reboot. */
  async startAgent(): Promise<void> {
    const before = this.log.length;
    const isReady = () => this.log.slice(before).includes("agent: ready");
    this.#spawnAgent();
    await until(
      () => {
        if (this.agent?.signalCode === "SIGKILL") this.#spawnAgent();
        return isReady() || !this.isAgentAlive;
      },
      () => `${this.hostName}: the agent is not ready\n${this.log}`,
    );
    if (!isReady()) throw new Error(`${this.hostName}: the agent ended\n${this.log}`);
  }

  #spawnAgent(): void {
    const agent = this.spawn(["agent"]);
    this.agent = agent;
    agent.stdout?.resume();
    agent.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.log += text.replace(/^/gm, `${(performance.now() / 1000).toFixed(2)} ${this.hostName}: `);
    });
  }

  override remove(): void {
    super.remove();
    sh(`losetup -d ${this.devices.origin}; losetup -d ${this.devices.store}`);
  }
}

export interface ClusterOptions {
  /** client hosts, called client0 and so on */
  readonly clients?: number;
  /** of a host's processes, by its name */
  readonly env?: (host: string, directory: string) => NodeJS.ProcessEnv;
}

export class HostCluster {
  readonly directory = tmp.dirSync({ prefix: "csnap-hosts-" }).name;
  readonly hosts: Host[] = [];
  readonly etcdNodes: NetworkNode[] = [];
  readonly clients: ClientHost[] = [];
  etcd!: EtcdCluster;
  /** A file whose presence makes the fence command end with 0 and do nothing. */
  readonly fenceLies = join(this.directory, "fence-lies");
  /** A file whose presence makes the fence command fail. */
  readonly fenceFails = join(this.directory, "fence-fails");
  #notes = "";
  readonly #bridge = `cs${process.pid % 100_000}`;
  readonly #net = `10.213.${process.pid % 250}`;

  static async start(names: readonly string[], options: ClusterOptions = {}): Promise<HostCluster> {
    const cluster = new HostCluster();
    try {
      await cluster.#start(names, options);
    } catch (error) {
      await cluster.close();
      throw error;
    }
    return cluster;
  }

  #place(kind: string, index: number): NodePlace {
    const name = `${this.#bridge}${kind}`;
    return { name, address: `${this.#net}.${index}`, bridge: this.#bridge, index };
  }

  async #start(names: readonly string[], { clients = 0, env = () => ({}) }: ClusterOptions): Promise<void> {
    sh(
      `ip link add ${this.#bridge} type bridge; ip addr add ${this.#net}.1/24 dev ${this.#bridge}; ip link set ${this.#bridge} up`,
    );
    for (let i = 0; i < ETCD_COUNT; i++) this.etcdNodes.push(new NetworkNode(this.#place(`e${i}`, 11 + i)));
    for (let i = 0; i < clients; i++) this.clients.push(new ClientHost(this.#place(`c${i}`, 31 + i)));
    this.etcd = await EtcdCluster.start(ETCD_COUNT, [], "http", this.etcdNodes);
    const shared = join(this.directory, "shared");
    sh(`mkdir ${shared}; truncate -s 32M ${shared}/origin; truncate -s 96M ${shared}/store`);
    for (const [i, name] of names.entries()) {
      const where = this.#place(`h${i}`, 21 + i);
      const broker = this.etcd.url("insecure=1");
      this.hosts.push(new Host(name, where, shared, this.directory, broker, env(name, this.directory)));
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

  /** Takes the power of the host that is named, until nothing runs there; fails while `fenceFails` is there. */
  #fence(): string {
    const script = join(this.directory, "fence");
    const names = this.hosts.map(({ hostName, name }) => `${hostName}) ns=${name} ;;`).join(" ");
    writeFileSync(
      script,
      `#!/bin/sh
[ ! -e ${this.fenceLies} ] || exit 0
[ ! -e ${this.fenceFails} ] || { echo "no power switch answers" >&2; exit 1; }
case $CSNAP_FENCE_HOST in ${names} *) exit 2 ;; esac
while pids=$(ip netns pids $ns); [ "$pids" ]; do kill -9 $pids; sleep 0.02; done
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
    for (const node of [...this.hosts, ...this.clients]) node.remove();
    await this.etcd?.close();
    for (const node of this.etcdNodes) node.remove();
    sh(`ip link del ${this.#bridge} 2>/dev/null || true`);
    rmSync(this.directory, { recursive: true, force: true });
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

export async function gone(child: ChildProcess): Promise<void> {
  if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
}
