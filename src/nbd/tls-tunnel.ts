/**
 * The main thread's side of TLS: worker threads that end it, and a tunnel per connection whose near end is an
 * ordinary socket with plaintext. connection.ts opens tunnels after STARTTLS; server.ts owns the pool.
 *
 * 1. The caller keeps its own descriptor of the client; the worker gets a dup, and closes it.
 * 2. Nothing is read from the near end before the identity is known.
 * 3. A worker that dies takes its connections with it, never the process; the next tunnel starts a new one.
 */
import { closeSync } from "node:fs";
import { Socket } from "node:net";
import { Worker } from "node:worker_threads";
import type { Identity } from "./exports.js";
import type { TlsCredentials } from "./tls.js";

/** What the addon does for sockets and Node cannot. */
export interface NativeSockets {
  /** A connected pair of unix stream sockets, close-on-exec. */
  socketPair(): [number, number];
  /** A close-on-exec dup. */
  duplicate(fd: number): number;
}

export interface TlsWorkerSetup {
  readonly credentials: TlsCredentials;
  readonly handshakeTimeoutMs: number;
}

export type ToTlsWorker =
  | { readonly kind: "open"; readonly id: number; readonly clientFd: number; readonly tunnelFd: number }
  | { readonly kind: "cancel"; readonly id: number };

export type FromTlsWorker =
  | { readonly kind: "secure"; readonly id: number; readonly identity: Identity | undefined }
  | { readonly kind: "failed"; readonly id: number; readonly reason: string }
  | { readonly kind: "closed"; readonly id: number };

export interface SecureEnd {
  readonly socket: Socket;
  readonly identity: Identity | undefined;
}

export interface Tunnel {
  /** Rejects with the reason if TLS was not established. */
  readonly secured: Promise<SecureEnd>;
  /** Gives up; `secured` rejects. */
  cancel(): void;
}

interface OpenTunnel {
  secured(identity: Identity | undefined): void;
  ended(reason: string): void;
}

interface RunningWorker {
  readonly worker: Worker;
  readonly tunnels: Map<number, OpenTunnel>;
}

export class TlsTunnels {
  readonly #setup: TlsWorkerSetup;
  readonly #native: NativeSockets;
  readonly #workerCountMax: number;
  readonly #log: (line: string) => void;
  readonly #workers = new Set<RunningWorker>();
  #nextId = 1;
  #whenIdle: (() => void) | undefined;

  constructor(options: {
    setup: TlsWorkerSetup;
    native: NativeSockets;
    workerCountMax: number;
    log: (line: string) => void;
  }) {
    this.#setup = options.setup;
    this.#native = options.native;
    this.#workerCountMax = options.workerCountMax;
    this.#log = options.log;
  }

  get openCount(): number {
    return [...this.#workers].reduce((sum, { tunnels }) => sum + tunnels.size, 0);
  }

  /** Starts TLS on a client's descriptor. Nothing may have been read from it beyond STARTTLS. */
  open(clientFd: number): Tunnel {
    const running = this.#leastLoaded();
    const id = this.#nextId++;
    const [near, far] = this.#native.socketPair();
    const secured = new Promise<SecureEnd>((resolve, reject) => {
      let pending = true;
      running.tunnels.set(id, {
        secured: (identity) => {
          pending = false;
          const socket = new Socket({ fd: near, allowHalfOpen: true, readable: true, writable: true });
          resolve({ socket, identity });
        },
        ended: (reason) => {
          running.tunnels.delete(id);
          if (this.openCount === 0) this.#whenIdle?.();
          if (!pending) return;
          pending = false;
          closeSync(near);
          reject(new Error(reason));
        },
      });
    });
    const dup = this.#native.duplicate(clientFd);
    post(running.worker, { kind: "open", id, clientFd: dup, tunnelFd: far });
    return { secured, cancel: () => post(running.worker, { kind: "cancel", id }) };
  }

  /** Waits until every tunnel has carried its last bytes, at most `graceMs`, then ends the workers. */
  async close(graceMs: number): Promise<void> {
    if (this.openCount > 0 && graceMs > 0) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, graceMs);
        this.#whenIdle = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    await Promise.all([...this.#workers].map(({ worker }) => worker.terminate()));
  }

  #leastLoaded(): RunningWorker {
    const byLoad = [...this.#workers].sort((a, b) => a.tunnels.size - b.tunnels.size);
    const [idlest] = byLoad;
    const full = this.#workers.size >= this.#workerCountMax;
    return idlest !== undefined && (full || idlest.tunnels.size === 0) ? idlest : this.#startWorker();
  }

  #startWorker(): RunningWorker {
    const worker = new Worker(new URL("./tls-worker.js", import.meta.url), {
      name: "csnap-tls",
      workerData: this.#setup,
    });
    const running: RunningWorker = { worker, tunnels: new Map() };
    this.#workers.add(running);
    worker.on("message", (message: FromTlsWorker) => {
      const tunnel = running.tunnels.get(message.id);
      if (message.kind === "secure") tunnel?.secured(message.identity);
      else tunnel?.ended(message.kind === "failed" ? message.reason : "the client went away");
    });
    worker.on("error", (error) => this.#log(`a TLS worker failed: ${error.message}`));
    worker.on("exit", () => {
      this.#workers.delete(running);
      for (const tunnel of [...running.tunnels.values()]) tunnel.ended("the TLS worker ended");
    });
    // The listeners keep the process alive, not the workers.
    worker.unref();
    return running;
  }
}

function post(worker: Worker, message: ToTlsWorker): void {
  worker.postMessage(message);
}
