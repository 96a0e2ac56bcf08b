/**
 * The addon's netlink calls against a real kernel, in one process. Run as root in the test machine, by netlink.test.ts
 * or by hand:
 *     scripts/vm [--kernel 6.12] -- node test/vm/netlink-devices.mjs
 * Its last line is "N passed, N failed". The nbd module must not be loaded when it begins. The tests build on each other:
 * device 0 is connected by one and works until another disconnects it.
 */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { closeSync, constants, openSync, readFileSync, writeFileSync } from "node:fs";
import { setImmediate } from "node:timers/promises";
import { native } from "../../dist/native.js";
import {
  BLOCK,
  Deaths,
  dd,
  detach,
  device,
  dial,
  elsewhere,
  finish,
  initVolume,
  inventory,
  OWNER,
  options,
  outputOf,
  refused,
  SIZE,
  startServer,
  stopServer,
  suspend,
  sysfs,
  test,
  work,
} from "./netlink-rig.mjs";

const OTHER = "00000000-0000-4000-8000-000000000002";
/** What the kernel runs to load a module by itself. */
const MODPROBE = "/proc/sys/kernel/modprobe";
const [release, major, minor] = /^(\d+)\.(\d+).*/.exec(execFileSync("uname", ["-r"], { encoding: "utf8" }));
/** From Linux 6.6 on the module is loaded when somebody asks for the family. */
const autoloads = Number(major) > 6 || (Number(major) === 6 && Number(minor) >= 6);

// --- without the module ----------------------------------------------------------------------------------------------

console.log(`kernel ${release}`);
const MISSING = /^the kernel has no nbd netlink family: `modprobe nbd`, kernel >= 5\.10/;
const modprobe = readFileSync(MODPROBE, "utf8");
writeFileSync(MODPROBE, "/bin/false");
await test("the module is not loaded when this begins", async () =>
  assert.doesNotMatch(readFileSync("/proc/modules", "utf8"), /^nbd /m));
await test("without the module every call names the remedy", async () => {
  await refused(native.nbdStatus(), "NOT_SUPPORTED", MISSING);
  await refused(native.nbdDisconnect(0), "NOT_SUPPORTED", MISSING);
  await refused((async () => native.watchDeadLinks(() => {}))(), "NOT_SUPPORTED", MISSING);
});
writeFileSync(MODPROBE, modprobe);
await test(`asking for the family ${autoloads ? "loads" : "does not load"} the module`, async () => {
  if (autoloads) await native.nbdStatus();
  else await refused(native.nbdStatus(), "NOT_SUPPORTED", MISSING);
});
execFileSync("modprobe", ["nbd"]);

// --- with it ---------------------------------------------------------------------------------------------------------

initVolume();
let server = await startServer();
const deaths = new Deaths();
let index;
let link;

await test("status lists the 16 devices of the module, none connected", async () => {
  const devices = await native.nbdStatus();
  assert.deepEqual(
    devices.map((each) => each.index).sort((a, b) => a - b),
    Array.from({ length: 16 }, (_, i) => i),
  );
  assert.ok(devices.every(({ connected }) => !connected));
});

await test("without CAP_SYS_ADMIN: one line each, and status works", async () => {
  const child = elsewhere(
    `const [a, b] = native.socketPair();
     const all = [native.nbdConnect({ ...options, fds: [a] }), native.nbdDisconnect(0),
       native.nbdReconfigure({ index: 0, backend: options.backend }), native.nbdStatus()];
     for (const each of await Promise.allSettled(all)) console.log(each.reason?.code ?? "done", each.reason?.message ?? "");`,
    { uid: 65534, gid: 65534 },
  );
  const { text } = await outputOf(child);
  console.log(text.replace(/^/gm, "    "));
  const lines = text.split("\n");
  const wanted =
    /^PERMISSION .*: Operation not permitted; this needs CAP_SYS_ADMIN: run csnap agent as root$/;
  for (const line of lines.slice(0, 3)) assert.match(line, wanted);
  assert.match(lines[3], /^done/);
  assert.equal(lines.length, 4);
});

await test("connect gives the first unused device the export's size and features", async () => {
  link = await dial();
  assert.equal(link.sizeBytes, SIZE);
  index = await native.nbdConnect(options(link));
  assert.equal(index, 0);
  const shown = Object.fromEntries(
    [
      "size",
      "backend",
      "ro",
      "queue/logical_block_size",
      "queue/write_cache",
      "queue/fua",
      "queue/io_timeout",
    ].map((name) => [name, sysfs(index, name)]),
  );
  assert.deepEqual(shown, {
    size: String(SIZE / 512),
    backend: OWNER,
    ro: "0",
    "queue/logical_block_size": String(BLOCK),
    "queue/write_cache": "write back",
    "queue/fua": "1",
    "queue/io_timeout": "30000",
  });
  // Not ours: the thread that connected, which is gone.
  assert.notEqual(sysfs(index, "pid"), undefined);
  assert.deepEqual(await native.nbdStatus().then((all) => all.filter(({ connected }) => connected)), [
    { index, connected: true },
  ]);
});

await test("the device answers a probe; 4 KiB written there are in the origin", async () => {
  await native.probeDevice(device(index));
  writeFileSync(`${work}/block`, Buffer.alloc(BLOCK, "csnap"));
  dd(`if=${work}/block`, `of=${device(index)}`, "oflag=direct", "seek=5", "conv=fsync,notrunc");
  dd(`if=${device(index)}`, `of=${work}/read`, "iflag=direct", "skip=5", "count=1");
  assert.deepEqual(readFileSync(`${work}/read`), readFileSync(`${work}/block`));
  assert.deepEqual(
    readFileSync(`${work}/disk1.img`).subarray(5 * BLOCK, 6 * BLOCK),
    readFileSync(`${work}/block`),
  );
});

await test("what can't be connected says why", async () => {
  const [near, far] = native.socketPair();
  const made = options({ sizeBytes: SIZE, transmissionFlags: 1, fd: near });
  const bad = "INVALID_ARGUMENT";
  await refused(
    native.nbdConnect({ ...made, index }),
    "BUSY",
    new RegExp(`nbd0 .*in use as attachment ${OWNER}.*detach it`),
  );
  await refused(
    native.nbdConnect({ ...made, index: 1 << 20 }),
    bad,
    /nbd1048576 can't be made: .*limit.*dmesg/,
  );
  await refused(native.nbdConnect({ ...made, sizeBytes: 0 }), bad, /^a device of 0 bytes/);
  await refused(
    native.nbdConnect({ ...made, blockBytes: 1000 }),
    bad,
    /^a block size of 1000 bytes .*power of two/,
  );
  await refused(native.nbdConnect({ ...made, fds: [] }), bad, /^a device needs a socket$/);
  await refused(native.nbdConnect({ ...made, fds: [near, far] }), bad, /CAN_MULTI_CONN/);
  await refused(native.nbdConnect({ ...made, backend: "" }), bad, /^the backend's name/);
  const file = openSync("/dev/null", "r");
  await refused(native.nbdConnect({ ...made, fds: [file] }), bad, /is no socket$/);
  closeSync(file);
  await refused(
    (async () => native.nbdConnect({ ...made, fds: [file] }))(),
    "IO_ERROR",
    /Bad file descriptor/,
  );
  native.closeDescriptor(near);
  native.closeDescriptor(far);
});

await test("what can't be reconfigured or disconnected says why", async () => {
  const change = { index, backend: OWNER };
  await refused(native.nbdReconfigure({ ...change, index: 9 }), "NOT_FOUND", /nbd9 .*it is not attached/);
  await refused(
    native.nbdReconfigure({ ...change, index: 999 }),
    "NOT_FOUND",
    /nbd999 .*there is no such device/,
  );
  await refused(
    native.nbdReconfigure({ ...change, backend: OTHER }),
    "BUSY",
    new RegExp(`belongs to attachment ${OWNER}, not to ${OTHER}`),
  );
  await refused(
    native.nbdReconfigure({ ...change, sizeBytes: SIZE, fds: [link.fd] }),
    "INVALID_ARGUMENT",
    /never goes with new sockets/,
  );
  await refused(native.nbdDisconnect(999), "NOT_FOUND", /nbd999 .*there is no such device/);
  await native.nbdDisconnect(9);
});

await test("the timeouts and the size of a healthy device can be changed", async () => {
  writeFileSync(`/sys/block/nbd${index}/queue/io_timeout`, "100");
  await native.nbdReconfigure({ index, backend: OWNER, deadConnectionTimeoutSeconds: 1800 });
  assert.equal(sysfs(index, "queue/io_timeout"), "100");
  await native.nbdReconfigure({ index, backend: OWNER, timeoutSeconds: 7 });
  assert.equal(sysfs(index, "queue/io_timeout"), "7000");
  await native.nbdReconfigure({ index, backend: OWNER, timeoutSeconds: 0 });
  console.log(`    io_timeout after TIMEOUT=0: ${sysfs(index, "queue/io_timeout")}`);
  await native.nbdReconfigure({ index, backend: OWNER, sizeBytes: SIZE / 2 });
  assert.equal(sysfs(index, "size"), String(SIZE / 1024));
  await native.nbdReconfigure({ index, backend: OWNER, sizeBytes: SIZE });
  assert.equal(sysfs(index, "size"), String(SIZE / 512));
});

await test("a device in use is not flushed, an unused one is", async () => {
  const fd = openSync(device(index), constants.O_RDWR | constants.O_EXCL);
  await refused(
    native.flushUnusedDevice(device(index), false),
    "BUSY",
    /^\/dev\/nbd0 is in use by this process$/,
  );
  closeSync(fd);
  dd(`if=${work}/block`, `of=${device(index)}`, "seek=7", "conv=notrunc");
  await native.flushUnusedDevice(device(index), false);
  await native.flushUnusedDevice(device(index), true);
  assert.deepEqual(
    readFileSync(`${work}/disk1.img`).subarray(7 * BLOCK, 8 * BLOCK),
    readFileSync(`${work}/block`),
  );
  execFileSync("blockdev", ["--setro", device(index)]);
  await native.flushUnusedDevice(device(index), true);
  execFileSync("blockdev", ["--setrw", device(index)]);
  await refused(native.probeDevice("/dev/nbd99"), "NOT_FOUND", /No such file/);
  await refused(native.probeDevice(device(9)), "NOT_FOUND", /holds nothing|No such device/);
  await refused(native.flushUnusedDevice("/etc/passwd", true), "INVALID_ARGUMENT", /is no block device/);
});

await test("an ended server is told of, and a new socket adopted: the waiting read is answered", async () => {
  deaths.forget();
  writeFileSync(`/sys/block/nbd${index}/queue/io_timeout`, "100");
  await stopServer(server, "SIGKILL");
  assert.equal(await deaths.next(), index);
  const waiting = native.probeDevice(device(index));
  server = await startServer();
  const former = link;
  link = await dial();
  native.shutdownSocket(former.fd);
  native.closeDescriptor(former.fd);
  await native.nbdReconfigure({ index, backend: OWNER, fds: [link.fd] });
  await waiting;
  assert.equal(sysfs(index, "queue/io_timeout"), "100");
  dd(`if=${device(index)}`, `of=${work}/read`, "iflag=direct", "skip=5", "count=1");
  assert.deepEqual(readFileSync(`${work}/read`), readFileSync(`${work}/block`));
});

await test("a socket for which there is no dead slot is dropped, although the kernel says done", async () => {
  const spare = await dial();
  await native.nbdReconfigure({ index, backend: OWNER, fds: [spare.fd] });
  native.closeDescriptor(spare.fd);
  await native.probeDevice(device(index));
});

await test("shutting our copy down cuts the link; reconnected, nothing was lost", async () => {
  deaths.forget();
  native.shutdownSocket(link.fd);
  assert.equal(await deaths.next(), index);
  native.shutdownSocket(link.fd); // not connected any more: no error
  native.closeDescriptor(link.fd);
  const waiting = native.probeDevice(device(index));
  link = await dial();
  await native.nbdReconfigure({ index, backend: OWNER, fds: [link.fd] });
  await waiting;
});

await test("past its dead connection's timeout new requests fail, those under way wait for a socket", async () => {
  await native.nbdReconfigure({ index, backend: OWNER, deadConnectionTimeoutSeconds: 1 });
  await suspend(server);
  let answered = false;
  const underWay = native.probeDevice(device(index)).then(() => (answered = true));
  while (!/^\s*1\b/.test(sysfs(index, "inflight"))) await setImmediate();
  deaths.forget();
  native.shutdownSocket(link.fd);
  assert.equal(await deaths.next(), index);
  native.closeDescriptor(link.fd);
  await refused(native.probeDevice(device(index)), "IO_ERROR", /nbd0 can't be read: Input\/output error/);
  assert.equal(answered, false);
  server.kill("SIGCONT");
  link = await dial();
  await native.nbdReconfigure({ index, backend: OWNER, fds: [link.fd], deadConnectionTimeoutSeconds: 3600 });
  await underWay;
});

await test("a device that hangs holds up neither other calls nor the end of a process", async () => {
  await suspend(server);
  const hanging = native.probeDevice(device(index));
  const child = elsewhere(
    `native.probeDevice(${JSON.stringify(device(index))});
     const { readFileSync, readdirSync } = await import("node:fs");
     const probes = () => readdirSync("/proc/self/task").map((id) => {
       try { return readFileSync(\`/proc/self/task/\${id}/children\`, "utf8").trim(); } catch { return ""; } }).filter(Boolean);
     while (!probes().some((pid) => { try { return / D /.test(readFileSync(\`/proc/\${pid}/stat\`, "utf8")); } catch { return false; } }))
       await new Promise((resolve) => setImmediate(resolve));
     console.log("hangs");
     process.exit(5);`,
  );
  assert.deepEqual(await outputOf(child), { status: 5, text: "hangs" });
  assert.equal((await native.nbdStatus()).length, 16);
  assert.equal(await Promise.race([hanging.then(() => "answered"), setImmediate("hangs")]), "hangs");
  server.kill("SIGCONT");
  await hanging;
});

await test("disconnect frees the device, whatever waits", async () => {
  await suspend(server);
  const hanging = refused(
    native.probeDevice(device(index)),
    "IO_ERROR",
    /nbd0 can't be read: Input\/output error/,
  );
  try {
    // The kernel has the read: a disconnect that comes before it would find no reader.
    while (!/^\s*[1-9]/.test(sysfs(index, "inflight"))) await setImmediate();
    await detach(index, link);
    await hanging;
  } finally {
    server.kill("SIGCONT");
  }
  assert.equal(sysfs(index, "size"), "0");
  assert.ok((await native.nbdStatus()).every(({ connected }) => !connected));
  await native.nbdDisconnect(index);
});

await test("two connections, one of them cut: the device works on", async () => {
  const links = [await dial(), await dial()];
  deaths.forget();
  assert.equal(await native.nbdConnect(options(links[0], { index: 3, fds: links.map(({ fd }) => fd) })), 3);
  native.shutdownSocket(links[0].fd);
  assert.equal(await deaths.next(), 3);
  await native.probeDevice(device(3));
  await detach(3, ...links);
});

await test("100 devices one after the other leave no descriptor, process or thread behind", async () => {
  const before = inventory();
  for (let round = 0; round < 100; round++) {
    const each = await dial();
    const made = await native.nbdConnect(options(each));
    if (round % 10 === 0) await native.probeDevice(device(made));
    await detach(made, each);
  }
  // A thread that was joined is listed for a moment longer.
  while (inventory().threads > before.threads) await setImmediate();
  assert.deepEqual({ ...inventory(), threads: before.threads }, before);
});

await test("the module loaded anew: said once, and heard of again", async () => {
  deaths.forget();
  execFileSync("rmmod", ["nbd"]);
  execFileSync("modprobe", ["nbd"]);
  assert.equal(await deaths.next(), -1);
  const each = await dial();
  const made = await native.nbdConnect(options(each));
  await native.probeDevice(device(made));
  native.shutdownSocket(each.fd);
  assert.equal(await deaths.next(), made);
  await detach(made, each);
});

await test("after close nothing is heard; a listener alone does not keep a process", async () => {
  deaths.close();
  deaths.close();
  const heard = [];
  const other = native.watchDeadLinks((each) => heard.push(each));
  const each = await dial();
  const made = await native.nbdConnect(options(each));
  await native.probeDevice(device(made));
  other.close();
  native.shutdownSocket(each.fd);
  await detach(made, each);
  assert.deepEqual(heard, []);
  assert.deepEqual(await outputOf(elsewhere(`native.watchDeadLinks(() => {}); console.log("end");`)), {
    status: 0,
    text: "end",
  });
});

await test("a hardened process lives through collections, threads and its end", async () => {
  const child = elsewhere(
    `console.log(JSON.stringify(native.hardenProcess()));
     const { Worker } = await import("node:worker_threads");
     for (let round = 0; round < 3; round++) {
       let keep = Array.from({ length: 20_000 }, (_, i) => ({ i, text: "x" + i }));
       keep = undefined;
       globalThis.gc();
       await new Promise((resolve) => new Worker("", { eval: true }).on("exit", resolve));
     }`,
    {},
  );
  const { status, text } = await outputOf(child);
  assert.deepEqual(JSON.parse(text), { memoryLocked: true, ioFlusher: true, problems: [] });
  assert.equal(status, 0);
});

await stopServer(server, "SIGTERM");
finish();
