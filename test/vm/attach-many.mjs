/**
 * Many attachments, one after the other and at once: nothing is left behind, and a snapshot's device never changes. Run by
 * attach.test.ts, or by hand:
 *     scripts/vm [--kernel 6.12] --timeout 0 -- node test/vm/attach-many.mjs
 * Its last line is "N passed, N failed". CSNAP_TIER=full: 500 rounds, else 40.
 */
import assert from "node:assert/strict";
import { readdirSync, writeFileSync } from "node:fs";
import * as rig from "./attach-rig.mjs";
import { agent, finish, run, startAgent, startServer, test, until } from "./attach-rig.mjs";

const ROUNDS = rig.isFull ? 500 : 40;
/** Rounds after which lazily made descriptors and threads are there. */
const WARM = 6;
const AT_ONCE = 16;
const COMINGS = rig.isFull ? 30 : 6;
/** Grown more than so in all rounds would be a leak. */
const GROWTH_KB = 40_000;

await run("modprobe", ["nbd"]);
rig.initVolume("disk1", 64, 128);
const evil = rig.watchKernel();
const server = await startServer();
const daemon = await startAgent();
await rig.snapshot("base");

const holds = () => [rig.inventory(server), rig.inventory(daemon)];
/** Fewer descriptors are none left: a connection that was ending counted before. */
const isNoMore = (found, former) =>
  found.descriptors <= former.descriptors && found.children === former.children;
const records = () => readdirSync(`${rig.stateDir}/attachments`).filter((name) => name.endsWith(".json"));

/** Nothing of any attachment is left: devices, records, hold, what the processes hold. */
async function nothingLeft(before) {
  assert.deepEqual(rig.configured(), []);
  assert.deepEqual(await agent.devices(), []);
  assert.deepEqual(records(), []);
  assert.equal((await rig.server().status()).hold, null);
  let found = [];
  await until(
    "no more descriptors than before",
    () => {
      found = holds();
      return found.every((one, i) => isNoMore(one, before[i]));
    },
    20,
  ).catch((error) => {
    throw new Error(`${error.message}: ${JSON.stringify(before)} before, ${JSON.stringify(found)} after`);
  });
  return found;
}

let before;
await test(
  `attached and detached ${ROUNDS} times: no device, descriptor, process or hold is left`,
  async () => {
    for (let round = 0; round < ROUNDS; round++) {
      if (round === WARM) before = holds();
      const { attachment, state } = await rig.attach(round % 3 === 2 ? "disk1@base" : "disk1");
      assert.equal(state, "attached");
      await agent.detach(attachment, false);
    }
    const after = await nothingLeft(before);
    for (const [i, name] of ["server", "agent"].entries()) {
      const grown = after[i].kilobytes - before[i].kilobytes;
      console.log(
        `    ${name}: ${after[i].descriptors} descriptors, ${grown} kB more than after round ${WARM}`,
      );
      assert.ok(grown < GROWTH_KB, `the ${name} has grown by ${grown} kB`);
    }
  },
  60 + 8 * ROUNDS,
);

await test(`${AT_ONCE} devices at once, and the origin's besides`, async () => {
  const names = Array.from({ length: AT_ONCE }, (_, i) => `many${i}`);
  for (const name of names) await rig.snapshot(name);
  const devices = await Promise.all(names.map((name) => rig.attach(`disk1@${name}`)));
  devices.push(await rig.attach("disk1"));
  assert.equal(new Set(devices.map(({ device }) => device)).size, AT_ONCE + 1);
  assert.equal(rig.configured().length, AT_ONCE + 1);
  const reads = await Promise.all(devices.map(({ device }) => rig.readBlock(device)));
  for (const { status, text } of reads) assert.equal(status, 0, text);
  await Promise.all(devices.map(({ attachment }) => agent.detach(attachment, false)));
  await nothingLeft(before);
  const ids = (await rig.server().snapshots()).filter(({ name }) => name !== "base").map(({ uuid }) => uuid);
  await rig.server().deleteSnapshots(ids, false);
});

await test(
  "a mounted snapshot never changes, while its origin is written and others come and go",
  async () => {
    const origin = `${rig.work}/origin`;
    const mounted = `${rig.work}/snapshot`;
    await run("mkdir", [origin, mounted]);
    const device = await rig.attach("disk1");
    await run("mkfs.ext4", ["-q", device.device]);
    await run("mount", [device.device, origin]);
    await run("dd", [
      "if=/dev/urandom",
      `of=${origin}/file`,
      "bs=1M",
      "count=8",
      "conv=fsync",
      "status=none",
    ]);
    const sum = (await run("sha256sum", [`${origin}/file`])).split(" ")[0];
    // No journal is replayed from a snapshot: without a freeze it would lack even what was synced.
    await run("fsfreeze", ["-f", origin]);
    await rig.snapshot("kept").finally(() => run("fsfreeze", ["-u", origin]));
    const path = await rig.ok(["attach", "disk1@kept", "--mount", mounted]);
    const look = async () => {
      writeFileSync("/proc/sys/vm/drop_caches", "3");
      assert.equal((await run("sha256sum", [`${mounted}/file`])).split(" ")[0], sum);
      return (await run("sha256sum", [path])).split(" ")[0];
    };
    const whole = await look();
    for (let round = 0; round < COMINGS; round++) {
      const words = ["if=/dev/urandom", `of=${origin}/file`, "bs=64k", "count=16", "conv=notrunc,fsync"];
      const writing = run("dd", [...words, `seek=${(round * 16) % 112}`, "status=none"]);
      const { uuid } = await rig.snapshot(`passing${round}`);
      const passing = await rig.attach(`disk1@passing${round}`);
      assert.equal((await rig.readBlock(passing.device)).status, 0);
      await agent.detach(passing.attachment, false);
      await rig.server().deleteSnapshots([uuid], false);
      await writing;
    }
    assert.notEqual((await run("sha256sum", [`${origin}/file`])).split(" ")[0], sum);
    assert.equal(await look(), whole);
    await rig.ok(["detach", mounted]);
    await run("umount", [origin]);
    await agent.detach(device.attachment, false);
    await nothingLeft(before);
  },
  rig.isFull ? 900 : 200,
);
await test("the kernel's log has no error", async () => assert.deepEqual(evil(), []));
finish();
