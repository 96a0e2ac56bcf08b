// The units of packaging/systemd under a real systemd, in a virtual machine: systemd.sh there does the work, and
// this counts. One kernel: none of it depends on which. With CSNAP_TIER=full only: test/unit/packaging.test.ts has
// the units verified always.
import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { it } from "vitest";
import { collect } from "../support/csnap.js";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const LIMIT_S = 600;

it.runIf(process.env.CSNAP_TIER === "full")(
  "the units boot, survive restarts and kills, and shut down in order",
  async () => {
    const command = ["--timeout", String(LIMIT_S), "--", "test/vm/systemd.sh", process.execPath];
    const { status, stdout, stderr } = await collect(
      spawn("scripts/vm", command, { cwd: ROOT, stdio: ["ignore", "pipe", "pipe"] }),
    );
    console.log(stdout);
    const last = stdout.trimEnd().split("\n").at(-1) ?? "";
    if (status !== 0 || !/^[1-9]\d* passed, 0 failed$/.test(last))
      throw new Error(`status ${status}, "${last}"\n${stdout}${stderr}`);
  },
);
