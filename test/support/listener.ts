/**
 * A real NBD listener for wire tests (the compiled one), in a scratch directory of its own, with one of two
 * transmission phases: a process that serves zeros, or a recorder that keeps every byte and can answer.
 */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { TransmissionStart } from "../../src/nbd/connection.js";
import type { NbdServer, NbdServerOptions } from "../../src/nbd/server.js";
import type { NativeSockets } from "../../src/nbd/tls-tunnel.js";
import type { ListenerAddress } from "../../src/nbd/uri.js";
import { importBuilt } from "./built.js";
import { fixedDirectory } from "./exports.js";

export const NAMES = ["vol", "vol@monday", "vol@tuesday"];
const PEER = fileURLToPath(new URL("./transmission-peer.py", import.meta.url));

export interface Listener {
  readonly server: NbdServer;
  readonly directory: string;
  readonly unix: ListenerAddress & { transport: "unix" };
  readonly tcp: ListenerAddress & { transport: "tcp" };
  readonly log: string[];
  /** Resolves once that many lines of the log match. */
  logged(pattern: RegExp, count?: number): Promise<void>;
  readonly peers: ChildProcess[];
  close(): Promise<void>;
}

/** The transmission phase in a process of its own, which gets a dup of the descriptor. */
export function servedByPeer(peers: ChildProcess[]): (start: TransmissionStart) => void {
  return ({ fd, initialBytes, negotiated }) => {
    const structured = negotiated.structuredReplies ? "1" : "0";
    const args = [PEER, structured, initialBytes.toString("hex")];
    peers.push(spawn("/usr/bin/python3", args, { stdio: ["ignore", "inherit", "inherit", fd] }));
  };
}

export async function startListener(options: Partial<NbdServerOptions> = {}): Promise<Listener> {
  const { NbdServer: Server } = await importBuilt<typeof import("../../src/nbd/server.js")>("nbd/server.js");
  const directory = mkdtempSync(join(tmpdir(), "csnap-wire-"));
  const log: string[] = [];
  const peers: ChildProcess[] = [];
  let wake = () => {};
  const server = new Server({
    directory: fixedDirectory(NAMES),
    startTransmission: servedByPeer(peers),
    log: (line) => {
      log.push(line);
      wake();
    },
    ...options,
  });
  const unix = { transport: "unix", path: join(directory, "nbd.sock") } as const;
  await server.listen(unix);
  const uri = new URL(await server.listen({ transport: "tcp", host: "127.0.0.1", port: 0 }));
  const tcp = { transport: "tcp", host: "127.0.0.1", port: Number(uri.port) } as const;
  const close = async () => {
    await server.close();
    for (const peer of peers) peer.kill();
    rmSync(directory, { recursive: true });
  };
  const logged = async (pattern: RegExp, count = 1) => {
    while (log.filter((line) => pattern.test(line)).length < count) {
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
  };
  return { server, directory, unix, tcp, log, logged, peers, close };
}

/** The stream a hand-over leads to, as native code would hold it: a dup, and what was read already. */
export function recorder(native: NativeSockets): {
  startTransmission: (start: TransmissionStart) => void;
  next: () => Promise<{ start: TransmissionStart; socket: Socket }>;
} {
  const ready: { start: TransmissionStart; socket: Socket }[] = [];
  let wake = () => {};
  return {
    startTransmission: (start) => {
      const socket = new Socket({
        fd: native.duplicate(start.fd),
        readable: true,
        writable: true,
        allowHalfOpen: true,
      });
      ready.push({ start: { ...start, initialBytes: Buffer.from(start.initialBytes) }, socket });
      wake();
    },
    next: async () => {
      for (;;) {
        const first = ready.shift();
        if (first !== undefined) return first;
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
    },
  };
}

/** Runs a client; resolves however it exits. */
export function run(
  command: string,
  ...args: string[]
): Promise<{ status: number; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    execFile(command, args, { timeout: 30_000 }, (error, stdout, stderr) => {
      const code: unknown = error === null ? 0 : Reflect.get(error, "code");
      resolve({ status: typeof code === "number" ? code : -1, stdout, stderr });
    });
  });
}
