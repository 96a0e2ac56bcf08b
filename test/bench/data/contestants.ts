/**
 * csnap and the servers that it is compared with, each with an image of its own that was filled in the same way: with
 * 4 KiB writes, so that the page cache holds small folios (an image filled otherwise makes 4 KiB writes several times
 * slower, whoever serves it).
 */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import {
  closeSync,
  existsSync,
  fsyncSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { promisify } from "node:util";
import { Sandbox, type Server } from "../../support/csnap.js";
import { addressOf, NbdClient } from "../../support/nbd-client.js";
import { processTree } from "./fio.js";

const run = promisify(execFile);
const START_LIMIT_MS = 20_000;
const KIB = 1024;

export interface Running {
  readonly uri: string;
  readonly pids: readonly number[];
  stop(): Promise<void>;
}

/** A server under test. */
export interface Contestant {
  readonly name: string;
  /** Once: makes its image. */
  prepare(): Promise<void>;
  start(): Promise<Running>;
  /** From now on every chunk is owed to a snapshot again. With the server stopped, unless `live`. */
  shareAll?(): Promise<void>;
  /** shareAll() works while it serves. */
  readonly live?: boolean;
  /** What it reads from leaves the page cache. While it doesn't write. */
  dropCache(): Promise<void>;
  close(): Promise<void>;
}

/** Data that neither compresses to zeros nor repeats by the chunk. */
export function fillImage(path: string, bytes: number): void {
  const block = Buffer.alloc(4 * KIB);
  const fd = openSync(path, "w");
  for (let at = 0; at < bytes; at += block.length) {
    block.fill((at / block.length) & 0xff || 1);
    block.writeUIntLE(at, 0, 6);
    writeSync(fd, block, 0, block.length, at);
  }
  fsyncSync(fd);
  closeSync(fd);
}

async function dropCache(path: string): Promise<void> {
  await run("sync", [path]);
  await run("dd", [`if=${path}`, "iflag=nocache", "count=0"]);
}

const uriOf = (socket: string, exportName: string) => `nbd+unix:///${exportName}?socket=${socket}`;

async function answers(uri: string): Promise<boolean> {
  try {
    const name = new URL(uri).pathname.slice(1);
    const client = await NbdClient.open(addressOf(uri), { export: name, timeoutMs: 1000 });
    await client.disconnect();
    return true;
  } catch {
    return false;
  }
}

/** A server that is one process with a unix socket. */
class Spawned implements Running {
  readonly uri: string;

  private constructor(
    private readonly child: ChildProcess,
    private readonly socket: string,
  ) {
    this.uri = uriOf(socket, "");
  }

  static async start(command: readonly string[], socket: string): Promise<Spawned> {
    rmSync(socket, { force: true });
    const [program = "", ...args] = command;
    const child = spawn(program, args, { stdio: ["ignore", "ignore", "pipe"] });
    let said = "";
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      said += text;
    });
    const server = new Spawned(child, socket);
    const end = performance.now() + START_LIMIT_MS;
    while (!(await answers(server.uri))) {
      if (child.exitCode !== null || performance.now() > end)
        throw new Error(`${command.join(" ")} did not start: ${said}`);
      await pause(20);
    }
    return server;
  }

  get pids(): readonly number[] {
    return processTree(this.child.pid ?? 0);
  }

  async stop(): Promise<void> {
    if (this.child.exitCode === null && this.child.signalCode === null) {
      this.child.kill("SIGTERM");
      await once(this.child, "exit");
    }
    rmSync(this.socket, { force: true });
  }
}

/** A raw image behind another project's server. */
class RawPeer implements Contestant {
  protected readonly image: string;
  protected readonly socket: string;

  constructor(
    readonly name: string,
    directory: string,
    protected readonly bytes: number,
    private readonly command: (image: string, socket: string) => readonly string[],
  ) {
    const file = name.replaceAll(/[^a-z0-9]+/g, "-");
    this.image = join(directory, `${file}.img`);
    this.socket = join(directory, `${file}.sock`);
  }

  async prepare(): Promise<void> {
    fillImage(this.image, this.bytes);
  }

  dropCache(): Promise<void> {
    return dropCache(this.image);
  }

  start(): Promise<Running> {
    return Spawned.start(this.command(this.image, this.socket), this.socket);
  }

  async close(): Promise<void> {
    rmSync(this.image, { force: true });
  }
}

/** What its overlay holds ends with it, so a new start shares everything again. */
class CowFilterPeer extends RawPeer {
  async shareAll(): Promise<void> {}
}

class Qcow2Peer extends RawPeer {
  private snapshots = 0;

  constructor(
    name: string,
    directory: string,
    bytes: number,
    private readonly clusterBytes: number,
  ) {
    super(name, directory, bytes, (image, socket) => [
      "qemu-nbd",
      "-t",
      "-e",
      "16",
      "-f",
      "qcow2",
      "-k",
      socket,
      image,
    ]);
  }

  override async prepare(): Promise<void> {
    const raw = `${this.image}.raw`;
    fillImage(raw, this.bytes);
    await run("qemu-img", [
      ...["convert", "-f", "raw", "-O", "qcow2", "-o", `cluster_size=${this.clusterBytes}`],
      ...[raw, this.image],
    ]);
    rmSync(raw);
  }

  /** The one before is deleted, so that each round finds the same: one snapshot. */
  async shareAll(): Promise<void> {
    if (this.snapshots > 0) await run("qemu-img", ["snapshot", "-d", `s${this.snapshots}`, this.image]);
    this.snapshots++;
    await run("qemu-img", ["snapshot", "-c", `s${this.snapshots}`, this.image]);
  }
}

/** Goes into the background, and has a process for each client. */
class NbdServerPeer extends RawPeer {
  constructor(directory: string, bytes: number) {
    super("nbd-server", directory, bytes, () => []);
  }

  override async start(): Promise<Running> {
    const [config, pidFile] = [`${this.socket}.conf`, `${this.socket}.pid`];
    for (const path of [this.socket, pidFile]) rmSync(path, { force: true });
    writeFileSync(config, `[generic]\nunixsock = ${this.socket}\n[bench]\nexportname = ${this.image}\n`);
    await run("nbd-server", ["-C", config, "-p", pidFile]);
    const uri = uriOf(this.socket, "bench");
    const end = performance.now() + START_LIMIT_MS;
    while (!(await answers(uri))) {
      if (performance.now() > end) throw new Error("nbd-server did not start");
      await pause(20);
    }
    const pid = Number(readFileSync(pidFile, "utf8"));
    return {
      uri,
      pids: [pid],
      stop: async () => {
        process.kill(pid, "SIGTERM");
        while (existsSync(`/proc/${pid}`)) await pause(10);
      },
    };
  }
}

const VOLUME = "bench";

export class Csnap implements Contestant {
  readonly live = true;
  private readonly sandbox = new Sandbox();
  private server: Server | undefined;
  private number = 0;

  constructor(
    readonly name: string,
    private readonly bytes: number,
    private readonly chunkBytes: number,
    private readonly serveOptions: readonly string[] = [],
  ) {}

  async prepare(): Promise<void> {
    const origin = this.sandbox.path("origin.img");
    fillImage(origin, this.bytes);
    await this.sandbox.must(
      ...["init", VOLUME, "--origin", origin, "--store", this.sandbox.path("store"), "--progress", "none"],
      ...["--store-size", String(2 * this.bytes), "--chunk-size", String(this.chunkBytes)],
    );
  }

  async start(): Promise<Running> {
    const server = await this.sandbox.serve(VOLUME, ...this.serveOptions);
    this.server = server;
    return {
      uri: server.uri,
      pids: processTree(server.child.pid ?? 0),
      stop: async () => {
        this.server = undefined;
        await server.stop();
      },
    };
  }

  dropCache(): Promise<void> {
    return dropCache(this.sandbox.path("origin.img"));
  }

  snapshotUri(name: string): string {
    return this.server?.exportUri(`${VOLUME}@${name}`) ?? "";
  }

  async snapshot(name: string): Promise<void> {
    await this.sandbox.must("snapshot", `${VOLUME}@${name}`);
  }

  async shareAll(): Promise<void> {
    const before = this.number;
    this.number++;
    await this.snapshot(`s${this.number}`);
    if (before > 0) await this.sandbox.must("delete", `${VOLUME}@s${before}`);
    await this.reclaimed();
  }

  private async reclaimed(): Promise<void> {
    const end = performance.now() + 120_000;
    for (;;) {
      const status = await this.sandbox.json<{ snapshots: { deleting: number } }>("status", VOLUME);
      if (status.snapshots.deleting === 0) return;
      if (performance.now() > end) throw new Error("csnap did not reclaim a deleted snapshot");
      await pause(100);
    }
  }

  async close(): Promise<void> {
    await this.sandbox.close();
  }
}

/** By name; a workload names those that it compares. */
export function contestants(directory: string, bytes: number): Map<string, Contestant> {
  const all: readonly Contestant[] = [
    ...[4, 16, 64].map((kib) => new Csnap(kib === 16 ? "csnap" : `csnap ${kib}k`, bytes, kib * KIB)),
    new RawPeer("nbdkit file", directory, bytes, (image, socket) => [
      "nbdkit",
      "-f",
      "-U",
      socket,
      "file",
      image,
    ]),
    ...[4, 16, 64].map(
      (kib) =>
        new CowFilterPeer(`nbdkit cow ${kib}k`, directory, bytes, (image, socket) => [
          ...["nbdkit", "-f", "-U", socket, "--filter=cow", "file", image, `cow-block-size=${kib}k`],
        ]),
    ),
    new RawPeer("qemu-nbd raw", directory, bytes, (image, socket) => [
      ...["qemu-nbd", "-t", "-e", "16", "-f", "raw", "-k", socket, image],
    ]),
    new RawPeer("qemu-storage-daemon", directory, bytes, (image, socket) => [
      "qemu-storage-daemon",
      ...["--blockdev", `driver=file,node-name=image,filename=${image}`],
      ...["--nbd-server", `addr.type=unix,addr.path=${socket},max-connections=16`],
      ...["--export", "type=nbd,id=export,node-name=image,writable=on,name="],
    ]),
    new NbdServerPeer(directory, bytes),
    ...[16, 64].map((kib) => new Qcow2Peer(`qcow2 ${kib}k`, directory, bytes, kib * KIB)),
  ];
  return new Map(all.map((one) => [one.name, one]));
}
