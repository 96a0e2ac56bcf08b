// The external fence: a command that cuts a lost host off the store (F8). Called by the agent that is
// about to take over.
//
// FE1 Status 0, and nothing else, confirms. A command that does not end within fenceLimitMs is killed,
//     with what it started, and confirms nothing.
import { spawn } from "node:child_process";
import { oneLine } from "../volume/errors.js";

export const fenceLimitMs = 60_000;
const keptOutputBytes = 4096;

export interface FenceTarget {
  readonly service: string;
  readonly host: string;
  readonly bootId: string;
  readonly epoch: bigint;
}

/** Undefined: confirmed. Else why not, in one line. */
export function runFence(command: string, target: FenceTarget): Promise<string | undefined> {
  return new Promise((resolve) => {
    const child = spawn("/bin/sh", ["-c", command], {
      detached: true,
      stdio: ["ignore", "pipe", "pipe"],
      env: {
        ...process.env,
        CSNAP_FENCE_HOST: target.host,
        CSNAP_FENCE_BOOT_ID: target.bootId,
        CSNAP_FENCE_VOLUME: target.service,
        CSNAP_FENCE_EPOCH: String(target.epoch),
      },
    });
    let said = "";
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding("utf8").on("data", (text: string) => {
        said = (said + text).slice(-keptOutputBytes);
      });
    let late = false;
    const limit = setTimeout(() => {
      late = true;
      try {
        // Its process group: what it started holds its output open.
        process.kill(-(child.pid ?? 0), "SIGKILL");
      } catch {
        // It has just ended.
      }
    }, fenceLimitMs);
    const end = (why: string | undefined) => {
      clearTimeout(limit);
      resolve(why === undefined || said === "" ? why : `${why}: ${oneLine(said.trim())}`);
    };
    child.once("error", (error) => end(`the fence command can't be run: ${error.message}`));
    child.once("exit", (status, signal) => {
      if (status === 0) end(undefined);
      else if (late) end(`the fence command did not end within ${fenceLimitMs / 1000} s`);
      else end(`the fence command ended with ${signal ?? `status ${status}`}`);
    });
  });
}

export type Fence = typeof runFence;
