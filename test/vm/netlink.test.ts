// The addon's netlink calls against real kernels: netlink-devices.mjs in the machine does the work, and this counts.
import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { describe, it } from "vitest";
import { collect } from "../support/csnap.js";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const LIMIT_S = 400;

async function run(kernel: string): Promise<void> {
  const command = ["--kernel", kernel, "--timeout", String(LIMIT_S), "--"];
  const { status, stdout, stderr } = await collect(
    spawn("scripts/vm", [...command, process.execPath, "test/vm/netlink-devices.mjs"], {
      cwd: ROOT,
      stdio: ["ignore", "pipe", "pipe"],
    }),
  );
  console.log(stdout);
  const last = stdout.trimEnd().split("\n").at(-1) ?? "";
  if (status !== 0 || !/^[1-9]\d* passed, 0 failed$/.test(last))
    throw new Error(`status ${status}, "${last}"\n${stdout}${stderr}`);
}

describe("the kernel's nbd over netlink", () => {
  for (const kernel of ["6.1", "6.12"])
    it.concurrent(`${kernel}: attached, cut, reconnected, detached; refusals say why`, () => run(kernel));
});
