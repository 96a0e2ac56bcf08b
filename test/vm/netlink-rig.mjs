/**
 * What netlink-devices.mjs works with: a count of tests, servers, a handshake by hand, other processes. Used in the test
 * machine only.
 *
 * L1 Every wait is for an event and bounded; what does not come within LIMIT_MS has failed.
 * L2 A server is a `csnap serve` of its own process, so that it can be stopped and killed.
 * L3 The handshake is written out here: these tests are of the addon, not of csnap's own client.
 */
import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, openSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setImmediate } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { native } from "../../dist/native.js";

if (process.env.CSNAP_VM === undefined) {
  console.error(
    "netlink-devices: this attaches block devices; run it as: scripts/vm -- node test/vm/netlink-devices.mjs",
  );
  process.exit(2);
}

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const LIMIT_MS = 120_000;
export const SIZE = 16 << 20;
export const BLOCK = 4096;
/** The attachment that the devices belong to. */
export const OWNER = "00000000-0000-4000-8000-000000000001";

// --- what a test needs -----------------------------------------------------------------------------------------------

let passed = 0;
let failed = 0;
/** One test: counted, timed, bounded. */
export async function test(what, body) {
  const began = performance.now();
  try {
    await within(body(), what);
    passed++;
    console.log(`ok: ${what} (${Math.round(performance.now() - began)} ms)`);
  } catch (error) {
    failed++;
    console.log(`FAILED: ${what}\n${error.stack}`);
  }
}

function within(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: not within ${LIMIT_MS} ms`)), LIMIT_MS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** A refusal: its code, and one line that matches. */
export async function refused(promise, code, line) {
  const error = await promise.then(
    () => assert.fail(`accepted; expected ${code}`),
    (reason) => reason,
  );
  console.log(`    ${error.code}: ${error.message}`);
  assert.equal(error.code, code, error.message);
  assert.match(error.message, line);
  assert.doesNotMatch(error.message, /\n/);
}

export const sysfs = (index, name) => {
  try {
    return readFileSync(`/sys/block/nbd${index}/${name}`, "utf8").trim();
  } catch {
    return undefined;
  }
};
export const device = (index) => `/dev/nbd${index}`;

/** Devices as they die; next() takes the oldest that was not taken. */
export class Deaths {
  #seen = [];
  #waiting = [];
  #watch = native.watchDeadLinks((index) => {
    const wake = this.#waiting.shift();
    if (wake) wake(index);
    else this.#seen.push(index);
  });
  next() {
    const index = this.#seen.shift();
    return index !== undefined
      ? Promise.resolve(index)
      : new Promise((resolve) => this.#waiting.push(resolve));
  }
  forget() {
    this.#seen = [];
  }
  close() {
    this.#watch.close();
  }
}

// --- a server and its handshake --------------------------------------------------------------------------------------

export const work = mkdtempSync(join(tmpdir(), "netlink-devices."));
const env = { ...process.env, CSNAP_STATE_DIR: `${work}/state`, CSNAP_RUN_DIR: `${work}/run`, NO_COLOR: "1" };
const cli = join(ROOT, "dist/cli/main.js");

/** What all servers said; shown when a test has failed. */
const log = openSync(`${work}/serve.log`, "a");

export async function startServer() {
  const server = spawn(process.execPath, [cli, "serve", "disk1"], {
    env,
    stdio: ["ignore", "pipe", log],
  });
  for await (const chunk of server.stdout) if (String(chunk).includes("ready")) return server;
  throw new Error("csnap serve ended early");
}

export async function stopServer(server, signal) {
  const ended = once(server, "exit");
  server.kill(signal);
  await ended;
}

const SERVER_HELLO_BYTES = 18;
const REPLY_HEADER_BYTES = 20;
const OPTION_GO = 7;
const REPLY_ACK = 1;
const REPLY_INFO = 3;
const INFO_EXPORT = 0;

/** So many bytes. A server says nothing after its last reply, so that nothing of the kernel's is read here. */
async function take(socket, bytes) {
  for (;;) {
    const data = socket.read(bytes);
    if (data !== null) return data;
    await once(socket, "readable");
  }
}

/** A connection in transmission, as descriptor that is ours. */
export async function dial() {
  const socket = connect(`${work}/run/disk1.sock`);
  await once(socket, "connect");
  await take(socket, SERVER_HELLO_BYTES);
  const name = Buffer.from("disk1");
  const go = Buffer.alloc(4 + 16 + 4 + name.length + 2);
  go.writeUInt32BE(3, 0); // FIXED_NEWSTYLE, NO_ZEROES
  go.write("IHAVEOPT", 4);
  go.writeUInt32BE(OPTION_GO, 12);
  go.writeUInt32BE(4 + name.length + 2, 16);
  go.writeUInt32BE(name.length, 20);
  name.copy(go, 24);
  socket.write(go);
  const found = {};
  for (;;) {
    const header = await take(socket, REPLY_HEADER_BYTES);
    const type = header.readUInt32BE(12);
    const length = header.readUInt32BE(16);
    const data = length > 0 ? await take(socket, length) : Buffer.alloc(0);
    if (type === REPLY_INFO && data.readUInt16BE(0) === INFO_EXPORT) {
      found.sizeBytes = Number(data.readBigUInt64BE(2));
      found.transmissionFlags = data.readUInt16BE(10);
    } else if (type === REPLY_ACK) break;
    else if (type !== REPLY_INFO) throw new Error(`the server answered ${type.toString(16)}: ${data}`);
  }
  const fd = native.prepareKernelSocket(socket._handle.fd, 10_000);
  socket.destroy();
  await once(socket, "close");
  return { fd, ...found };
}

export const options = (link, more = {}) => ({
  sizeBytes: link.sizeBytes,
  blockBytes: BLOCK,
  transmissionFlags: link.transmissionFlags,
  timeoutSeconds: 0,
  deadConnectionTimeoutSeconds: 3600,
  backend: OWNER,
  fds: [link.fd],
  ...more,
});

/**
 * Stops a process and waits until every thread of it stands: kill() returns before they have noticed, and one that has
 * not still answers a request.
 */
export async function suspend({ pid }) {
  process.kill(pid, "SIGSTOP");
  const stands = (thread) => / T /.test(readFileSync(`/proc/${pid}/task/${thread}/stat`, "utf8"));
  while (!readdirSync(`/proc/${pid}/task`).every(stands)) await setImmediate();
}

/** Disconnects and lets go of the sockets; the device is free when the last opener is gone. */
export async function detach(index, ...links) {
  await native.nbdDisconnect(index);
  for (const { fd } of links) native.closeDescriptor(fd);
  while (sysfs(index, "pid") !== undefined) await setImmediate();
}

export const dd = (...words) => execFileSync("dd", [...words, "bs=4096", "status=none"]);
/** What this process holds: open descriptors, threads, and children of any of them. */
export function inventory() {
  const threads = readdirSync("/proc/self/task");
  const children = threads.map((id) => {
    try {
      return readFileSync(`/proc/self/task/${id}/children`, "utf8").trim();
    } catch {
      return ""; // ended meanwhile
    }
  });
  return {
    descriptors: readdirSync("/proc/self/fd").length,
    children: children.filter((each) => each !== "").join(" "),
    threads: threads.length,
  };
}

/** Code in a process of its own that has the addon as `native`, and `connect` as what a connect takes. */
export function elsewhere(code, spawnOptions = {}) {
  const text = `
    const { native } = await import(${JSON.stringify(new URL("../../dist/native.js", import.meta.url).href)});
    const options = ${JSON.stringify(options({ sizeBytes: SIZE, transmissionFlags: 1, fd: -1 }))};
    ${code}`;
  return spawn(process.execPath, ["--expose-gc", "--input-type=module", "-e", text], {
    stdio: ["ignore", "pipe", "inherit"],
    ...spawnOptions,
  });
}

export async function outputOf(child) {
  let text = "";
  child.stdout.on("data", (chunk) => (text += chunk));
  const [status] = await once(child, "close");
  return { status, text: text.trim() };
}

/** The volume that every server serves. */
export function initVolume() {
  const where = ["--origin", `${work}/disk1.img`, "--store", `${work}/disk1.store`];
  execFileSync(
    process.execPath,
    [cli, "init", "disk1", ...where, "--size", String(SIZE), "--store-size", "64M"],
    {
      env,
      stdio: ["ignore", "ignore", "inherit"],
    },
  );
}

/** Prints the count and ends the process. */
export function finish() {
  if (failed > 0) console.log(readFileSync(`${work}/serve.log`, "utf8"));
  rmSync(work, { recursive: true });
  console.log(`${passed} passed, ${failed} failed`);
  process.exit(failed === 0 ? 0 : 1);
}
