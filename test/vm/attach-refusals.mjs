/**
 * What a device must not take: a server that is another than it knows, and a second writer. The device fails loudly, and
 * nothing reaches the wrong server. Run by attach.test.ts, or by hand:
 *     scripts/vm [--kernel 6.12] -- node test/vm/attach-refusals.mjs
 * Its last line is "N passed, N failed". The impostor that says everything right is taken: without that, a test in which
 * nothing reaches it would show nothing.
 */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createHash, randomUUID } from "node:crypto";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { dial, look } from "../../dist/agent/dial.js";
import { native } from "../../dist/native.js";
import { Impostor } from "./attach-impostor.mjs";
import * as rig from "./attach-rig.mjs";
import {
  agent,
  finish,
  readBlock,
  refusedLine,
  startAgent,
  startServer,
  stop,
  test,
  until,
  writeBlock,
} from "./attach-rig.mjs";

const uri = `nbd+unix:///?socket=${rig.runDir}/disk1.sock`;
const ask = (exportName) => ({ uri, exportName, limitMs: 20_000 });
const content = () =>
  createHash("sha256")
    .update(readFileSync(`${rig.work}/disk1.img`))
    .digest("hex");

await rig.run("modprobe", ["nbd"]);
rig.initVolume("disk1", 16, 64);
let server = await startServer();
await startAgent();

async function attachedDevice() {
  const device = await rig.attach("disk1");
  const { status, text } = await writeBlock(device.device);
  assert.equal(status, 0, text);
  return device;
}

/** A process that has the device open, as a file system or a database would. */
async function opened(device) {
  const child = spawn("sh", ["-c", `exec 9<>${device}; echo open; exec sleep 1000`], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  await once(child.stdout, "data");
  return async () => {
    const gone = once(child, "exit");
    child.kill();
    await gone;
  };
}

/** Failed, said so by `csnap devices` and, as long as somebody has it open, by every read and write. */
async function failsLoudly({ attachment, device }, why) {
  const failed = await rig.inState(attachment, "failed");
  console.log(`    ${device} ${failed.state}: ${failed.reason}`);
  assert.match(failed.reason, why);
  assert.match(await rig.ok(["devices"]), /failed: /);
  for (const attempt of [await readBlock(device), await writeBlock(device)]) {
    assert.equal(attempt.status, 1);
    assert.match(attempt.text, /Input\/output error/);
  }
}

async function behindImpostor(change, body) {
  server = server.exitCode === null && server.signalCode === null ? server : await startServer();
  const { identity, epoch } = await look(ask("disk1"));
  const device = await attachedDevice();
  const close = await opened(device.device);
  await stop(server, "SIGTERM");
  const before = content();
  const impostor = new Impostor();
  impostor.claimedUuid = identity.volumeUuid;
  await impostor.start({ ...identity, ...change(identity) }, epoch);
  try {
    await body(device, impostor);
  } finally {
    await agent.detach(device.attachment, true);
    await close();
    await impostor.stop();
  }
  await until("the kernel has let go", () => rig.configured().length === 0);
  assert.notEqual((await writeBlock(device.device)).status, 0, "a device that is gone takes a write");
  assert.equal(content(), before, "the origin has changed");
}

await test("a server that says what the device knows is taken, and serves it until the real one is back", () =>
  behindImpostor(
    () => ({}),
    async (device, impostor) => {
      await until("a connection at the impostor", () => impostor.transmissions > 0);
      await rig.inState(device.attachment, "attached");
      assert.equal((await writeBlock(device.device)).status, 0);
      assert.equal(impostor.written, 4096);
    },
  ));

const cases = [
  ["another volume's uuid", () => ({ volumeUuid: randomUUID() }), /serves another volume/],
  ["fewer bytes", ({ sizeBytes }) => ({ sizeBytes: sizeBytes - 4096 }), /bytes now, attached were/],
  ["more bytes", ({ sizeBytes }) => ({ sizeBytes: sizeBytes + 4096 }), /bytes now, attached were/],
  [
    "other flags",
    ({ transmissionFlags }) => ({ transmissionFlags: transmissionFlags & ~8 }),
    /flags have changed/,
  ],
  [
    "read-only",
    ({ transmissionFlags }) => ({ transmissionFlags: transmissionFlags | 2 }),
    /flags have changed/,
  ],
  ["another durability id", () => ({ durabilityId: randomUUID() }), /durability id has changed/],
];
for (const [what, change, why] of cases)
  await test(`${what} behind the address: the device fails, nothing is written`, () =>
    behindImpostor(change, async (device, impostor) => {
      await failsLoudly(device, why);
      assert.ok(impostor.transmissions > 0, "the agent never asked the impostor");
      assert.equal(impostor.bytes, 0, `${impostor.bytes} bytes reached the impostor`);
    }));

// --- writers ---------------------------------------------------------------------------------------------------------

const holdOf = async () => (await rig.server().status()).hold?.attachment;

await test("a second attach of the origin on this host is refused, and says where it is", async () => {
  server = await startServer();
  const device = await attachedDevice();
  await refusedLine(["attach", "disk1"], /disk1 is attached read-write already, as \/dev\/nbd\d+/);
  assert.equal(await holdOf(), device.attachment);
  const reader = await rig.attach("disk1", { read_only: true });
  assert.equal((await readBlock(reader.device)).status, 0);
  assert.notEqual((await writeBlock(reader.device)).status, 0);
  await agent.detach(reader.attachment, false);
  await agent.detach(device.attachment, false);
  assert.equal(await holdOf(), undefined);
});

await test("an attachment of another host has the hold: attach is refused and no device is left", async () => {
  const other = randomUUID();
  const held = await dial(native, ask(`disk1?attachment=${other}.1`), 10_000);
  await refusedLine(["attach", "disk1"], new RegExp(`disk1 can't be attached: .*${other}`));
  native.shutdownSocket(held.fd);
  native.closeDescriptor(held.fd);
  // The hold outlives its connection: its host may be back.
  await refusedLine(["attach", "disk1"], new RegExp(`disk1 can't be attached: .*${other}`));
  assert.deepEqual(rig.configured(), []);
  assert.deepEqual(await agent.devices(), []);
  await rig.ok(["detach", "--force", "--yes", "disk1"]);
  await agent.detach((await attachedDevice()).attachment, false);
});

await test("a plain client that may write is there: attach is refused", async () => {
  const plain = await dial(native, ask("disk1"), 10_000);
  await refusedLine(["attach", "disk1"], /disk1 can't be attached: .*writ/);
  native.shutdownSocket(plain.fd);
  native.closeDescriptor(plain.fd);
  await until(
    "the plain client is gone",
    async () => (await rig.server().status()).server.clients.length === 0,
  );
});

await test("a device whose hold another has got fails, writes nothing, and leaves that hold alone", async () => {
  const device = await attachedDevice();
  const close = await opened(device.device);
  const other = randomUUID();
  await rig.server().endHold({ attachment: device.attachment, force: true });
  const held = await dial(native, ask(`disk1?attachment=${other}.1`), 10_000);
  const before = content();
  await failsLoudly(device, /refuses disk1/);
  assert.equal(content(), before);
  assert.equal(await holdOf(), other);
  await agent.detach(device.attachment, true);
  await close();
  assert.equal(await holdOf(), other);
  native.closeDescriptor(held.fd);
  await until("the kernel has let go", () => rig.configured().length === 0);
});
finish();
