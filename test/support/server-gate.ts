/**
 * Storage that syncs, or fails to, when a test says so: server-gate.c, preloaded into a server, asks here before each fdatasync,
 * and before each pwrite where that is wanted. Needs a C compiler.
 */
import { execFileSync } from "node:child_process";
import { createServer, type Server, type Socket } from "node:net";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

/** Before the path where a write asks. */
const WRITE = "write ";

export class SyncGate {
  /** What was asked for so far, by the path of the file. */
  readonly asked: string[] = [];
  readonly #server: Server;
  readonly #held: { path: string; socket: Socket }[] = [];
  #holding: (path: string) => boolean = () => false;
  #failing: (path: string) => boolean = () => false;
  #wake = () => {};

  private constructor(
    readonly env: NodeJS.ProcessEnv,
    server: Server,
  ) {
    this.#server = server;
    server.on("connection", (socket) => {
      socket.on("error", () => socket.destroy());
      socket.once("data", (bytes) => this.#ask(bytes.toString().trimEnd(), socket));
    });
  }

  /** `env` goes to the server. @param writes they ask, too */
  static async open(directory: string, writes = false): Promise<SyncGate> {
    const library = join(directory, "gate.so");
    const source = fileURLToPath(new URL("./server-gate.c", import.meta.url));
    execFileSync("cc", ["-shared", "-fPIC", "-Wall", "-Werror", "-o", library, source, "-ldl"]);
    const path = join(directory, "gate.sock");
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(path, resolve));
    const env = {
      LD_PRELOAD: library,
      CSNAP_TEST_GATE: path,
      ...(writes && { CSNAP_TEST_GATE_WRITES: "1" }),
    };
    return new SyncGate(env, server);
  }

  #ask(path: string, socket: Socket): void {
    this.asked.push(path);
    if (this.#failing(path)) socket.end("e");
    else if (this.#holding(path)) this.#held.push({ path, socket });
    else socket.end("g");
    this.#wake();
  }

  /** From now on, what is asked for files whose path ends so waits for release(). */
  hold(suffix: string): void {
    this.#holding = (path) => path.endsWith(suffix);
  }

  /** From now on, writes of files whose path ends so wait for release(); their syncs go on. */
  holdWrites(suffix: string): void {
    this.#holding = (path) => path.startsWith(WRITE) && path.endsWith(suffix);
  }

  /** From now on, what is asked for files whose path ends so fails with EIO. */
  fail(suffix: string): void {
    this.#failing = (path) => path.endsWith(suffix);
  }

  /** Resolves when something is held. */
  async held(): Promise<string> {
    for (;;) {
      const first = this.#held[0];
      if (first !== undefined) return first.path;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  /** Lets go what is held, and all that follows. */
  release(): void {
    this.#holding = () => false;
    for (const { socket } of this.#held.splice(0)) socket.end("g");
  }

  close(): void {
    this.release();
    this.#server.close();
  }
}
