/** Loop devices that a test takes down itself. */
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

const LIMIT_MS = 10_000;

/**
 * Detaches a loop device (`/dev/loopN`) and waits until it has let its file go. The kernel puts that off
 * while anybody has the device open, as whoever looks for file systems does after every unmount.
 */
export async function detachLoop(device: string, env: NodeJS.ProcessEnv = process.env): Promise<void> {
  execFileSync("losetup", ["--detach", device], { env, stdio: "pipe" });
  const bound = `/sys/block/${device.slice("/dev/".length)}/loop`;
  for (const end = performance.now() + LIMIT_MS; existsSync(bound); await sleep(10))
    if (performance.now() > end) throw new Error(`${device} has not let its file go in ${LIMIT_MS / 1000} s`);
}
