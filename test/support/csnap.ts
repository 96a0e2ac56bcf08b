/** Runs the built `csnap` as its user does: commands, and servers with a state directory of their own. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { rmSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import tmp from "tmp";

/** The built one, or (CSNAP_MAIN) any other, such as one that is installed. */
export const MAIN =
  process.env.CSNAP_MAIN ?? fileURLToPath(new URL("../../dist/cli/main.js", import.meta.url));

export interface Outcome {
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** A scratch directory with state and run directory; everything csnap makes in a test is below it. */
export class Sandbox {
  readonly directory: string;
  readonly env: NodeJS.ProcessEnv;
  readonly #servers = new Set<Server>();

  /** Below `parent`, or where temporary files go. */
  constructor(parent?: string) {
    const place = { prefix: "csnap-test-", ...(parent !== undefined && { tmpdir: parent }) };
    this.directory = tmp.dirSync(place).name;
    const { CSNAP_STATE_DIR: _state, CSNAP_RUN_DIR: _run, NOTIFY_SOCKET: _notify, ...env } = process.env;
    this.env = {
      ...env,
      CSNAP_STATE_DIR: this.path("state"),
      CSNAP_RUN_DIR: this.path("run"),
      NO_COLOR: "1",
    };
  }

  path(name: string): string {
    return join(this.directory, name);
  }

  csnap(...args: string[]): Promise<Outcome> {
    return collect(
      spawn(process.execPath, [MAIN, ...args], { env: this.env, stdio: ["ignore", "pipe", "pipe"] }),
    );
  }

  /** A command that must succeed; its stdout. */
  async must(...args: string[]): Promise<string> {
    const { status, stdout, stderr } = await this.csnap(...args);
    if (status !== 0) throw new Error(`csnap ${args.join(" ")} ended with ${status}: ${stderr}`);
    return stdout;
  }

  async json<T>(...args: string[]): Promise<T> {
    return JSON.parse(await this.must(...args, "--json")) as T;
  }

  /** `csnap serve`, ready. Killed by close() at the latest. */
  async serve(volume: string, ...args: string[]): Promise<Server> {
    const server = new Server(
      spawn(process.execPath, [MAIN, "serve", volume, ...args], {
        env: this.env,
        stdio: ["ignore", "pipe", "pipe"],
      }),
    );
    this.#servers.add(server);
    await server.ready(volume);
    return server;
  }

  /** A volume of `size` with a store of `storeSize` on sparse files. */
  async init(volume: string, size: string, storeSize: string, ...args: string[]): Promise<void> {
    const paths = ["--origin", this.path(`${volume}.img`), "--store", this.path(`${volume}.store`)];
    await this.must("init", volume, ...paths, "--size", size, "--store-size", storeSize, ...args);
  }

  async close(): Promise<void> {
    for (const server of this.#servers) await server.kill();
    rmSync(this.directory, { recursive: true, force: true });
  }
}

export class Server {
  readonly uris: string[] = [];
  #log = "";

  constructor(readonly child: ChildProcess) {
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.#log += text;
    });
  }

  get log(): string {
    return this.#log;
  }

  get uri(): string {
    return this.uris[0] ?? "";
  }

  /** The URI of an export on the first listener. */
  exportUri(name: string): string {
    return this.uri.startsWith("nbd+unix")
      ? this.uri.replace(":///?", `:///${name}?`)
      : `${this.uri.replace(/\/$/, "")}/${name}`;
  }

  /** Waits for the first ready line; later ones are added as they come. */
  async ready(volume: string): Promise<void> {
    if (!this.child.stdout) throw new Error("the server's stdout is not a pipe");
    const lines = createInterface({ input: this.child.stdout });
    await new Promise<void>((resolve, reject) => {
      lines.on("line", (line) => {
        const uri = new RegExp(`^csnap: ${volume} ready (\\S+)$`).exec(line)?.[1];
        if (uri === undefined) return;
        this.uris.push(uri);
        resolve();
      });
      lines.on("close", () => reject(new Error(`csnap serve ${volume} did not start: ${this.#log}`)));
    });
  }

  async stop(signal: NodeJS.Signals = "SIGTERM"): Promise<number | null> {
    const ended = this.#ended();
    this.child.kill(signal);
    return ended;
  }

  async kill(): Promise<void> {
    await this.stop("SIGKILL");
  }

  /** Resolves to the exit status. */
  async #ended(): Promise<number | null> {
    if (this.child.exitCode === null && this.child.signalCode === null) await once(this.child, "exit");
    return this.child.exitCode;
  }

  async exit(): Promise<number | null> {
    return this.#ended();
  }
}

export async function collect(child: ChildProcess): Promise<Outcome> {
  let stdout = "";
  let stderr = "";
  child.stdout?.setEncoding("utf8").on("data", (text: string) => {
    stdout += text;
  });
  child.stderr?.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  const [status, signal] = (await once(child, "close")) as [number | null, NodeJS.Signals | null];
  return { status, signal, stdout, stderr };
}
