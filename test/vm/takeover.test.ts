/**
 * Two machines with real kernels on two shared disks and a cable: one serves, the other has the volume as /dev/nbdX with a
 * file system, and the one that serves loses its power. The test is the power switch, and etcd runs beside it, as on a third host.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { truncate } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { it } from "vitest";
import { EtcdCluster } from "../support/etcd.js";
import { runInVm } from "../support/vm.js";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const LIMIT_S = 600;
const SURVIVOR = { name: "beta", address: "10.9.0.2" };
const LOST = { name: "alpha", address: "10.9.0.1" };
const MEMORY_MB = "1024";

class Rack {
  readonly directory = mkdtempSync(join(tmpdir(), "csnap-takeover."));
  readonly share = join(this.directory, "share");
  #lost: ChildProcess | undefined;
  #isOver = false;
  #etcd: EtcdCluster | undefined;

  options({ name }: typeof LOST, peer: typeof LOST, address: string): string[] {
    const at = (file: string) => join(this.directory, file);
    return [
      ...["--net", `${at(name)},${at(peer.name)},${address}/24`, "--memory", MEMORY_MB],
      ...["--shared-disk", at("origin"), "--shared-disk", at("store"), "--share", this.share],
      ...["--host-net", "--env", `CSNAP_HOST=${name}`, "--env", `CSNAP_BROKER=${this.#broker}`],
    ];
  }

  /** As the machines reach it: see --host-net. */
  get #broker(): string {
    return this.#etcd?.url("insecure=1").replace("127.0.0.1", "10.0.2.2") ?? "";
  }

  async start(): Promise<void> {
    this.#etcd = await EtcdCluster.start();
  }

  /** New disks, and the machine that will be lost. */
  async prepare(): Promise<void> {
    await this.#powerOff();
    rmSync(this.share, { recursive: true, force: true });
    mkdirSync(this.share);
    for (const [disk, bytes] of [
      ["origin", 96 << 20],
      ["store", 192 << 20],
    ] as const) {
      const path = join(this.directory, disk);
      writeFileSync(path, "");
      await truncate(path, bytes);
    }
    const words = [...this.options(LOST, SURVIVOR, LOST.address), "--timeout", String(LIMIT_S), "--"];
    const program = [process.execPath, "test/vm/takeover-lost.mjs", this.share, LOST.address];
    this.#lost = spawn("scripts/vm", [...words, ...program], {
      cwd: ROOT,
      stdio: ["ignore", "inherit", "inherit"],
    });
  }

  /** Answers `crash` (the survivor's word that it is time) and the fence's request; until close(). */
  async obey(): Promise<void> {
    const answers = { crash: "crashed", [`fence-${LOST.name}`]: `fenced-${LOST.name}` };
    while (!this.#isOver) {
      for (const [request, answer] of Object.entries(answers)) {
        if (!existsSync(join(this.share, request)) || existsSync(join(this.share, answer))) continue;
        await this.#powerOff();
        writeFileSync(join(this.share, answer), "");
      }
      await pause(50);
    }
  }

  /** kill -9 of the machine; resolves when it is gone for certain. */
  async #powerOff(): Promise<void> {
    const script = this.#lost;
    if (!script || script.exitCode !== null || script.signalCode !== null) return;
    const gone = once(script, "exit");
    for (const pid of childrenOf(script.pid ?? 0))
      if (nameOf(pid).startsWith("qemu")) process.kill(pid, "SIGKILL");
    await gone;
  }

  async close(): Promise<void> {
    this.#isOver = true;
    this.#lost?.kill("SIGTERM");
    if (this.#lost?.exitCode === null && this.#lost.signalCode === null) await once(this.#lost, "exit");
    await this.#etcd?.close();
    rmSync(this.directory, { recursive: true, force: true });
  }
}

function childrenOf(pid: number): number[] {
  const text = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim();
  return text === "" ? [] : text.split(" ").map(Number);
}

function nameOf(pid: number): string {
  return readFileSync(`/proc/${pid}/comm`, "utf8");
}

/** Two emulated machines at once need a processor each for minutes: with CSNAP_TIER=full only. */
it.runIf(process.env.CSNAP_TIER === "full")(
  "ext4 on a device goes on when its server's host loses its power: a stall, and no error",
  {
    timeout: LIMIT_S * 1000,
  },
  async () => {
    const rack = new Rack();
    const obeying = rack.obey();
    try {
      await rack.start();
      const options = rack.options(SURVIVOR, LOST, SURVIVOR.address);
      const program = [process.execPath, "test/vm/takeover-survivor.mjs", rack.share, SURVIVOR.address];
      await runInVm({ limitS: LIMIT_S, options, prepare: () => rack.prepare() }, program);
    } finally {
      await rack.close();
      await obeying;
    }
  },
);
