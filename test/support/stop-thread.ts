/**
 * A process of which one thread stands still while the others go on: what is left of a server whose main thread is stuck.
 * Needs a C compiler, and root.
 */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

export class StoppedThread {
  readonly #holder: ChildProcess;

  private constructor(holder: ChildProcess) {
    this.#holder = holder;
  }

  /** @param tid a process' main thread has its pid @param directory for the compiled tool */
  static async stop(tid: number, directory: string): Promise<StoppedThread> {
    const tool = join(directory, "stop-thread");
    const source = fileURLToPath(new URL("./stop-thread.c", import.meta.url));
    execFileSync("cc", ["-Wall", "-Werror", "-o", tool, source]);
    const holder = spawn(tool, [String(tid)], { stdio: ["pipe", "pipe", "inherit"] });
    const said = await Promise.race([once(holder.stdout, "data"), once(holder, "exit")]);
    if (!String(said[0]).startsWith("stopped")) throw new Error(`thread ${tid} can't be stopped`);
    return new StoppedThread(holder);
  }

  /** It goes on. */
  async release(): Promise<void> {
    if (this.#holder.exitCode !== null || this.#holder.signalCode !== null) return;
    this.#holder.stdin?.end();
    await once(this.#holder, "exit");
  }
}
