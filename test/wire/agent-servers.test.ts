/** Servers that `csnap agent` keeps running for declared volumes, as users run them; over the local broker and etcd. */
import { type ChildProcess, spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { setTimeout as pause } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { VolumeRecord } from "../../src/volume/model.js";
import { MAIN, Sandbox } from "../support/csnap.js";
import { EtcdCluster } from "../support/etcd.js";
import { addressOf, NbdClient } from "../support/nbd-client.js";

const LIMIT_MS = 40_000;
const BLOCK = 4096;

interface Shown {
  readonly state: string;
  readonly epoch: number;
  readonly pid: number | null;
  readonly alive: boolean;
  readonly uris: readonly string[];
  readonly agents: readonly string[];
  readonly reason: string;
}

class Host {
  readonly sandbox = new Sandbox();
  readonly #agents: ChildProcess[] = [];
  log = "";

  constructor(broker: string) {
    this.sandbox.env.CSNAP_BROKER = broker;
  }

  async startAgent(...words: string[]): Promise<ChildProcess> {
    const agent = spawn(process.execPath, [MAIN, "agent", ...words], {
      env: this.sandbox.env,
      stdio: ["ignore", "ignore", "pipe"],
    });
    this.#agents.push(agent);
    const before = this.log.length;
    agent.stderr.setEncoding("utf8").on("data", (text: string) => {
      this.log += text;
    });
    await this.until(
      () => /agent: ready/.test(this.log.slice(before)),
      () => this.log,
    );
    return agent;
  }

  async until(condition: () => Promise<boolean> | boolean, what: () => unknown): Promise<void> {
    const end = performance.now() + LIMIT_MS;
    while (!(await condition())) {
      if (performance.now() > end) throw new Error(`it did not come: ${JSON.stringify(what())}\n${this.log}`);
      await pause(20);
    }
  }

  /** What the agent tells at --metrics. */
  async metrics(): Promise<string> {
    const url = /agent: metrics at (\S+)/.exec(this.log)?.[1] ?? "";
    return (await fetch(url)).text();
  }

  show(): Promise<Shown> {
    return this.sandbox.json<Shown>("volume", "show", "vol");
  }

  /** Published with an epoch above this one. */
  async served(above = 0): Promise<Shown & { readonly pid: number; readonly uri: string }> {
    let last: Shown | undefined;
    await this.until(
      async () => {
        last = await this.show();
        return last.state === "published" && last.alive && last.epoch > above;
      },
      () => last,
    );
    const [uri = ""] = last?.uris ?? [];
    return { ...(last as Shown), pid: last?.pid ?? 0, uri };
  }

  client(uri: string): Promise<NbdClient> {
    return NbdClient.open(addressOf(uri), { export: "vol" });
  }

  async close(): Promise<void> {
    for (const agent of this.#agents) await killed(agent);
    for (const pid of this.servers()) tryKill(pid);
    await this.sandbox.close();
  }

  /** Processes `csnap serve` of this sandbox: servers and spares. */
  servers(): number[] {
    return processes().filter((pid) => {
      try {
        return (
          readFileSync(`/proc/${pid}/cmdline`, "utf8").includes("\0serve\0") &&
          readFileSync(`/proc/${pid}/environ`, "utf8").includes(
            `CSNAP_STATE_DIR=${this.sandbox.path("state")}\0`,
          )
        );
      } catch {
        return false;
      }
    });
  }
}

function processes(): number[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map(Number);
}

function openFiles(pid: number): string[] {
  return readdirSync(`/proc/${pid}/fd`).flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/${pid}/fd/${fd}`)];
    } catch {
      return [];
    }
  });
}

function tryKill(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // It has ended.
  }
}

async function killed(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  child.kill("SIGKILL");
  await once(child, "exit");
}

let etcd: EtcdCluster;
beforeAll(async () => {
  etcd = await EtcdCluster.start(1);
});
afterAll(() => etcd.close());

const brokers: [name: string, url: () => string][] = [
  ["local:", () => "local:"],
  ["etcd", () => etcd.url(`prefix=/csnap/${randomUUID()}`)],
];

/** The agent needs root. */
const isRoot = process.getuid?.() === 0;

describe.skipIf(!isRoot).each(brokers)("servers of an agent, broker %s", (name, url) => {
  let host: Host;
  const { must, init } = {
    must: (...words: string[]) => host.sandbox.must(...words),
    init: () => host.sandbox.init("vol", "8M", "16M"),
  };

  beforeEach(async () => {
    host = new Host(url());
    await init();
  });
  afterEach(() => host.close());

  it("run once declared, come back when killed, and stop when disabled", async () => {
    await host.startAgent("--metrics", "127.0.0.1:0");
    await pause(500);
    expect((await host.show()).state).toBe("vacant");
    await must("volume", "define", "vol");
    const first = await host.served();
    expect(first.epoch).toBe(1);
    expect(first.agents.length).toBe(1);
    const { server } = await host.sandbox.json<VolumeRecord>("status", "vol");
    expect(server?.start_ms).toBeGreaterThan(0);
    // The kernel's lock decides on one host; grants at etcd end in time.
    if (name === "local:") expect(server?.grant_remaining_ms).toBe(null);
    else expect(server?.grant_remaining_ms).toBeGreaterThan(0);
    const client = await host.client(first.uri);
    const data = Buffer.alloc(BLOCK, 0x5a);
    await client.write(0, data);
    await client.flush();
    await must("snapshot", "vol@one");
    await client.write(0, Buffer.alloc(BLOCK, 0xa5));
    await client.flush();
    tryKill(first.pid);
    const second = await host.served(first.epoch);
    expect(second.pid).not.toBe(first.pid);
    const metrics = await host.metrics();
    expect(metrics).toContain('csnap_server_starts_total{volume="vol"} 2\n');
    expect(metrics).toContain('csnap_failover_total{volume="vol",reason="died"} 1\n');
    const again = await host.client(second.uri);
    expect((await again.read(0, BLOCK)).every((byte) => byte === 0xa5)).toBe(true);
    const old = await NbdClient.open(addressOf(second.uri), { export: "vol@one" });
    expect((await old.read(0, BLOCK)).equals(data)).toBe(true);
    await must("volume", "disable", "vol");
    await host.until(
      async () => !(await host.show()).alive,
      () => "still served",
    );
    await pause(1500);
    expect((await host.show()).state).toBe("vacant");
    expect(await must("volume", "explain", "vol")).toContain("csnap volume enable vol");
    await must("volume", "enable", "vol");
    expect((await host.served(second.epoch)).epoch).toBe(second.epoch + 1);
  });

  it("have a spare that has opened nothing, which ends with the agent; the server goes on", async () => {
    const agent = await host.startAgent();
    await must("volume", "define", "vol");
    const { pid, epoch } = await host.served();
    let spare: number | undefined;
    await host.until(
      () => {
        spare = host.servers().find((other) => other !== pid);
        return spare !== undefined;
      },
      () => host.servers(),
    );
    await pause(500);
    const store = host.sandbox.path("vol.store");
    expect(openFiles(pid)).toContain(store);
    expect(openFiles(spare ?? 0)).not.toContain(store);
    await killed(agent);
    await host.until(
      () => !processes().includes(spare ?? 0),
      () => "the spare goes on",
    );
    expect(await host.show()).toMatchObject({ state: "published", pid, epoch, alive: true });
    // The next agent leaves it alone, and sees to it from then on.
    await host.startAgent();
    await pause(1000);
    expect(await host.show()).toMatchObject({ pid, epoch });
    tryKill(pid);
    expect((await host.served(epoch)).epoch).toBe(epoch + 1);
  });

  it("are replaced when they hang", async () => {
    await host.startAgent();
    await must("volume", "define", "vol");
    const { pid, epoch } = await host.served();
    process.kill(pid, "SIGSTOP");
    const next = await host.served(epoch);
    expect(next.pid).not.toBe(pid);
    expect(processes()).not.toContain(pid);
  });
});

describe.skipIf(!isRoot)("a grant at etcd", () => {
  it("that can't be renewed ends: nothing is answered any more, and the next term finds all that was", async () => {
    const cluster = await EtcdCluster.start(1);
    const host = new Host(cluster.url());
    try {
      await host.sandbox.init("vol", "8M", "16M");
      await host.startAgent();
      await host.sandbox.must("volume", "define", "vol");
      const { uri, epoch } = await host.served();
      const client = await host.client(uri);
      let acknowledged = 0;
      cluster.signal(0, "SIGSTOP");
      const stopped = performance.now();
      let lastMs = 0;
      const error = await (async () => {
        for (let i = 1; i < 1 << 20; i++) {
          await client.write(((i % 2048) * BLOCK) % (8 << 20), Buffer.alloc(BLOCK, i & 0xff));
          acknowledged = i;
          lastMs = performance.now() - stopped;
        }
        return undefined;
      })().catch((found: unknown) => found);
      // Cut, not refused: ConnectionLost, and no NBD error.
      expect(String(error)).toContain("ended the connection");
      expect(lastMs).toBeLessThan(4000);
      expect(acknowledged).toBeGreaterThan(0);
      cluster.signal(0, "SIGCONT");
      const next = await host.served(epoch);
      const again = await host.client(next.uri);
      const position = ((acknowledged % 2048) * BLOCK) % (8 << 20);
      const found = await again.read(position, BLOCK);
      expect(found.every((byte) => byte === (acknowledged & 0xff))).toBe(true);
    } finally {
      await host.close();
      await cluster.close();
    }
  });
});
