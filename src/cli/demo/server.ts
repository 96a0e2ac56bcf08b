// Runs csnap itself for the demo: commands as child processes, and the server beside them.
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { CsnapError, oneLine } from "../../volume/errors.js";
import { runWith } from "./tools.js";

const mainScript = fileURLToPath(new URL("../main.js", import.meta.url));

export class DemoCsnap {
  private readonly env: NodeJS.ProcessEnv;
  private server: ChildProcess | undefined;

  /** All state and sockets below `directory`: the demo touches nothing else. */
  constructor(directory: string) {
    this.env = {
      ...process.env,
      CSNAP_STATE_DIR: `${directory}/state`,
      CSNAP_RUN_DIR: `${directory}/run`,
      CSNAP_BROKER: "local:",
    };
  }

  /** One command; returns its stdout. */
  async run(...args: readonly string[]): Promise<string> {
    const { status, stdout, stderr } = await runWith(
      { env: this.env },
      process.execPath,
      mainScript,
      ...args,
    );
    if (status === 0) return stdout;
    throw new CsnapError(
      "FAILED",
      `demo: csnap ${args.join(" ")} failed: ${oneLine(stderr).replace(/^csnap: /, "")}`,
    );
  }

  /** Starts the server; resolves to its URI once it accepts. */
  async serve(volume: string): Promise<string> {
    const server = spawn(process.execPath, [mainScript, "serve", volume], {
      env: this.env,
      stdio: ["ignore", "pipe", "pipe"],
    });
    this.server = server;
    let log = "";
    server.stderr.setEncoding("utf8").on("data", (text: string) => {
      log += text;
    });
    const prefix = `csnap: ${volume} ready `;
    for await (const line of createInterface({ input: server.stdout })) {
      if (line.startsWith(prefix)) return line.slice(prefix.length);
    }
    throw new CsnapError("FAILED", `demo: the server did not start: ${oneLine(log)}`);
  }

  /** SIGTERM; resolves when it has ended in order. */
  async stop(): Promise<void> {
    const { server } = this;
    if (!server || server.exitCode !== null || server.signalCode !== null) return;
    const ended = once(server, "exit");
    server.kill("SIGTERM");
    const [code] = await ended;
    if (code !== 0) throw new CsnapError("FAILED", `demo: the server ended with status ${String(code)}`);
  }

  /** On the way out of a demo that broke off. */
  kill(): void {
    this.server?.kill("SIGKILL");
  }
}
