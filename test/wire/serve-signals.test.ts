// How a server ends on bad days: cut by a second signal, stopped by a failed sync (W9); and how the next
// one starts or refuses: after a loss, with an origin that somebody else uses, without the rights to
// take its precautions.
import { execFileSync, spawn, spawnSync } from "node:child_process";
import { mkdirSync } from "node:fs";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { MAIN, Sandbox, Server } from "../support/csnap.js";
import { detachLoop } from "../support/loop-device.js";
import { ConnectionLost, NbdClient } from "../support/nbd-client.js";
import { Command } from "../support/nbd-requests.js";
import { SyncGate } from "../support/server-gate.js";
import { expectBytes, KIB, MIB, pattern, ServedVolume } from "../support/server-volume.js";

const { READ, WRITE } = Command;
const oneLine = (text: string) => text.trimEnd().split("\n").length === 1;

let sandbox: Sandbox;
beforeEach(() => {
  sandbox = new Sandbox();
});
afterEach(() => sandbox.close());

describe("with syncs in the test's hands", () => {
  let gate: SyncGate;
  let volume: ServedVolume;
  beforeEach(async () => {
    gate = await SyncGate.open(sandbox.directory);
    volume = await ServedVolume.start({ env: gate.env, size: "16M" }, sandbox);
  });
  afterEach(() => gate.close());

  /** Its clients are cut without an answer, as W9 has it. */
  async function failSync(): Promise<NbdClient> {
    const client = await volume.open();
    await client.write(0, pattern(1, MIB));
    await client.flush();
    await client.write(MIB, pattern(2, MIB));
    gate.fail(".img");
    await expect(client.flush()).rejects.toBeInstanceOf(ConnectionLost);
    return client;
  }

  it("W9: a failed sync stops the server loudly, and only --accept-loss opens the volume again", async () => {
    const before = await volume.status();
    await failSync();
    expect(await volume.server.exit()).toBe(1);
    // What it wrote arrives by a pipe, a moment after its end.
    const last = /\ncsnap: vol stopped: .*(?:sync|Input\/output).*csnap check vol.*--accept-loss.*\n$/;
    await expect.poll(() => volume.server.log).toMatch(last);
    expect(volume.server.log.match(/^csnap: vol stopped/gm)).toHaveLength(1);

    expect(await volume.status()).toMatchObject({ state: "failed", sync_failed: true, server: null });
    for (const args of [
      ["serve", "vol"],
      ["snapshot", "vol@s"],
      ["serve", "vol", "--durability", "sync"],
    ]) {
      const refused = await sandbox.csnap(...args);
      expect([args, refused.status, refused.stdout]).toEqual([args, 1, ""]);
      expect(refused.stderr).toMatch(/^csnap: vol.*a sync failed.*--accept-loss/);
      expect(oneLine(refused.stderr)).toBe(true);
    }
    expect((await volume.status()).epoch).toBe(before.epoch);

    const server = await sandbox.serve("vol", "--accept-loss");
    const after = await volume.status();
    expect(after).toMatchObject({ state: "serving", sync_failed: false, failure: null });
    expect(after.durability_id).not.toBe(before.durability_id);
    expect(after.epoch).toBeGreaterThan(before.epoch);
    const reader = await volume.open({}, server.uri);
    // What a flush was answered for before is there; the rest is what it is.
    expectBytes(await reader.read(0, MIB), pattern(1, MIB));
    await reader.write(2 * MIB, pattern(3, MIB));
    await reader.flush();
    await reader.disconnect();
    expect(await server.stop()).toBe(0);

    const plain = await sandbox.serve("vol");
    expect(await volume.status()).toMatchObject({
      state: "serving",
      found_clean: true,
      durability_id: after.durability_id,
    });
    expect(await plain.stop()).toBe(0);
  });

  it("a second signal cuts the connections, and the volume is closed in order", async () => {
    const clients = await Promise.all([volume.open(), volume.open({}, volume.tcp), volume.open()]);
    const [parked, other, idle] = clients as [NbdClient, NbdClient, NbdClient];
    const [former, next] = [pattern(1, 64 * KIB), pattern(2, 64 * KIB)];
    await parked.write(0, former);
    await parked.write(MIB, former);
    await volume.snapshot("first");
    gate.hold(".store");
    // A chunk and more of what the snapshot shares waits until its copy is durable.
    for (const [client, offset] of [
      [parked, 0],
      [other, MIB],
    ] as const) {
      const [, read] = client.send(
        { command: WRITE, offset, data: next },
        { command: READ, offset: 2 * MIB, length: 4 * KIB },
      );
      await client.answer(read as bigint);
    }
    await gate.held();
    const exit = volume.server.stop();
    // Its connection ends first: the drain is under way while the two writes still wait.
    expect(await idle.rest()).toHaveLength(0);
    expect([parked.ended, other.ended]).toEqual([undefined, undefined]);
    volume.server.child.kill("SIGTERM");
    // Cut and not answered, though the copies are not done.
    for (const client of [parked, other]) expect(await client.rest()).toHaveLength(0);
    await expect.poll(() => volume.server.log).toMatch(/SIGTERM: cutting what is left, connections: [23]\n/);
    gate.release();
    expect(await exit).toBe(0);

    await volume.restart();
    expect(await volume.status()).toMatchObject({ found_clean: true, snapshots: { live: 1 } });
    const reader = await volume.open();
    const old = await volume.open({ export: "vol@first" });
    for (const offset of [0, MIB]) {
      const now = await reader.read(offset, 64 * KIB);
      for (let at = 0; at < now.length; at += 4 * KIB) {
        const block = now.subarray(at, at + 4 * KIB);
        const isOne = [former, next].some((data) => block.equals(data.subarray(at, at + 4 * KIB)));
        expect(isOne, `the block at ${offset + at} is of neither write`).toBe(true);
      }
      expectBytes(await old.read(offset, 64 * KIB), former);
    }
    expect(await sandbox.json("check", "vol", "--data")).toMatchObject({ clean: true });
    await Promise.all([reader, old].map((client) => client.disconnect()));
    expect(await sandbox.must("delete", "--yes", "vol@first")).toMatch(/^vol@first deleted\n/);
  });
});

/** The system's tools for disks are not in everybody's PATH. */
const toolEnv = { ...process.env, PATH: `/usr/sbin:/sbin:${process.env.PATH}` };
const run = (command: string, ...args: string[]) =>
  execFileSync(command, args, { env: toolEnv, stdio: "pipe", encoding: "utf8" }).trim();
const isRoot = process.getuid?.() === 0;
const hasLoop = isRoot && spawnSync("losetup", ["--find"], { env: toolEnv }).status === 0;
if (!hasLoop) console.log("not run: an origin in use needs root and a loop device");

describe.skipIf(!hasLoop)("an origin that somebody else uses", () => {
  let loop: string;
  let directory: string;
  beforeEach(async () => {
    await sandbox.init("vol", "32M", "64M");
    directory = sandbox.path("mnt");
    mkdirSync(directory);
    run("mkfs.ext4", "-q", "-F", sandbox.path("vol.img"));
    loop = run("losetup", "--find", "--show", sandbox.path("vol.img"));
  });
  afterEach(() => {
    spawnSync("umount", [directory], { env: toolEnv });
    spawnSync("losetup", ["--detach", loop], { env: toolEnv });
  });

  async function refusal(...args: string[]): Promise<string> {
    const { status, stdout, stderr } = await sandbox.csnap(...args);
    expect([args, status, stdout, oneLine(stderr)]).toEqual([args, 1, "", true]);
    return stderr.trimEnd();
  }

  it("is refused by server and init, with who uses it and what to do", async () => {
    const image = sandbox.path("vol.img");
    const store = sandbox.path("other.store");
    const init = (origin: string) => ["init", "other", "--origin", origin, "--store", store];
    const behind = `csnap: origin ${image} is behind the loop device ${loop}`;
    expect(await refusal("serve", "vol")).toBe(`${behind}: losetup -d ${loop} first`);
    run("mount", loop, directory);
    const mounted = `${behind}, which is mounted on ${directory}: umount ${directory} and losetup -d ${loop} first`;
    expect(await refusal("serve", "vol")).toBe(mounted);
    expect(await refusal("serve", "vol", "--accept-origin")).toBe(mounted);
    expect(await refusal(...init(image))).toBe(mounted);
    expect(await refusal(...init(loop))).toBe(
      `csnap: origin ${loop} is mounted on ${directory}: unmount it first`,
    );
    // Nothing was claimed or written by all that; mkfs has changed the origin.
    run("umount", directory);
    await detachLoop(loop, toolEnv);
    expect(await sandbox.json("status", "vol")).toMatchObject({ state: "stopped", epoch: 0 });
  });

  it("is let go once it is free", async () => {
    run("mount", loop, directory);
    await refusal("serve", "vol");
    run("umount", directory);
    await detachLoop(loop, toolEnv);
    const server = await sandbox.serve("vol", "--accept-origin");
    expect(await server.stop()).toBe(0);
  });
});

const drop = ["--bounding-set=-sys_resource", "--inh-caps=-sys_resource"];
const nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
/** Whether the project can be read by others than its owner. */
const canDrop = isRoot && spawnSync("setpriv", [...nobody, process.execPath, MAIN, "--version"]).status === 0;
if (!canDrop) console.log("not run: precautions of others than root need root, and a project all may read");

describe.skipIf(!canDrop)("without the rights for its precautions", () => {
  const attachment = "6f1c4d8e-0d2b-4a55-9a3e-3f6d0f2b7a11";

  async function serve(...privileges: string[]): Promise<Server> {
    await sandbox.init("vol", "16M", "64M");
    run("chown", "--recursive", "65534:65534", sandbox.directory);
    const server = new Server(
      spawn("setpriv", [...privileges, process.execPath, MAIN, "serve", "vol"], {
        env: sandbox.env,
        stdio: ["ignore", "pipe", "pipe"],
      }),
    );
    await server.ready("vol");
    return server;
  }

  const warnings = async () => (await sandbox.json<{ warnings: string[] }>("status", "vol")).warnings;

  it("root's server says so in its log and in status", async () => {
    const server = await serve(...drop);
    const found = await warnings();
    expect(found.join("\n")).toMatch(/PR_SET_IO_FLUSHER.*CAP_SYS_RESOURCE/);
    expect(found.join("\n")).toMatch(/memory is short.*OOMScoreAdjust=-1000/);
    expect(await sandbox.must("status", "vol")).toContain(`\n  warning    ${found[0]}\n`);
    expect(await server.stop()).toBe(0);
    for (const warning of found) expect(server.log.split(`csnap: vol: ${warning}\n`)).toHaveLength(2);
  });

  it("another user's says so in status only, while this host has an attachment", async () => {
    const server = await serve(...nobody);
    expect(await warnings()).toEqual([]);
    const client = await NbdClient.open(server.uri, { export: `vol?attachment=${attachment}.1` });
    expect((await warnings()).join("\n")).toMatch(/PR_SET_IO_FLUSHER/);
    await client.disconnect();
    expect(await server.stop()).toBe(0);
    expect(server.log).not.toMatch(/PR_SET_IO_FLUSHER|OOMScoreAdjust|locked in memory/);
  });
});
