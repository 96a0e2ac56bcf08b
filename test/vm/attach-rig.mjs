/**
 * What the attach-*.mjs programs work with: a count of tests, servers and agents as processes of their own, the
 * kernel's log, a measure of what a process holds. Used in the test machine only; attach.test.ts starts them.
 *
 * AR1 Every wait is for an event or a state, and bounded; what does not come within its limit has failed.
 * AR2 Server, agent and every program that does I/O on a device are processes of their own: a device that hangs hangs
 *     none of the test, and each can be killed alone.
 * AR3 The kernel's log is followed from the boot on, so that none of it is lost to its ring.
 */
import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, openSync, readdirSync, readFileSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { AgentClient } from "../../dist/agent/service.js";
import { ControlClient } from "../../dist/control/client.js";

if (process.env.CSNAP_VM === undefined) {
  console.error("attach: this attaches block devices; run it as: scripts/vm -- node test/vm/attach-*.mjs");
  process.exit(2);
}

export const isFull = process.env.CSNAP_TIER === "full";
export const MIB = 1 << 20;
const cli = fileURLToPath(new URL("../../dist/cli/main.js", import.meta.url));
export const work = mkdtempSync(join(process.env.CSNAP_WORK ?? tmpdir(), "attach."));
export const stateDir = `${work}/state`;
export const runDir = `${work}/run`;
const env = { ...process.env, CSNAP_STATE_DIR: stateDir, CSNAP_RUN_DIR: runDir, NO_COLOR: "1" };
/** What servers and agents said; shown when a test has failed. */
const logPath = `${work}/processes.log`;
const log = openSync(logPath, "a");

/** Seconds of CLOCK_MONOTONIC, which all processes share. */
export const now = () => Number(process.hrtime.bigint()) / 1e9;

// --- tests -----------------------------------------------------------------------------------------------------------

let passed = 0;
let failed = 0;
/** One test: counted, timed, bounded. */
export async function test(what, body, limitS = 120) {
  const began = now();
  writeSync(log, `--- ${what}\n`);
  try {
    await within(body(), limitS, what);
    passed++;
    console.log(`ok: ${what} (${(now() - began).toFixed(1)} s)`);
  } catch (error) {
    failed++;
    console.log(`FAILED: ${what} (${(now() - began).toFixed(1)} s)\n${error.stack}`);
  }
}

export async function within(promise, limitS, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: not within ${limitS} s`)), limitS * 1000);
  });
  return await Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** The first truthy answer of `ask`. */
export async function until(what, ask, limitS = 60) {
  const end = now() + limitS;
  for (;;) {
    const answer = await ask();
    if (answer) return answer;
    if (now() > end) throw new Error(`${what}: not within ${limitS} s`);
    await sleep(20);
  }
}

/** Prints the count and ends the process. */
export function finish() {
  if (failed > 0)
    console.log(`${readFileSync(logPath, "utf8").slice(-20_000)}\n${kernelLines.slice(-80).join("\n")}`);
  for (const child of children) child.kill("SIGKILL");
  console.log(`${passed} passed, ${failed} failed`);
  process.exit(failed === 0 ? 0 : 1);
}

// --- the kernel's log ------------------------------------------------------------------------------------------------

const kernelLines = [];
const children = new Set();
{
  const follow = spawn("dmesg", ["--follow", "--notime"], { stdio: ["ignore", "pipe", "inherit"] });
  children.add(follow);
  let rest = "";
  follow.stdout.setEncoding("utf8").on("data", (text) => {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    kernelLines.push(...lines);
  });
}

const EVIL =
  /I\/O error|EXT4-fs (error|warning)|XFS .*(rror|orrupt)|Aborting journal|blocked for more than|hung task|Double reply|Unexpected reply|Wrong magic|BUG:|WARNING:|Call Trace/;
const marks = () => kernelLines.length;
/** The kernel's lines from now on: call what it returns for the bad ones. */
export function watchKernel() {
  const from = marks();
  return () => kernelLines.slice(from).filter((line) => EVIL.test(line));
}

// --- processes -------------------------------------------------------------------------------------------------------

/** A csnap command to its end: its status and what it said. */
export async function csnap(words, options = {}) {
  const child = spawn(process.execPath, [cli, ...words], {
    env: { ...env, ...options.env },
    stdio: ["ignore", "pipe", "pipe"],
    ...(options.user !== undefined && { uid: options.user, gid: options.user }),
  });
  let stdout = "";
  let stderr = "";
  child.stdout.on("data", (text) => (stdout += text));
  child.stderr.on("data", (text) => (stderr += text));
  const [status] = await within(once(child, "close"), 100, `csnap ${words.join(" ")}`);
  return { status, stdout: stdout.trim(), stderr: stderr.trim() };
}

export async function ok(words) {
  const { status, stdout, stderr } = await csnap(words);
  assert.equal(status, 0, `csnap ${words.join(" ")}: ${stderr}`);
  return stdout;
}

/** Status 1 and one line that matches. */
export async function refusedLine(words, line, options) {
  const { status, stdout, stderr } = await csnap(words, options);
  console.log(`    csnap ${words.join(" ")} -> ${status}: ${stderr}`);
  assert.equal(status, 1, `csnap ${words.join(" ")}: ${stdout}${stderr}`);
  assert.match(stderr, line);
  assert.doesNotMatch(stderr, /\n/);
}

/** A daemon, there once it has said `word`. */
export async function startDaemon(words, word, more = {}) {
  const child = spawn(process.execPath, [cli, ...words], {
    env: { ...env, ...more },
    stdio: ["ignore", "pipe", "pipe"],
  });
  children.add(child);
  child.once("exit", () => children.delete(child));
  const ready = new Promise((resolve, reject) => {
    let said = "";
    const hear = (text) => {
      writeSync(log, text);
      if (said !== undefined) said += text;
      if (!said?.includes(word)) return;
      said = undefined;
      resolve();
    };
    child.stdout.on("data", hear);
    child.stderr.on("data", hear);
    child.once("exit", (status) => reject(new Error(`csnap ${words.join(" ")} ended: ${status}\n${said}`)));
  });
  await within(ready, 100, `csnap ${words.join(" ")}`);
  return child;
}

export const startServer = (volume = "disk1", ...more) =>
  startDaemon(["serve", volume, ...more], `${volume} ready`);
export const startAgent = (more = {}) => startDaemon(["agent"], "agent: ready", more);
/** What servers and agents have said so far. */
export const said = () => readFileSync(logPath, "utf8");

export async function stop(child, signal) {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, "exit");
  child.kill(signal);
  await within(ended, 100, `process ${child.pid} after ${signal}`);
}

/** Any other program; resolves to what it said once it has ended well. */
export async function run(program, words, limitS = 100) {
  const child = spawn(program, words, { stdio: ["ignore", "pipe", "pipe"] });
  let text = "";
  child.stdout.on("data", (piece) => (text += piece));
  child.stderr.on("data", (piece) => (text += piece));
  const [status, signal] = await within(once(child, "close"), limitS, `${program} ${words.join(" ")}`);
  assert.equal(status, 0, `${program} ${words.join(" ")}: ${signal ?? status}\n${text}`);
  return text;
}

/** Its status alone: 0, or what a refusal or an I/O error makes of it. */
export async function statusOf(program, words, limitS = 100) {
  const child = spawn(program, words, { stdio: ["ignore", "ignore", "pipe"] });
  let text = "";
  child.stderr.on("data", (piece) => (text += piece));
  const [status] = await within(once(child, "close"), limitS, `${program} ${words.join(" ")}`);
  return { status, text: text.trim() };
}

/** One block by direct I/O. */
export const readBlock = (device) =>
  statusOf("dd", [`if=${device}`, "of=/dev/null", "bs=4096", "count=1", "iflag=direct", "status=none"]);
export const writeBlock = (device) =>
  statusOf("dd", ["if=/dev/zero", `of=${device}`, "bs=4096", "count=1", "oflag=direct", "status=none"]);

// --- csnap, without a process per question ---------------------------------------------------------------------------

export const agent = new AgentClient(`${runDir}/_agent.control`);
export const server = (volume = "disk1") => new ControlClient(`${runDir}/${volume}.control`, volume);

export function initVolume(volume, sizeMb, storeMb, ...more) {
  mkdirSync(stateDir, { recursive: true });
  const where = ["--origin", `${work}/${volume}.img`, "--store", `${work}/${volume}.store`];
  const sizes = ["--size", `${sizeMb}M`, "--store-size", `${storeMb}M`];
  return execFileSync(process.execPath, [cli, "init", volume, ...where, ...sizes, ...more], {
    env,
    stdio: ["ignore", "ignore", "inherit"],
  });
}

/** @returns the DeviceRecord; `name` is VOLUME or VOLUME@SNAPSHOT */
export function attach(name, more = {}) {
  const [volume, snapshot = null] = name.split("@");
  return agent.attach({ volume, snapshot, read_only: false, device: null, error_after_ms: null, ...more });
}

export const snapshot = (name, volume = "disk1") =>
  server(volume).createSnapshot({ name, pinned: false, priority: 50, labels: {} });

export async function deviceOf(attachment) {
  return (await agent.devices()).find((each) => each.attachment === attachment);
}

/** The device once it is in this state. */
export const inState = (attachment, state, limitS) =>
  until(
    `${attachment} ${state}`,
    async () => {
      const found = await deviceOf(attachment);
      return found?.state === state && found;
    },
    limitS,
  );

/** What a process holds. */
export function inventory({ pid }) {
  return {
    descriptors: readdirSync(`/proc/${pid}/fd`).length,
    threads: readdirSync(`/proc/${pid}/task`).length,
    kilobytes: Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]),
    children: readdirSync(`/proc/${pid}/task`)
      .map((id) => {
        try {
          return readFileSync(`/proc/${pid}/task/${id}/children`, "utf8").trim();
        } catch {
          return ""; // ended meanwhile
        }
      })
      .join(""),
  };
}

/** Devices that the kernel has configured, with their backends. */
export function configured() {
  return readdirSync("/sys/block").flatMap((name) => {
    if (!name.startsWith("nbd")) return [];
    try {
      readFileSync(`/sys/block/${name}/pid`);
      return [`${name} ${readFileSync(`/sys/block/${name}/backend`, "utf8").trim()}`];
    } catch {
      return [];
    }
  });
}
