/** Which processes are gone: only what can't do anything any more. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { setTimeout as pause } from "node:timers/promises";
import { expect, it } from "vitest";
import { isAlive, ownIdentity, type ProcessIdentity } from "../../src/broker/process_identity.js";

const LIMIT_MS = 20_000;

/** The fields of proc_pid_stat(5) behind the name. */
function stat(pid: number): string[] {
  const text = readFileSync(`/proc/${pid}/stat`, "utf8");
  return text.slice(text.lastIndexOf(")") + 2).split(" ");
}

const identityOf = (pid: number): ProcessIdentity => ({
  ...ownIdentity(),
  pid,
  start_time: stat(pid)[19] ?? "",
});

async function zombie(pid: number): Promise<void> {
  for (const end = performance.now() + LIMIT_MS; stat(pid)[0] !== "Z"; await pause(10))
    if (performance.now() > end) throw new Error(`process ${pid} is in state ${stat(pid)[0]}`);
}

/** What it prints first. */
async function firstLine(child: ChildProcess): Promise<string> {
  const [text] = (await once(child.stdout ?? expect.fail("no output"), "data")) as [Buffer];
  return text.toString("utf8").trim();
}

it("a killed process whose first thread is a zombie is alive while another is left in the kernel", async () => {
  // exit(2) by the system call ends the first thread only.
  const script = `import ctypes, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
print("up", flush=True)
ctypes.CDLL(None).syscall(${process.arch === "x64" ? 60 : 93}, 0)`;
  const child = spawn("python3", ["-c", script], { stdio: ["ignore", "pipe", "inherit"] });
  try {
    await firstLine(child);
    const identity = identityOf(child.pid ?? 0);
    await zombie(identity.pid);
    expect(await isAlive(identity)).toBe(true);
    child.kill("SIGKILL");
    await once(child, "exit");
    expect(await isAlive(identity)).toBe(false);
  } finally {
    child.kill("SIGKILL");
  }
});

it("a zombie of which nothing is left is gone, though its parent has not reaped it", async () => {
  // A shell might reap it on its way.
  const script = `import os, time
pid = os.fork()
if pid: print(pid, flush=True)
time.sleep(60)`;
  const parent = spawn("python3", ["-c", script], { stdio: ["ignore", "pipe", "inherit"] });
  try {
    const identity = identityOf(Number(await firstLine(parent)));
    expect(await isAlive(identity)).toBe(true);
    process.kill(identity.pid, "SIGKILL");
    await zombie(identity.pid);
    expect(await isAlive(identity)).toBe(false);
  } finally {
    parent.kill("SIGKILL");
  }
});
