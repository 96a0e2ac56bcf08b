/** Real etcd members on loopback, each a process of Debian's etcd-server, with its data in a scratch directory. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { rmSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import tmp from "tmp";

const START_LIMIT_MS = 30_000;

/** Where a member runs: its address, and what its command is run by. */
export interface Place {
  readonly address: string;
  readonly by: readonly string[];
}

const LOOPBACK: Place = { address: "127.0.0.1", by: [] };

interface Member {
  readonly name: string;
  readonly place: Place;
  readonly clientPort: number;
  readonly peerPort: number;
  process: ChildProcess;
}

export class EtcdCluster {
  private constructor(
    private readonly directory: string,
    private readonly members: readonly Member[],
    private readonly extra: readonly string[],
    private readonly scheme: "http" | "https",
  ) {}

  static async start(
    count = 1,
    extra: readonly string[] = [],
    scheme: "http" | "https" = "http",
    places: readonly Place[] = [],
  ): Promise<EtcdCluster> {
    const directory = tmp.dirSync({ prefix: "csnap-etcd-" }).name;
    const ports = await freePorts(2 * count);
    const members = Array.from({ length: count }, (_, i) => ({
      name: `m${i}`,
      place: places[i] ?? LOOPBACK,
      clientPort: ports[2 * i] ?? 0,
      peerPort: ports[2 * i + 1] ?? 0,
      process: undefined as unknown as ChildProcess,
    }));
    const cluster = new EtcdCluster(directory, members, extra, scheme);
    for (const member of members) cluster.launch(member);
    await cluster.up();
    return cluster;
  }

  /** A broker's URL. */
  url(query = ""): string {
    const endpoints = this.members.map(({ place, clientPort }) => `${place.address}:${clientPort}`);
    return `etcd://${endpoints.join(",")}${query && `?${query}`}`;
  }

  private clientUrl({ place, clientPort }: Member): string {
    return `${this.scheme}://${place.address}:${clientPort}`;
  }

  signal(index: number, signal: NodeJS.Signals): void {
    this.members[index]?.process.kill(signal);
  }

  async kill(index: number): Promise<void> {
    const child = this.members[index]?.process;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    child.kill("SIGKILL");
    await once(child, "exit");
  }

  /** After kill(): with the data it had. */
  restart(index: number): void {
    const member = this.members[index];
    if (member) this.launch(member);
  }

  /** A raw call of the gateway of the first member. */
  async call(path: string, body: object, token?: string): Promise<Record<string, unknown>> {
    const [first] = this.members;
    const response = await fetch(`${first && this.clientUrl(first)}/v3/${path}`, {
      method: "POST",
      body: JSON.stringify(body),
      ...(token !== undefined && { headers: { Authorization: token } }),
    });
    return (await response.json()) as Record<string, unknown>;
  }

  /** Every value that the key has had, oldest first: etcd keeps all that nobody compacted. */
  async revisions(key: string): Promise<string[]> {
    const base64 = Buffer.from(key).toString("base64");
    const { kvs = [] } = (await this.call("kv/range", { key: base64 })) as {
      kvs?: { mod_revision: string }[];
    };
    const last = kvs[0]?.mod_revision;
    if (last === undefined) return [];
    const [first] = this.members;
    const limit = AbortSignal.timeout(START_LIMIT_MS);
    const response = await fetch(`${first && this.clientUrl(first)}/v3/watch`, {
      method: "POST",
      body: JSON.stringify({ create_request: { key: base64, start_revision: "1" } }),
      signal: limit,
    });
    const values: string[] = [];
    let text = "";
    for await (const piece of response.body ?? []) {
      text += Buffer.from(piece as Uint8Array).toString("utf8");
      const lines = text.split("\n");
      text = lines.pop() ?? "";
      for (const line of lines.filter((one) => one !== "")) {
        const { result } = JSON.parse(line) as {
          result: { events?: { kv: { value?: string; mod_revision: string } }[] };
        };
        for (const { kv } of result.events ?? []) {
          values.push(Buffer.from(kv.value ?? "", "base64").toString("utf8"));
          if (kv.mod_revision === last) return values;
        }
      }
    }
    throw new Error(`etcd ended its history of ${key} after ${values.length} revisions`);
  }

  async close(): Promise<void> {
    for (let i = 0; i < this.members.length; i++) {
      this.signal(i, "SIGCONT");
      await this.kill(i);
    }
    rmSync(this.directory, { recursive: true, force: true });
  }

  private launch(member: Member): void {
    const peerUrl = ({ place, peerPort }: Member) => `http://${place.address}:${peerPort}`;
    const client = this.clientUrl(member);
    const peer = peerUrl(member);
    const all = this.members.map((other) => `${other.name}=${peerUrl(other)}`).join(",");
    const options = {
      name: member.name,
      "data-dir": join(this.directory, member.name),
      "listen-client-urls": client,
      "advertise-client-urls": client,
      "listen-peer-urls": peer,
      "initial-advertise-peer-urls": peer,
      "initial-cluster": all,
      "heartbeat-interval": "50",
      "election-timeout": "500",
      logger: "zap",
      "log-level": "error",
    };
    const words = Object.entries(options).map(([key, value]) => `--${key}=${value}`);
    const [command = "etcd", ...args] = [...member.place.by, "etcd", ...words, ...this.extra];
    member.process = spawn(command, args, { stdio: "ignore" });
  }

  /** Index of the member that leads now. */
  async leader(): Promise<number> {
    const end = performance.now() + START_LIMIT_MS;
    while (performance.now() < end) {
      for (const [index, member] of this.members.entries()) {
        const { process } = member;
        if (process.exitCode !== null || process.signalCode !== null) continue;
        const status = await fetch(`${this.clientUrl(member)}/v3/maintenance/status`, {
          method: "POST",
          body: "{}",
          signal: AbortSignal.timeout(500),
        }).then(
          async (answer) => (await answer.json()) as { header?: { member_id?: string }; leader?: string },
          () => undefined,
        );
        if (status?.leader !== undefined && status.leader === status.header?.member_id) return index;
      }
      await pause(50);
    }
    throw new Error("etcd has no leader");
  }

  async up(): Promise<void> {
    const end = performance.now() + START_LIMIT_MS;
    for (const member of this.members) {
      const { process } = member;
      for (;;) {
        const isHealthy = await fetch(`${this.clientUrl(member)}/health`).then(
          async (response) => ((await response.json()) as { health?: string }).health === "true",
          () => false,
        );
        if (isHealthy || this.scheme === "https") break;
        if (process.exitCode !== null) throw new Error(`etcd ended with ${process.exitCode}`);
        if (performance.now() > end) throw new Error("etcd did not come up");
        await pause(50);
      }
    }
  }
}

/** Free a moment ago, and not the same twice. */
async function freePorts(count: number): Promise<number[]> {
  const servers = await Promise.all(
    Array.from({ length: count }, async () => {
      const server = createServer().listen(0, "127.0.0.1");
      await once(server, "listening");
      return server;
    }),
  );
  const ports = servers.map((server) => {
    const address = server.address();
    return typeof address === "object" && address ? address.port : 0;
  });
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
  return ports;
}
