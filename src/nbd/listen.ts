/**
 * Listening sockets of the NBD server: unix, TCP and those inherited from a service manager. server.ts
 * calls this; `csnap serve` calls the parsers.
 *
 * 1. A socket file is only replaced after a connection attempt has shown that nobody listens on it.
 * 2. A unix socket never exists with a wider mode than 0660.
 * 3. Every error is one line that names the address, the cause and the remedy.
 */
import { chmodSync, existsSync, lstatSync, readFileSync, readlinkSync, unlinkSync } from "node:fs";
import { connect, isIPv6, type Server } from "node:net";
import { dirname } from "node:path";
import { isMainThread } from "node:worker_threads";
import type { ListenerAddress } from "./uri.js";
import { DEFAULT_PORT } from "./wire.js";

const SOCKET_MODE = 0o660;
/** What sockaddr_un holds, without the closing NUL. */
const SOCKET_PATH_BYTES_MAX = 107;
/** systemd's SD_LISTEN_FDS_START. */
const FIRST_INHERITED_FD = 3;
const BACKLOG = 511;

/** A listening socket that could not be had; the message is for the user. */
export class ListenError extends Error {}

/** `HOST:PORT`, `[V6]:PORT`, or either without the port. */
export function parseTcpAddress(text: string): { transport: "tcp"; host: string; port: number } {
  const match = /^(?:\[([^\]]+)\]|([^:[\]]+))(?::([0-9]{1,5}))?$/.exec(text);
  const host = match?.[1] ?? match?.[2];
  const port = Number(match?.[3] ?? DEFAULT_PORT);
  const wrongHost = host === undefined || (match?.[1] !== undefined && !isIPv6(match[1]));
  if (wrongHost || port > 65535) {
    throw new RangeError(`'${text}' is no address; write HOST:PORT or [IPV6]:PORT, port 0 to 65535`);
  }
  return { transport: "tcp", host, port };
}

export function isLoopback(host: string): boolean {
  const address = host.toLowerCase().replace(/^::ffff:(?=[0-9.]+$)/, "");
  return address === "localhost" || address === "::1" || /^127(\.[0-9]{1,3}){3}$/.test(address);
}

/** Listening descriptors that a service manager passed to this very process; clears the variables. */
export function inheritedDescriptors(env: NodeJS.ProcessEnv, pid: number): number[] {
  return inheritedByName(env, pid).map(({ fd }) => fd);
}

/** The same with the names that they were given or kept under ('' where there is none). */
export function inheritedByName(env: NodeJS.ProcessEnv, pid: number): { fd: number; name: string }[] {
  const names = (env.LISTEN_FDNAMES ?? "").split(":");
  const count = Number(env.LISTEN_FDS ?? 0);
  const meant = Number(env.LISTEN_PID ?? -1) === pid;
  delete env.LISTEN_PID;
  delete env.LISTEN_FDS;
  delete env.LISTEN_FDNAMES;
  if (!meant || !Number.isInteger(count) || count < 1) return [];
  return Array.from({ length: count }, (_, at) => ({ fd: FIRST_INHERITED_FD + at, name: names[at] ?? "" }));
}

/** Starts listening; resolves to the address clients can use (with the port that port 0 became). */
export async function listen(server: Server, address: ListenerAddress): Promise<ListenerAddress> {
  if (address.transport === "unix") {
    await listenUnix(server, address.path);
    return address;
  }
  const { host, port } = address;
  await started(server, () => server.listen({ host, port, backlog: BACKLOG }), `${host}:${port}`);
  const bound = server.address();
  return typeof bound === "object" && bound !== null ? { ...address, port: bound.port } : address;
}

/** Adopts an inherited listening socket. */
export async function listenInherited(server: Server, fd: number): Promise<ListenerAddress> {
  await started(server, () => server.listen({ fd }), `inherited descriptor ${fd}`);
  const bound = server.address();
  if (typeof bound === "object" && bound !== null) {
    return { transport: "tcp", host: bound.address, port: bound.port };
  }
  return { transport: "unix", path: boundPath(fd) };
}

async function listenUnix(server: Server, path: string): Promise<void> {
  if (Buffer.byteLength(path) > SOCKET_PATH_BYTES_MAX) {
    const limit = `a socket's path has at most ${SOCKET_PATH_BYTES_MAX} bytes`;
    throw new ListenError(`cannot listen on '${path}': ${limit}; choose a shorter --socket PATH`);
  }
  if (!existsSync(dirname(path))) {
    // libuv reports this as a missing right.
    const remedy = "create it or choose another --socket PATH";
    throw new ListenError(`cannot listen on '${path}': the directory does not exist; ${remedy}`);
  }
  const start = () => started(server, () => bindNarrow(server, path), `'${path}'`);
  try {
    await start();
  } catch (error) {
    if (!(error instanceof ListenError && error.cause === "EADDRINUSE")) throw error;
    await removeStale(path);
    await start();
  }
  chmodSync(path, SOCKET_MODE);
}

/** The bind happens within `listen`, so that the mask is only narrowed for that instant. */
function bindNarrow(server: Server, path: string): void {
  const mask = isMainThread ? process.umask(0o777 & ~SOCKET_MODE) : undefined;
  try {
    server.listen({ path, backlog: BACKLOG });
  } finally {
    if (mask !== undefined) process.umask(mask);
  }
}

async function removeStale(path: string): Promise<void> {
  const before = lstatSync(path);
  if (!before.isSocket()) {
    throw new ListenError(
      `cannot listen on '${path}': it exists and is no socket; choose another --socket PATH`,
    );
  }
  if (await isServed(path)) {
    const remedy = "stop the other server or choose another --socket PATH";
    throw new ListenError(`cannot listen on '${path}': another process listens there; ${remedy}`);
  }
  // Another server may have replaced the file while we asked.
  if (lstatSync(path).ino === before.ino) unlinkSync(path);
}

function isServed(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = connect({ path });
    probe.once("connect", () => {
      probe.destroy();
      resolve(true);
    });
    // Only a refusal proves that nobody listens; a full backlog or a missing right does not.
    probe.once("error", (error: NodeJS.ErrnoException) => resolve(error.code !== "ECONNREFUSED"));
  });
}

function started(server: Server, start: () => void, what: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const failed = (error: NodeJS.ErrnoException) => {
      server.off("listening", done);
      reject(listenError(what, error));
    };
    const done = () => {
      server.off("error", failed);
      resolve();
    };
    server.once("error", failed);
    server.once("listening", done);
    start();
  });
}

function listenError(what: string, error: NodeJS.ErrnoException): ListenError {
  const reasons: Record<string, string> = {
    EADDRINUSE: "the address is in use; stop the other server or choose another address",
    EADDRNOTAVAIL: "no interface of this host has that address; choose another",
    EACCES: "permission denied; choose another address or run as a user who may use it",
    ENOTFOUND: "the host name is unknown; write an address or a name that resolves",
  };
  const reason = reasons[error.code ?? ""] ?? `${error.message}; choose another address`;
  return new ListenError(`cannot listen on ${what}: ${reason}`, { cause: error.code });
}

/** The path of an inherited unix socket: the kernel knows it by the socket's inode. */
function boundPath(fd: number): string {
  const inode = /^socket:\[([0-9]+)\]$/.exec(readlinkSync(`/proc/self/fd/${fd}`))?.[1];
  for (const line of readFileSync("/proc/net/unix", "utf8").split("\n")) {
    const fields = /^\S+ \S+ \S+ \S+ \S+ \S+ +([0-9]+) (.+)$/.exec(line);
    if (fields?.[1] === inode && fields?.[2] !== undefined) return fields[2];
  }
  return `/proc/self/fd/${fd}`;
}
