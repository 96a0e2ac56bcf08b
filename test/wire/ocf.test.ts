/** The resource agent ocf:csnap:server as a cluster calls it, with the built command; over the local broker and etcd. */
import { spawn } from "node:child_process";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { collect, MAIN, Sandbox } from "../support/csnap.js";
import { EtcdCluster } from "../support/etcd.js";

const AGENT = fileURLToPath(new URL("../../packaging/ocf/csnap/server", import.meta.url));
const OCF_ROOT = "/usr/lib/ocf";
const LIMIT_MS = 180_000;
const OK = 0;
const GENERIC = 1;
const INSTALLED = 5;
const CONFIGURED = 6;
const NOT_RUNNING = 7;

interface Shown {
  readonly state: string;
  readonly pid: number;
  readonly epoch: number;
  readonly silent: boolean;
}

/** One node: a volume of its own, and the agent's parameters for it. */
class Node {
  readonly sandbox = new Sandbox();
  readonly #program = this.sandbox.path("csnap");
  readonly #broker: string;

  constructor(broker: string) {
    this.#broker = broker;
    this.sandbox.env.CSNAP_BROKER = broker;
    writeFileSync(this.#program, `#!/bin/sh\nexec ${process.execPath} ${MAIN} "$@"\n`, { mode: 0o755 });
  }

  async define(...more: string[]): Promise<void> {
    await this.sandbox.must("volume", "define", "vol", ...more);
  }

  get #parameters(): Record<string, string> {
    return {
      volume: "vol",
      csnap: this.#program,
      broker: this.#broker,
      state_dir: this.sandbox.path("state"),
      run_dir: this.sandbox.path("run"),
    };
  }

  /** What it exits with, and what it says. */
  async does(action: string, more: Record<string, string> = {}) {
    const parameters = { ...this.#parameters, ...more };
    const env: NodeJS.ProcessEnv = {
      PATH: process.env.PATH,
      OCF_ROOT,
      OCF_RESOURCE_INSTANCE: "vol",
      ...more,
    };
    for (const [name, value] of Object.entries(parameters)) env[`OCF_RESKEY_${name}`] = value;
    return collect(spawn(AGENT, [action], { env, stdio: ["ignore", "pipe", "pipe"] }));
  }

  async status(action: string, more: Record<string, string> = {}): Promise<number | null> {
    const { status, stderr } = await this.does(action, more);
    if (status !== OK) console.log(`${action}: ${status} ${stderr.trim()}`);
    return status;
  }

  shown(): Promise<Shown> {
    return this.sandbox.json<Shown>("volume", "show", "vol");
  }

  tester() {
    const options = Object.entries(this.#parameters).flatMap(([name, value]) => ["-o", `${name}=${value}`]);
    const env = { ...process.env, OCF_ROOT };
    return collect(
      spawn("ocf-tester", ["-n", "vol", ...options, AGENT], { env, stdio: ["ignore", "pipe", "pipe"] }),
    );
  }

  async close(): Promise<void> {
    await this.does("stop");
    await this.sandbox.close();
  }
}

/** One that has ended, and that nobody has reaped yet, has nothing open. */
function isAlive(pid: number): boolean {
  try {
    return !/\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, "utf8"));
  } catch {
    return false;
  }
}

/** What the cluster's shell functions keep lies below /run. */
const isRoot = process.getuid?.() === 0;

describe.skipIf(!isRoot).each(["local:", "etcd"])("ocf:csnap:server, broker %s", (kind) => {
  let etcd: EtcdCluster | undefined;
  let node: Node;

  beforeAll(async () => {
    if (kind === "etcd") etcd = await EtcdCluster.start();
    node = new Node(etcd?.url() ?? kind);
    await node.sandbox.init("vol", "16M", "64M");
    await node.define("--started-by", "manager");
  });
  afterAll(async () => {
    await node.close();
    await etcd?.close();
  });

  it("is what ocf-tester expects", { timeout: LIMIT_MS }, async () => {
    const { status, stdout, stderr } = await node.tester();
    expect(`${stdout}${stderr}`).toContain("passed all tests");
    expect(status).toBe(0);
  });

  it("starts once the volume is published, and only once; stops when the process is gone", {
    timeout: LIMIT_MS,
  }, async () => {
    expect(await node.status("monitor")).toBe(NOT_RUNNING);
    expect(await node.status("stop")).toBe(OK);
    expect(await node.status("start")).toBe(OK);
    const first = await node.shown();
    expect(first.state).toBe("published");
    expect(await node.status("start")).toBe(OK);
    expect(await node.shown()).toMatchObject({ pid: first.pid, epoch: first.epoch });
    expect(await node.status("monitor")).toBe(OK);
    expect(await node.status("stop")).toBe(OK);
    expect(isAlive(first.pid)).toBe(false);
    expect(await node.status("monitor")).toBe(NOT_RUNNING);
  });

  it("tells a server that is gone from one that is stuck, and ends both", { timeout: LIMIT_MS }, async () => {
    expect(await node.status("start")).toBe(OK);
    const { pid } = await node.shown();
    process.kill(pid, "SIGSTOP");
    expect(await node.status("monitor")).toBe(GENERIC);
    // 16 s in all: one of them is for SIGTERM.
    expect(await node.status("stop", { CRM_meta_timeout: "16000" })).toBe(OK);
    expect(isAlive(pid)).toBe(false);
    expect(await node.status("start")).toBe(OK);
    const { pid: killed } = await node.shown();
    process.kill(killed, "SIGKILL");
    // Until the kernel has done it, the server is one that is stuck.
    await expect.poll(() => isAlive(killed), { timeout: 5000 }).toBe(false);
    expect(await node.status("monitor")).toBe(NOT_RUNNING);
    expect(await node.status("start")).toBe(OK);
    expect((await node.shown()).state).toBe("published");
    expect(await node.status("stop")).toBe(OK);
  });

  it("does not take another process of that number for the server", { timeout: LIMIT_MS }, async () => {
    writeFileSync(node.sandbox.path("run/vol.ocf"), `${process.pid} 1\n`);
    expect(await node.status("monitor")).toBe(NOT_RUNNING);
    expect(await node.status("stop")).toBe(OK);
  });

  it("says in one line why it can't start", { timeout: LIMIT_MS }, async () => {
    const server = await node.sandbox.serve("vol");
    const { status, stderr } = await node.does("start");
    expect(status).toBe(GENERIC);
    expect(stderr).toContain("is served already, by process");
    await server.stop();
    expect(await node.status("validate-all", { csnap: "/nonexistent/csnap" })).toBe(INSTALLED);
    expect(await node.status("validate-all", { volume: "no/name" })).toBe(CONFIGURED);
    await node.define();
    const agents = await node.does("validate-all");
    expect([agents.status, agents.stderr]).toEqual([
      CONFIGURED,
      expect.stringContaining("--started-by manager"),
    ]);
    await node.define("--started-by", "manager");
    expect(await node.status("validate-all")).toBe(OK);
  });

  it("reads at level 10: a server that no client reaches fails there", { timeout: LIMIT_MS }, async () => {
    expect(await node.status("start")).toBe(OK);
    expect(await node.status("monitor", { OCF_CHECK_LEVEL: "10" })).toBe(OK);
    rmSync(node.sandbox.path("run/vol.sock"));
    expect(await node.status("monitor")).toBe(OK);
    expect(await node.status("monitor", { OCF_CHECK_LEVEL: "10" })).toBe(GENERIC);
    expect(await node.status("stop")).toBe(OK);
  });

  it.runIf(kind === "etcd")(
    "takes over from a silent node where the cluster fences, and not otherwise (F8)",
    { timeout: LIMIT_MS },
    async () => {
      const { env } = node.sandbox;
      env.CSNAP_HOST = "lost";
      const lost = await node.sandbox.serve("vol");
      env.CSNAP_HOST = undefined;
      await lost.kill();
      const { epoch } = await node.shown();
      while (!(await node.shown()).silent) await pause(200);
      const plain = await node.does("start");
      expect([plain.status, plain.stderr]).toEqual([GENERIC, expect.stringContaining(`epoch ${epoch}`)]);
      // Pacemaker's own: what the cluster's property is.
      const bin = node.sandbox.path("bin");
      mkdirSync(bin);
      const cluster = (fences: boolean) => {
        writeFileSync(join(bin, "crm_attribute"), `#!/bin/sh\necho ${fences}\n`, { mode: 0o755 });
        return { fenced: "true", PATH: `${bin}:${process.env.PATH}` };
      };
      const unfenced = await node.does("start", cluster(false));
      expect([unfenced.status, unfenced.stderr]).toEqual([
        CONFIGURED,
        expect.stringContaining("stonith-enabled is not true"),
      ]);
      expect(await node.status("start", cluster(true))).toBe(OK);
      expect(await node.shown()).toMatchObject({ state: "published", silent: false });
      expect((await node.shown()).epoch).toBeGreaterThan(epoch);
      expect(await node.status("stop")).toBe(OK);
    },
  );
});
