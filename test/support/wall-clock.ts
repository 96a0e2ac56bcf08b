/**
 * Wall clocks that a test sets: libfaketime, preloaded into a host's processes, reads the step from a file. CLOCK_MONOTONIC
 * and CLOCK_BOOTTIME stay as the kernel has them.
 */
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";

function libraryPath(): string {
  const listed = execFileSync("dpkg", ["--listfiles", "libfaketime"], { encoding: "utf8" });
  const found = listed.split("\n").find((path) => path.endsWith("/libfaketimeMT.so.1"));
  if (found === undefined) throw new Error("libfaketime is missing: apt-get install faketime");
  return found;
}

export class WallClock {
  readonly env: NodeJS.ProcessEnv;
  readonly #file: string;

  /** @param directory where the file with the step is kept */
  constructor(host: string, directory: string) {
    this.#file = join(directory, `${host}.clock`);
    this.step(0);
    this.env = {
      LD_PRELOAD: libraryPath(),
      FAKETIME_TIMESTAMP_FILE: this.#file,
      FAKETIME_CACHE_DURATION: "1",
      FAKETIME_DONT_FAKE_MONOTONIC: "1",
      NO_FAKE_STAT: "1",
    };
  }

  /** Within a second, all processes of the host are so far from the true time. */
  step(seconds: number): void {
    writeFileSync(this.#file, `${seconds < 0 ? "-" : "+"}${Math.abs(seconds)}\n`);
  }
}
