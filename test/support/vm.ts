// Programs in a virtual machine whose last line counts what they checked.
import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { collect } from "./csnap.js";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
/** Of QEMU's emulation, not of what runs in it: see V5 of scripts/vm, which sees to the boot only. */
const EMULATOR_FAULT = /Oops: int3/;

export interface Machine {
  readonly kernel?: string;
  readonly limitS: number;
  /** further options of scripts/vm */
  readonly options?: readonly string[];
  /** before each attempt */
  readonly prepare?: () => Promise<void>;
}

/** Throws what the program printed unless it ended with `N passed, 0 failed` and status 0. */
export async function runInVm(machine: Machine, command: readonly string[]): Promise<void> {
  const { kernel, limitS, options = [] } = machine;
  const chosen = kernel === undefined ? [] : ["--kernel", kernel];
  const run = async () => {
    await machine.prepare?.();
    return collect(
      spawn("scripts/vm", [...chosen, "--timeout", String(limitS), ...options, "--", ...command], {
        cwd: ROOT,
        stdio: ["ignore", "pipe", "pipe"],
      }),
    );
  };
  let { status, stdout, stderr } = await run();
  if (status === 125 && EMULATOR_FAULT.test(stderr)) {
    console.log(`the emulator failed; once more:\n${stderr}`);
    ({ status, stdout, stderr } = await run());
  }
  console.log(stdout);
  const last = stdout.trimEnd().split("\n").at(-1) ?? "";
  if (status !== 0 || !/^[1-9]\d* passed, 0 failed$/.test(last))
    throw new Error(`status ${status}, "${last}"\n${stdout}${stderr}`);
}
