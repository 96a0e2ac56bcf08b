/**
 * The NBD listener of one volume's server: accepts clients, bounds how many may be in their handshake, and hands
 * every client that asked for an export to native transmission. `csnap serve` owns it.
 *
 * 1. What is not yet in transmission is bounded: in number, per address and over all, and in time.
 * 2. After `close` nothing listens, no handshake is left, and TLS has carried its last bytes or its time is up.
 */
import { createServer, type Server, type Socket } from "node:net";
import { availableParallelism } from "node:os";
import { Connection, type ConnectionHost } from "./connection.js";
import { baseAllocation, type MetaContextProvider } from "./contexts.js";
import type { ClientInfo, ExportDirectory } from "./exports.js";
import { isLoopback, listen, listenInherited } from "./listen.js";
import type { TlsCredentials } from "./tls.js";
import { type NativeSockets, TlsTunnels } from "./tls-tunnel.js";
import { type ListenerAddress, nbdUri } from "./uri.js";

export interface HandshakeLimits {
  /** From accept to GO, TLS included. */
  readonly timeoutMs: number;
  readonly unfinishedMax: number;
  readonly unfinishedPerAddressMax: number;
}

const DEFAULT_LIMITS: HandshakeLimits = {
  timeoutMs: 10_000,
  unfinishedMax: 256,
  unfinishedPerAddressMax: 64,
};

export interface NbdServerOptions {
  readonly directory: ExportDirectory;
  readonly startTransmission: ConnectionHost["startTransmission"];
  readonly admit?: ConnectionHost["admit"];
  readonly tls?: {
    readonly credentials: TlsCredentials;
    /** Every export only through TLS; else clients choose. */
    readonly required: boolean;
    readonly native: NativeSockets;
  };
  /** Beside base:allocation. */
  readonly metaContexts?: readonly MetaContextProvider[];
  readonly limits?: Partial<HandshakeLimits>;
  /** Lines for the log, without a time. */
  readonly log?: (line: string) => void;
}

export interface NbdServerCounters {
  accepted: number;
  /** Turned away at accept because too many handshakes were unfinished. */
  turnedAway: number;
  handshakesFailed: number;
  handedOver: number;
}

export class NbdServer {
  readonly counters: NbdServerCounters = { accepted: 0, turnedAway: 0, handshakesFailed: 0, handedOver: 0 };
  readonly #limits: HandshakeLimits;
  readonly #host: ConnectionHost;
  readonly #tlsRequired: boolean;
  readonly #log: (line: string) => void;
  readonly #tunnels: TlsTunnels | undefined;
  readonly #listeners = new Set<Server>();
  readonly #unfinished = new Map<Connection, string>();

  constructor(options: NbdServerOptions) {
    const { directory, startTransmission, admit, tls } = options;
    this.#limits = { ...DEFAULT_LIMITS, ...options.limits };
    this.#log = options.log ?? (() => {});
    this.#tlsRequired = tls?.required ?? false;
    const handshakeTimeoutMs = this.#limits.timeoutMs;
    this.#tunnels = tls && this.#makeTunnels(tls.credentials, tls.native);
    this.#host = {
      directory,
      startTransmission,
      tlsMode: tls === undefined ? "none" : tls.required ? "require" : "allow",
      metaContexts: [baseAllocation, ...(options.metaContexts ?? [])],
      tunnels: this.#tunnels,
      handshakeTimeoutMs,
      ...(admit && { admit }),
    };
  }

  get unfinishedHandshakes(): number {
    return this.#unfinished.size;
  }

  /** Listens on an address; resolves to the URI of the volume's origin there. Rejects with a ListenError. */
  async listen(address: ListenerAddress): Promise<string> {
    return this.#open((server) => listen(server, address));
  }

  /** Takes over a listening socket from the service manager (see inheritedDescriptors). */
  async listenInherited(fd: number): Promise<string> {
    return this.#open((server) => listenInherited(server, fd));
  }

  /** Stops listening and ends unfinished handshakes; connections in transmission are native code's to end. */
  async stopAccepting(): Promise<void> {
    const closed = [...this.#listeners].map(
      (server) => new Promise<void>((done) => server.close(() => done())),
    );
    this.#listeners.clear();
    for (const connection of [...this.#unfinished.keys()]) connection.close("the server is stopping");
    await Promise.all(closed);
  }

  /** Stops accepting, then gives TLS up to `graceMs` to carry what transmission has sent. */
  async close(graceMs = 0): Promise<void> {
    await this.stopAccepting();
    await this.#tunnels?.close(graceMs);
  }

  #makeTunnels(credentials: TlsCredentials, native: NativeSockets): TlsTunnels {
    const setup = { credentials, handshakeTimeoutMs: this.#limits.timeoutMs };
    const workerCountMax = Math.min(4, availableParallelism());
    return new TlsTunnels({ setup, native, workerCountMax, log: this.#log });
  }

  async #open(start: (server: Server) => Promise<ListenerAddress>): Promise<string> {
    // A client may close its half behind its last request and still wants the answers.
    const server = createServer({ allowHalfOpen: true, noDelay: true });
    const bound = await start(server);
    server.on("connection", (socket) => this.#accept(socket, bound.transport));
    server.on("error", (error) => this.#log(`listener: ${error.message}`));
    this.#listeners.add(server);
    return nbdUri(bound, this.#tlsRequired);
  }

  #accept(socket: Socket, transport: ClientInfo["transport"]): void {
    const client = describeClient(socket, transport);
    this.counters.accepted++;
    if (this.#isFull(client)) {
      this.counters.turnedAway++;
      socket.on("error", () => {});
      socket.destroy();
      return;
    }
    const connection = new Connection(socket, client, this.#host, (end) => {
      this.#unfinished.delete(connection);
      if (end.kind === "transmission") this.counters.handedOver++;
      else this.counters.handshakesFailed++;
      const who = client.transport === "unix" ? "unix client" : client.address;
      this.#log(
        end.kind === "transmission" ? `${who}: uses ${end.info.name}` : `${who}: closed, ${end.reason}`,
      );
    });
    this.#unfinished.set(connection, client.address);
  }

  #isFull(client: ClientInfo): boolean {
    if (this.#unfinished.size >= this.#limits.unfinishedMax) return true;
    if (client.transport === "unix") return false;
    let same = 0;
    for (const address of this.#unfinished.values()) if (address === client.address) same++;
    return same >= this.#limits.unfinishedPerAddressMax;
  }
}

/** A TCP peer that has already gone has no address and is local to nobody. */
function describeClient(socket: Socket, transport: ClientInfo["transport"]): ClientInfo {
  if (transport === "unix") return { transport, address: "", local: true, tls: false };
  const address = (socket.remoteAddress ?? "").replace(/^::ffff:(?=[0-9.]+$)/, "");
  return { transport, address, local: isLoopback(address), tls: false };
}
