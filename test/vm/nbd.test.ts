// The kernel's NBD driver as csnap's client, in a virtual machine with a real kernel: nbd-regression.sh there does the
// work, and this counts. Default tier: each kernel and each file system once; CSNAP_TIER=full: all four pairs. Two
// machines run at a time.
import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { describe, it } from "vitest";
import { collect } from "../support/csnap.js";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const LIMIT_S = 600;

type Pair = [kernel: string, kind: string];
const pairs: Pair[][] = [
  [
    ["6.1", "ext4"],
    ["6.12", "xfs"],
  ],
  [
    ["6.12", "ext4"],
    ["6.1", "xfs"],
  ],
];

async function run([kernel, kind]: Pair): Promise<void> {
  const command = ["--kernel", kernel, "--timeout", String(LIMIT_S), "--"];
  const { status, stdout, stderr } = await collect(
    spawn("scripts/vm", [...command, "test/vm/nbd-regression.sh", kind], {
      cwd: ROOT,
      stdio: ["ignore", "pipe", "pipe"],
    }),
  );
  console.log(stdout);
  const last = stdout.trimEnd().split("\n").at(-1) ?? "";
  if (status !== 0 || !/^[1-9]\d* passed, 0 failed$/.test(last))
    throw new Error(`status ${status}, "${last}"\n${stdout}${stderr}`);
}

describe.each(pairs.slice(0, process.env.CSNAP_TIER === "full" ? 2 : 1))("the kernel's nbd", (...both) => {
  for (const pair of both) {
    it.concurrent(`${pair.join(", ")}: verified load, snapshots come and go, what is kept is right`, () =>
      run(pair));
  }
});
