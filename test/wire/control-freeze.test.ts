// `csnap snapshot --freeze` on a real file system behind a loop device: frozen meanwhile, thawed after,
// thawed at the limit, thawed when csnap is killed. Needs root, for mount and fsfreeze.
//
// Whether a file system is frozen is asked with fsfreeze itself: a second freeze is refused with EBUSY
// while the first holds. A write would block in a way that nothing can interrupt.
import { execFileSync, spawn, spawnSync } from "node:child_process";
import { mkdirSync, truncateSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { pathToFileURL } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { collect, MAIN, Sandbox } from "../support/csnap.js";

const env = { ...process.env, PATH: `/usr/sbin:/sbin:${process.env.PATH}` };
const run = (command: string, ...args: string[]) => execFileSync(command, args, { env, stdio: "pipe" });

/** Root, and a loop device to be had (not in every container). */
function canMount(): boolean {
  if (process.getuid?.() !== 0) return false;
  return spawnSync("losetup", ["--find"], { env }).status === 0;
}

const usable = canMount();
if (!usable) console.log("not run: --freeze needs root and a loop device");

describe.skipIf(!usable)("--freeze", () => {
  const sandbox = new Sandbox();
  const mountPoint = sandbox.path("mnt");

  beforeAll(async () => {
    const image = sandbox.path("fs.img");
    writeFileSync(image, "");
    truncateSync(image, 32 << 20);
    run("mkfs.ext4", "-q", "-F", image);
    mkdirSync(mountPoint);
    run("mount", "-o", "loop", image, mountPoint);
    await sandbox.init("v", "16M", "64M");
  });

  afterAll(async () => {
    spawnSync("fsfreeze", ["--unfreeze", mountPoint], { env });
    spawnSync("umount", [mountPoint], { env });
    await sandbox.close();
  });

  /** Leaves it as it was found. */
  function isFrozen(): boolean {
    const froze = spawnSync("fsfreeze", ["--freeze", mountPoint], { env }).status === 0;
    if (froze) run("fsfreeze", "--unfreeze", mountPoint);
    return !froze;
  }

  it("is over when the snapshot is there", async () => {
    expect(await sandbox.csnap("snapshot", "v@a", "--freeze", mountPoint)).toMatchObject({
      status: 0,
      stderr: "",
    });
    expect(isFrozen()).toBe(false);
  });

  it("gives the snapshot up when the limit passes first, and thaws", async () => {
    const { status, stderr } = await sandbox.csnap(
      "snapshot",
      "v@late",
      "--freeze",
      mountPoint,
      "--freeze-limit",
      "1ms",
    );
    expect([status, stderr]).toEqual([
      1,
      expect.stringMatching(/^csnap: --freeze .* was not done within 1 ms, .*--freeze-limit\n$/),
    ]);
    expect(isFrozen()).toBe(false);
    expect(await sandbox.json("list", "v")).toMatchObject([{ snapshots: [{ name: "a" }] }]);
  });

  it("leaves alone what somebody else has frozen", async () => {
    run("fsfreeze", "--freeze", mountPoint);
    const { status, stderr } = await sandbox.csnap("snapshot", "v@b", "--freeze", mountPoint);
    expect([status, stderr]).toEqual([
      1,
      expect.stringMatching(/^csnap: --freeze .* failed: fsfreeze: .*busy\n$/),
    ]);
    expect(isFrozen()).toBe(true);
    run("fsfreeze", "--unfreeze", mountPoint);
  });

  it("refuses what is no mount point, and the file system of the volume itself", async () => {
    const nowhere = await sandbox.csnap("snapshot", "v@b", "--freeze", sandbox.path("state"));
    expect(nowhere.stderr).toMatch(/nothing is mounted there: name the mount point\n$/);
    const own = run("findmnt", "--noheadings", "--output", "TARGET", "--target", sandbox.directory)
      .toString()
      .trim();
    const itself = await sandbox.csnap("snapshot", "v@b", "--freeze", own, "--freeze-limit", "1s");
    expect(itself.stderr).toMatch(/this file system holds .* itself, and freezing it would stop csnap/);
  });

  it.each(["SIGKILL", "SIGTERM", "SIGINT"] as const)("ends when csnap gets %s meanwhile", async (signal) => {
    // Work that never ends, in a process that can be killed while the freeze certainly holds.
    const freeze = pathToFileURL(join(dirname(MAIN), "freeze.js")).href;
    const script = `const { whileFrozen } = await import(${JSON.stringify(freeze)});
      await whileFrozen(${JSON.stringify(mountPoint)}, 600_000, () => { console.log("frozen"); return new Promise(() => {}); });`;
    const csnap = spawn(process.execPath, ["--input-type=module", "-e", script], {
      env,
      stdio: ["ignore", "pipe", "inherit"],
    });
    await new Promise((resolve) => csnap.stdout?.once("data", resolve));
    expect(isFrozen()).toBe(true);
    const gone = collect(csnap);
    csnap.kill(signal);
    await gone;
    // The watchdog thaws as soon as it sees the pipe close; only its end is waited for.
    await expect.poll(isFrozen, { timeout: 20_000 }).toBe(false);
  });
});
