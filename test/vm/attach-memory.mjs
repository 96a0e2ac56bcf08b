/**
 * Server and device on one host that is short of memory: far more dirty data than fits, again and again, and it must go on.
 * Origin and store are files of an ext4 on /dev/vda, the kernel's worst case: writing back the device needs memory for
 * the server's own page cache. Run by attach.test.ts, or by hand (a sparse file of 2 GiB is enough):
 *     scripts/vm [--kernel 6.12] --memory 512 --disk FILE --timeout 0 -- node test/vm/attach-memory.mjs
 * Its last line is "N passed, N failed". CSNAP_TIER=full: 10 minutes, else 1.
 */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import * as rig from "./attach-rig.mjs";
import { agent, finish, MIB, now, run, startAgent, startServer, test } from "./attach-rig.mjs";

const DURATION_S = rig.isFull ? 600 : 60;
const DIRTY_MIB = 300;
const WINDOW_S = 30;
const directory = `${rig.work}/mnt`;

await run("modprobe", ["nbd"]);
await run("mkdir", [directory]);
rig.initVolume("disk1", 448, 700);
const evil = rig.watchKernel();
const server = await startServer();
const daemon = await startAgent();
const device = await rig.attach("disk1");
await run("mkfs.ext4", ["-q", device.device]);
await run("mount", [device.device, directory]);

/** Sectors the device has taken for writing. */
function written() {
  return Number(
    readFileSync(`/sys/block/${device.device.slice(5)}/stat`, "utf8")
      .trim()
      .split(/\s+/)[6],
  );
}
const memory = (name) =>
  Math.round(Number(new RegExp(`${name}:\\s+(\\d+)`).exec(readFileSync("/proc/meminfo", "utf8"))[1]) / 1024);

await test("the guest has less memory than what will be dirty", async () => {
  assert.ok(memory("MemTotal") < 2 * DIRTY_MIB, `${memory("MemTotal")} MiB`);
});

await test(
  `${DIRTY_MIB} MiB dirty at a time for ${DURATION_S} s: progress in every ${WINDOW_S} s`,
  async () => {
    const end = now() + DURATION_S;
    let rounds = 0;
    let isOver = false;
    let error;
    const load = (async () => {
      while (now() < end) {
        await rig.snapshot(`round${rounds}`);
        await run(
          "dd",
          [
            "if=/dev/zero",
            `of=${directory}/file`,
            "bs=1M",
            `count=${DIRTY_MIB}`,
            "conv=notrunc,fsync",
            "status=none",
          ],
          600,
        );
        rounds++;
        const { uuid } = (await rig.server().snapshots()).at(-1);
        await rig.server().deleteSnapshots([uuid], false);
      }
    })()
      .catch((reason) => {
        error = reason;
      })
      .finally(() => {
        isOver = true;
      });
    const from = written();
    let last = from;
    let at = now();
    let longest = 0;
    let least = memory("MemAvailable");
    let dirtiest = 0;
    while (!isOver) {
      await sleep(500);
      const sectors = written();
      longest = Math.max(longest, now() - at);
      least = Math.min(least, memory("MemAvailable"));
      dirtiest = Math.max(dirtiest, memory("Dirty") + memory("Writeback"));
      if (sectors !== last) [last, at] = [sectors, now()];
      assert.ok(now() - at < WINDOW_S, `no progress for ${WINDOW_S} s in round ${rounds}`);
    }
    await load;
    if (error) throw error;
    const mib = Math.round(((written() - from) * 512) / MIB);
    console.log(
      `    ${rounds} rounds, ${mib} MiB written, longest without progress ${longest.toFixed(1)} s, least available ${least} MiB, dirty up to ${dirtiest} MiB`,
    );
    assert.ok(mib >= rounds * DIRTY_MIB * 0.9 && rounds > 0);
  },
  DURATION_S + 300,
);
await test("nothing was killed, the kernel's log has no error, the file system is clean", async () => {
  for (const child of [server, daemon]) assert.equal(child.exitCode ?? child.signalCode, null);
  await run("umount", [directory]);
  await run("e2fsck", ["-fn", device.device]);
  await agent.detach("disk1", false);
  assert.deepEqual(evil(), []);
});
finish();
