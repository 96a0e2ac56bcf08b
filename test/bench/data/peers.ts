/** The servers that people use today. */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { promisify } from "node:util";
import { addressOf, NbdClient } from "../../support/nbd-client.js";
import {
  type Contestant,
  exportOf,
  type Running,
  type Transport,
  uriOfPort,
  uriOfSocket,
} from "./contestant.js";
import { processTree } from "./fio.js";
import { dropCache, fillImage } from "./image.js";

const run = promisify(execFile);
const START_LIMIT_MS = 20_000;

/** Where a server shall listen: a unix socket, or a port of 127.0.0.1. */
type Listener = { readonly socket: string } | { readonly port: number };

/** The command that serves `image` there. */
type Command = (image: string, listener: Listener) => readonly string[];

const nbdkit =
  (filters: readonly string[], parameters: readonly string[]): Command =>
  (image, at) => [
    "nbdkit",
    "-f",
    ...("socket" in at ? ["-U", at.socket] : ["-i", "127.0.0.1", "-p", String(at.port)]),
    ...filters.map((filter) => `--filter=${filter}`),
    "file",
    image,
    ...parameters,
  ];

const qemuNbd =
  (format: "raw" | "qcow2", ...options: readonly string[]): Command =>
  (image, at) => [
    "qemu-nbd",
    ...["-t", "-e", "16", "-f", format, ...options],
    ...("socket" in at ? ["-k", at.socket] : ["-b", "127.0.0.1", "-p", String(at.port)]),
    image,
  ];

const storageDaemon: Command = (image, at) => [
  "qemu-storage-daemon",
  ...["--blockdev", `driver=file,node-name=image,filename=${image}`],
  "--nbd-server",
  "socket" in at
    ? `addr.type=unix,addr.path=${at.socket},max-connections=16`
    : `addr.type=inet,addr.host=127.0.0.1,addr.port=${at.port},max-connections=16`,
  ...["--export", "type=nbd,id=export,node-name=image,writable=on,name="],
];

/** Of 127.0.0.1; nobody else is expected to take it before the server does. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  if (address === null || typeof address === "string") throw new Error("no port");
  return address.port;
}

async function answers(uri: string): Promise<boolean> {
  try {
    const client = await NbdClient.open(addressOf(uri), { export: exportOf(uri), timeoutMs: 1000 });
    await client.disconnect();
    return true;
  } catch {
    return false;
  }
}

/** A server that is one process. */
class Spawned implements Running {
  private constructor(
    private readonly child: ChildProcess,
    readonly uri: string,
  ) {}

  static async start(command: readonly string[], uri: string): Promise<Spawned> {
    const [program = "", ...args] = command;
    const child = spawn(program, args, { stdio: ["ignore", "ignore", "pipe"] });
    let said = "";
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      said += text;
    });
    const server = new Spawned(child, uri);
    const end = performance.now() + START_LIMIT_MS;
    while (!(await answers(uri))) {
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
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    this.child.kill("SIGTERM");
    await once(this.child, "exit");
  }
}

/** A raw image behind another project's server. */
class RawPeer implements Contestant {
  protected readonly image: string;
  protected readonly socket: string;
  private prepared: Promise<void> | undefined;

  constructor(
    readonly name: string,
    directory: string,
    protected readonly bytes: number,
    private readonly command: Command,
  ) {
    const file = name.replaceAll(/[^a-z0-9]+/g, "-");
    this.image = join(directory, `${file}.img`);
    this.socket = join(directory, `${file}.sock`);
  }

  prepare(): Promise<void> {
    this.prepared ??= this.makeImage();
    return this.prepared;
  }

  protected async makeImage(): Promise<void> {
    fillImage(this.image, this.bytes);
  }

  dropCache(): Promise<void> {
    return dropCache(this.image);
  }

  async start(transport: Transport): Promise<Running> {
    if (transport === "tcp") {
      const port = await freePort();
      return Spawned.start(this.command(this.image, { port }), uriOfPort(port, ""));
    }
    rmSync(this.socket, { force: true });
    return Spawned.start(this.command(this.image, { socket: this.socket }), uriOfSocket(this.socket, ""));
  }

  async close(): Promise<void> {
    rmSync(this.image, { force: true });
  }
}

/**
 * What its overlay holds ends with it, so a new start shares everything again. (nbdkit 1.32 may abort when fio closes its
 * connection at the end of a list of offsets. The figures are complete then; stop() finds it gone.)
 */
class CowFilterPeer extends RawPeer {
  readonly volatile = true;

  async shareAll(): Promise<void> {}
}

class Qcow2Peer extends RawPeer {
  private snapshots = 0;

  constructor(
    name: string,
    directory: string,
    bytes: number,
    private readonly clusterBytes: number,
    ...options: readonly string[]
  ) {
    super(name, directory, bytes, qemuNbd("qcow2", ...options));
  }

  protected override async makeImage(): Promise<void> {
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

  override async start(transport: Transport): Promise<Running> {
    if (transport !== "unix") throw new Error("nbd-server is measured over a unix socket only");
    const [config, pidFile] = [`${this.socket}.conf`, `${this.socket}.pid`];
    for (const path of [this.socket, pidFile]) rmSync(path, { force: true });
    writeFileSync(config, `[generic]\nunixsock = ${this.socket}\n[bench]\nexportname = ${this.image}\n`);
    await run("nbd-server", ["-C", config, "-p", pidFile]);
    const uri = uriOfSocket(this.socket, "bench");
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

/**
 * With images below `directory`. Those named "synced" make every write durable before they acknowledge it, as csnap does
 * in mode `sync`: nbdkit by its fua filter, qemu-nbd by writing through.
 */
export function peers(directory: string, bytes: number): Contestant[] {
  const raw = (name: string, command: Command) => new RawPeer(name, directory, bytes, command);
  const qcow2 = (kib: number, suffix: string, ...options: readonly string[]) =>
    new Qcow2Peer(`qcow2 ${kib}k${suffix}`, directory, bytes, kib * 1024, ...options);
  const WRITE_THROUGH = "--cache=writethrough";
  return [
    raw("nbdkit file", nbdkit([], [])),
    raw("nbdkit file, synced", nbdkit(["fua"], ["fuamode=force"])),
    ...[4, 16, 64].map(
      (kib) =>
        new CowFilterPeer(
          `nbdkit cow ${kib}k`,
          directory,
          bytes,
          nbdkit(["cow"], [`cow-block-size=${kib}k`]),
        ),
    ),
    raw("qemu-nbd raw", qemuNbd("raw")),
    raw("qemu-nbd raw, synced", qemuNbd("raw", WRITE_THROUGH)),
    raw("qemu-storage-daemon", storageDaemon),
    new NbdServerPeer(directory, bytes),
    qcow2(16, ""),
    qcow2(64, ""),
    qcow2(16, ", synced", WRITE_THROUGH),
  ];
}
