// Which process holds something, so that another one can tell whether it still lives. Called by the
// local backend, whose processes all run on one kernel.
//
// PI1 A process is known by boot id, pid and start time together: a pid alone is used again.
// PI2 "Gone" is only said of a process of another boot, or one whose pid is free, a zombie's, or
//     somebody else's by start time. What can't be read is taken to live.
// PI3 A zombie with threads left is not gone: proc_pid_stat(5) shows the state of the first thread, and
//     of a server that was killed others may hang in the kernel, with a write that will land yet (F8).
import { readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { hostName } from "../volume/host.js";

export interface ProcessIdentity {
  readonly host: string;
  /** of the installation (machine-id(5)); '' where there is none */
  readonly machine: string;
  readonly boot_id: string;
  readonly pid: number;
  /** since boot, in clock ticks; decimal */
  readonly start_time: string;
}

let own: ProcessIdentity | undefined;

/** Reads /proc once: it holds no disk that could hang. */
export function ownIdentity(): ProcessIdentity {
  own ??= {
    host: hostName(),
    machine: machineId(),
    boot_id: bootId(),
    pid: process.pid,
    start_time: parseStat(readFileSync("/proc/self/stat", "utf8"))?.startTime ?? "",
  };
  return own;
}

function machineId(): string {
  try {
    return readFileSync("/etc/machine-id", "utf8").trim();
  } catch {
    return "";
  }
}

/**
 * Whether this kernel can say what became of it: it runs on this one, or ran on a former boot of this
 * machine. The name counts too: clones may share a machine id, and hosts a name, but not both.
 */
export function isOfThisHost(identity: ProcessIdentity, self: ProcessIdentity): boolean {
  if (identity.host !== self.host) return false;
  if (identity.boot_id === self.boot_id) return true;
  return self.machine !== "" && identity.machine === self.machine;
}

function bootId(): string {
  return readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
}

export function sameProcess(a: ProcessIdentity, b: ProcessIdentity): boolean {
  return a.boot_id === b.boot_id && a.pid === b.pid && a.start_time === b.start_time;
}

/** PI2, PI3 */
export async function isAlive(identity: ProcessIdentity): Promise<boolean> {
  const self = ownIdentity();
  if (identity.boot_id !== self.boot_id) return false;
  if (sameProcess(identity, self)) return true;
  try {
    const stat = parseStat(await readFile(`/proc/${identity.pid}/stat`, "utf8"));
    if (!stat) return true;
    return stat.startTime === identity.start_time && !(/[ZXx]/.test(stat.state) && stat.threads <= 1);
  } catch (error) {
    const code = error instanceof Error && "code" in error ? error.code : "";
    return code !== "ENOENT" && code !== "ESRCH";
  }
}

export type IsAlive = typeof isAlive;

interface Stat {
  readonly state: string;
  readonly threads: number;
  readonly startTime: string;
}

/** Of proc_pid_stat(5): the name in field 2 may hold blanks and parentheses. */
function parseStat(text: string): Stat | undefined {
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  const [state, threads, startTime] = [fields[0], fields[17], fields[19]];
  if (state === undefined || threads === undefined || startTime === undefined) return undefined;
  return { state, threads: Number(threads), startTime };
}
