// A process of its own, started by freeze.ts: freezes a file system, and thaws it when its stdin
// closes or the limit passes, whichever comes first.
//
//     freeze_watchdog MOUNTPOINT LIMIT_MS
//
// Answers on stdout, one a line: `frozen`, then `thawed` or `expired`; or why it could not freeze.
//
// FW1 What it froze it thaws; signals that end other processes do not keep it from that.
// FW2 It never thaws a freeze of somebody else (fsfreeze then refuses to freeze).
import { spawnSync } from "node:child_process";

const [mountPoint = "", limitText = ""] = process.argv.slice(2);

for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => {});
process.stdout.on("error", () => {}); // csnap is gone: thawing is what counts

function fsfreeze(verb: "--freeze" | "--unfreeze"): string | undefined {
  const run = spawnSync("fsfreeze", [verb, mountPoint], { encoding: "utf8" });
  if (run.error) return "the command fsfreeze is missing: install util-linux";
  return run.status === 0
    ? undefined
    : run.stderr.replace(/\s+/g, " ").trim() || `fsfreeze ended with ${run.status}`;
}

function finish(answer: string): void {
  const problem = fsfreeze("--unfreeze");
  process.stdout.write(`${problem ?? answer}\n`, () => process.exit(problem === undefined ? 0 : 1));
}

const problem = fsfreeze("--freeze");
if (problem !== undefined) {
  process.stdout.write(`${problem}\n`, () => process.exit(1));
} else {
  let ended = false;
  const end = (answer: string) => {
    if (ended) return;
    ended = true;
    finish(answer);
  };
  setTimeout(() => end("expired"), Number(limitText));
  process.stdin.on("end", () => end("thawed")).on("error", () => end("thawed"));
  process.stdin.resume();
  process.stdout.write("frozen\n");
}
