/**
 * The worker thread in which TLS ends. tls-tunnel.ts starts it and gives it, for each connection, the client's
 * descriptor and one end of a socketpair; this thread then carries bytes between the two until both have ended.
 * It interprets nothing: the handshake's machine reads the other end as an ordinary stream, and later the addon.
 *
 * 1. `secure` with the identity is posted before any plaintext is written into the tunnel.
 * 2. The descriptors of an `open` message belong to this thread.
 * 3. No error of a connection ends the thread; each ends its two sockets.
 */
import { Socket } from "node:net";
import { createServer, type TLSSocket } from "node:tls";
import { parentPort, workerData } from "node:worker_threads";
import { socketUnder } from "./socket-handle.js";
import { identityOf, tlsServerOptions } from "./tls.js";
import type { FromTlsWorker, TlsWorkerSetup, ToTlsWorker } from "./tls-tunnel.js";

/** After the server has closed and everything is sent, what a client may take to close its end. */
const LINGER_MS = 5000;

interface Carried {
  readonly id: number;
  readonly client: Socket;
  readonly tunnel: Socket;
  offeredUser?: string;
  secured: boolean;
  failure: string;
}

const setup = workerData as TlsWorkerSetup;
const byClient = new Map<Socket, Carried>();
const byId = new Map<number, Carried>();

const server = createServer({
  ...tlsServerOptions(setup.credentials, (secure, user) => {
    const carried = carriedBy(secure);
    if (carried !== undefined) carried.offeredUser = user;
  }),
  allowHalfOpen: true,
  handshakeTimeout: setup.handshakeTimeoutMs,
});
server.on("tlsClientError", (error, secure) => {
  const carried = carriedBy(secure);
  if (carried !== undefined) carried.failure = error.message;
  secure.destroy();
});
server.on("secureConnection", (secure) => {
  const carried = carriedBy(secure);
  if (carried === undefined) secure.destroy();
  else carry(carried, secure);
});

parentPort?.on("message", (message: ToTlsWorker) => {
  if (message.kind === "open") open(message.id, message.clientFd, message.tunnelFd);
  else byId.get(message.id)?.client.destroy();
});

function post(message: FromTlsWorker): void {
  parentPort?.postMessage(message);
}

function carriedBy(secure: TLSSocket): Carried | undefined {
  const client = socketUnder(secure);
  return client && byClient.get(client);
}

function open(id: number, clientFd: number, tunnelFd: number): void {
  const client = new Socket({ fd: clientFd, readable: true, writable: true, allowHalfOpen: true });
  const tunnel = new Socket({ fd: tunnelFd, readable: true, writable: true, allowHalfOpen: true });
  const carried: Carried = { id, client, tunnel, secured: false, failure: "the client went away" };
  byClient.set(client, carried);
  byId.set(id, carried);
  client.setNoDelay(true);
  client.on("error", () => client.destroy());
  tunnel.on("error", () => client.destroy());
  client.on("close", () => {
    byClient.delete(client);
    byId.delete(id);
    // What the client sent before it closed is already in the tunnel's queue.
    tunnel.destroySoon();
    post(carried.secured ? { kind: "closed", id } : { kind: "failed", id, reason: carried.failure });
  });
  server.emit("connection", client);
}

function carry(carried: Carried, secure: TLSSocket): void {
  const { id, client, tunnel } = carried;
  carried.secured = true;
  post({ kind: "secure", id, identity: identityOf(secure, carried.offeredUser) });
  secure.on("error", () => client.destroy());
  secure.on("close", () => client.destroy());
  secure.on("finish", () => {
    // Nobody is left to serve this client, and it has the rest: a bounded time to leave.
    setTimeout(() => client.destroy(), LINGER_MS).unref();
  });
  secure.pipe(tunnel);
  tunnel.pipe(secure);
}
