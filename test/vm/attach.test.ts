// Devices attached by the agent, on real kernels: the programs in the machine do the work, and this counts.
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "vitest";
import { runInVm } from "../support/vm.js";

const isFull = process.env.CSNAP_TIER === "full";
const MINUTE_S = 60;
const LIMIT_S = (isFull ? 90 : 10) * MINUTE_S;
const DISK_BYTES = 2 * 2 ** 30;

function run(kernel: string, program: string, options: readonly string[] = []): Promise<void> {
  const machine = { kernel, limitS: LIMIT_S, options: ["--env", "CSNAP_TIER", ...options] };
  return runInVm(machine, ["sh", "test/vm/attach.sh", process.execPath, program]);
}

/** A sparse disk for the machine, gone afterwards. */
async function withDisk(body: (path: string) => Promise<void>): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "csnap-attach."));
  const path = join(directory, "disk");
  try {
    writeFileSync(path, "");
    truncateSync(path, DISK_BYTES);
    await body(path);
  } finally {
    rmSync(directory, { recursive: true });
  }
}

/** In the default tier each program runs on one kernel; with CSNAP_TIER=full on both. */
const programs: [what: string, kernel: string, program: string, small?: boolean][] = [
  ["server and agent are killed and restarted under a file system", "6.12", "attach-restarts.mjs"],
  ["many attachments leave nothing behind", "6.1", "attach-many.mjs"],
  ["another server and a second writer are refused", "6.12", "attach-refusals.mjs"],
  ["one line each for what can't be; mounts; --on-lost", "6.1", "attach-words.mjs"],
  ["server and device share a small machine", "6.1", "attach-memory.mjs", true],
];

for (const kernel of ["6.1", "6.12"])
  describe(`devices on ${kernel}`, () => {
    for (const [what, first, program, small] of programs) {
      if (!isFull && kernel !== first) continue;
      it(what, { timeout: LIMIT_S * 1000 }, () =>
        small
          ? withDisk((path) => run(kernel, program, ["--memory", "512", "--disk", path]))
          : run(kernel, program),
      );
    }
  });
