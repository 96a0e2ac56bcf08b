// `--freeze MOUNTPOINT`: keeps a file system frozen while work is done, with a watchdog process that
// thaws it whatever happens to csnap.
//
// FR1 Only the watchdog freezes and thaws. It holds the read end of a pipe from this process: when
//     csnap ends in any way, kill -9 included, the pipe closes and it thaws.
// FR2 whileFrozen() succeeds only if the work ended before the limit, while the freeze still held.
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { realpathSync, statSync } from "node:fs";
import { createInterface, type Interface } from "node:readline";
import { fileURLToPath } from "node:url";
import { CsnapError, codeOf, oneLine, systemText } from "../volume/errors.js";
import { hostView, isMountPoint } from "../volume/inspect.js";
import { formatDuration } from "../volume/sizes.js";

/** Refuses what is no mount point, and a file system that holds the volume itself (it would hang). */
export function checkFreezable(mountPoint: string, volumePaths: readonly string[]): void {
  let path: string;
  try {
    path = realpathSync(mountPoint);
  } catch (error) {
    throw new CsnapError(codeOf(error), `--freeze ${mountPoint}: ${systemText(error)}`);
  }
  if (!isMountPoint(path, hostView().mountinfo)) {
    throw new CsnapError(
      "INVALID_ARGUMENT",
      `--freeze ${mountPoint}: nothing is mounted there: name the mount point`,
    );
  }
  const device = statSync(path).dev;
  for (const volumePath of volumePaths) {
    const stat = statSync(volumePath, { throwIfNoEntry: false });
    if (stat?.isFile() && stat.dev === device) {
      throw new CsnapError(
        "INVALID_ARGUMENT",
        `--freeze ${mountPoint}: this file system holds ${volumePath} itself, and freezing it would stop csnap: leave out --freeze`,
      );
    }
  }
}

export async function whileFrozen(
  mountPoint: string,
  limitMs: number,
  work: () => Promise<void>,
): Promise<void> {
  const watchdog = new Watchdog(mountPoint, limitMs);
  await watchdog.frozen();
  try {
    await work();
  } catch (error) {
    await watchdog.thaw().catch(() => {});
    throw error;
  }
  await watchdog.thaw();
}

/** This process's end of freeze_watchdog.ts. */
class Watchdog {
  private readonly child: ChildProcess;
  private readonly answers: AsyncIterator<string>;
  private readonly lines: Interface;

  constructor(
    private readonly mountPoint: string,
    private readonly limitMs: number,
  ) {
    // The same file in both forms: compiled, and as the tests' loader sees it.
    const script = fileURLToPath(new URL("./freeze_watchdog.js", import.meta.url));
    // Its own session: an interrupt from the terminal must not end it before it has thawed.
    this.child = spawn(process.execPath, [script, mountPoint, String(limitMs)], {
      detached: true,
      stdio: ["pipe", "pipe", "inherit"],
    });
    this.child.stdin?.on("error", () => {}); // it is gone; its answer, or none, tells
    if (!this.child.stdout) throw new Error("the watchdog has no stdout");
    this.lines = createInterface({ input: this.child.stdout });
    this.answers = this.lines[Symbol.asyncIterator]();
  }

  async frozen(): Promise<void> {
    await this.expect("frozen");
  }

  async thaw(): Promise<void> {
    this.child.stdin?.end();
    const exited = this.child.exitCode === null ? once(this.child, "exit") : undefined;
    await this.expect("thawed");
    await exited;
    this.lines.close();
  }

  private async expect(wanted: string): Promise<void> {
    const { value } = await this.answers.next();
    const answer = typeof value === "string" ? value : "";
    if (answer === wanted) return;
    if (answer === "expired") {
      throw new CsnapError(
        "BUSY",
        `--freeze ${this.mountPoint}: the snapshot was not done within ${formatDuration(this.limitMs)}, so the file system was thawed and the snapshot given up: try again, or raise --freeze-limit`,
      );
    }
    const cause =
      answer === "" ? "its watchdog process ended; `fsfreeze --unfreeze` thaws it by hand" : answer;
    throw new CsnapError("IO_ERROR", `--freeze ${this.mountPoint} failed: ${oneLine(cause)}`);
  }
}
