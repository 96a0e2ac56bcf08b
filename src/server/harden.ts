// Precautions against a deadlock of memory, for `csnap serve` and `csnap agent`: the kernel can free
// memory that is dirty behind an NBD device only when the server writes it out, and only the agent
// brings a device back. So neither may wait for memory, be swapped out or be killed for it.
//
// HA1 What can't be had is said in a line with its remedy, and is no error.
// HA2 The kernel marks the calling thread and those it starts later: called before a volume is opened.
// HA3 Root hears of what is missing in the log, once it works. For others it is news only while a
//     device of this host depends on the server: elsewhere no deadlock can be.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { NativeBinding } from "../native.js";
import { isLoopback } from "../nbd/listen.js";
import { systemText } from "../volume/errors.js";
import { hostName } from "../volume/host.js";
import type { ClientRecord } from "../volume/model.js";

/** Takes all precautions; returns those that could not be taken, a line each. */
export function takePrecautions(native: Pick<NativeBinding, "hardenProcess">): string[] {
  return [...native.hardenProcess().problems, ...protectFromOom(), ...swapProblems(readText)];
}

function protectFromOom(): string[] {
  try {
    writeFileSync("/proc/self/oom_score_adj", "-1000");
    return [];
  } catch (error) {
    return [
      `the kernel may kill the process when memory is short (${systemText(error)}); give CAP_SYS_RESOURCE, or OOMScoreAdjust=-1000 in its unit`,
    ];
  }
}

/** V8's heap can't be locked: only the control group keeps it out of the swap. */
export function swapProblems(read: (path: string) => string): string[] {
  const hasSwap = read("/proc/swaps").trim().split("\n").length > 1;
  if (!hasSwap) return [];
  const path = /^0::(\/.*)$/m.exec(read("/proc/self/cgroup"))?.[1] ?? "/";
  for (let group = path; group !== "/"; group = join(group, "..")) {
    if (read(join("/sys/fs/cgroup", group, "memory.swap.max")).trim() === "0") return [];
  }
  return [
    "the process may be swapped out; set MemorySwapMax=0 in its unit, as csnap's own have it, or use no swap",
  ];
}

function readText(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return ""; // no such attribute: nothing is limited
  }
}

export interface Dependents {
  /** the host that holds the origin read-write, or undefined */
  readonly holder: string | undefined;
  readonly clients: readonly Pick<ClientRecord, "attachment" | "peer">[];
}

/** HA3: of what is missing, that which matters now. */
export function warningsOf(
  problems: readonly string[],
  isRoot: boolean,
  { holder, clients }: Dependents,
): readonly string[] {
  const isUsedHere =
    holder === hostName() || clients.some(({ attachment, peer }) => attachment !== null && isThisHost(peer));
  return isRoot || isUsedHere ? problems : [];
}

function isThisHost(peer: string): boolean {
  return peer === "unix socket" || isLoopback(peer);
}
