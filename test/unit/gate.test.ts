// The gate of a server's grant as JavaScript sees it: what a worker thread does to it bounds the volume that the main
// thread serves, and a volume past its grant says so. (What it stops, moment by moment: native/volume/gate_test.cc.)
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import { afterAll, describe, expect, it } from "vitest";
import { type NativeVolumeEvent, native } from "../../src/native.js";

const directory = mkdtempSync(join(tmpdir(), "csnap-gate-"));
afterAll(() => rmSync(directory, { recursive: true }));

const addon = join(import.meta.dirname, "../../build/Release/csnap.node");
const HOUR_MS = 3_600_000;

/** Runs `body` (with `native` and `data`) in a worker that loads the addon by itself; its posted answer. */
async function inWorker(body: string, data: unknown): Promise<unknown> {
  const worker = new Worker(
    `const { parentPort, workerData } = require("node:worker_threads");
     const native = require(workerData.addon);
     const data = workerData.data;
     parentPort.postMessage((() => { ${body} })());`,
    { eval: true, workerData: { addon, data } },
  );
  const ended = once(worker, "exit");
  const [answer] = (await once(worker, "message")) as [unknown];
  expect(await ended).toEqual([0]);
  return answer;
}

async function volumeWith(name: string, gate?: number) {
  const originPath = join(directory, `${name}.img`);
  const storePath = join(directory, `${name}.store`);
  writeFileSync(originPath, "");
  truncateSync(originPath, 1 << 20);
  await native.createStore({
    volumeName: name,
    originPath,
    storePath,
    storeBytes: 8 << 20,
    chunkBytes: 16384,
    onFull: "drop-snapshots",
    force: false,
  });
  const events: NativeVolumeEvent[] = [];
  const volume = await native.openVolume({
    originPath,
    storePath,
    durability: "flush",
    lookOnly: false,
    acceptOrigin: false,
    acceptLoss: false,
    ...(gate === undefined ? {} : { gate }),
    onEvent: (event) => events.push(event),
  });
  const snapshot = () => volume.createSnapshot({ name: "s", pinned: false, priority: 0, labels: {} });
  return { volume, events, snapshot, storePath };
}

describe("gate", () => {
  it("bounds a volume from a worker that loads the addon itself", async () => {
    const gate = native.createGate();
    native.extendGate(gate, native.boottimeMs() + HOUR_MS);
    const { volume, events, snapshot, storePath } = await volumeWith("worker", gate);
    await snapshot();
    expect(volume.info().fenced).toBe(false);
    await inWorker("native.extendGate(data, native.boottimeMs() + 7200000)", gate);
    await volume.deleteSnapshot((await volume.snapshots())[0]?.uuid ?? "", false);

    await inWorker("native.shutGate(data)", gate);
    const before = readFileSync(storePath);
    await expect(snapshot()).rejects.toMatchObject({ code: "FENCED" });
    expect(volume.info()).toMatchObject({ failed: true, fenced: true });
    expect(volume.info().gateRefusals).toBeGreaterThan(0);
    await expect(volume.close()).rejects.toMatchObject({ code: "FENCED" });
    expect(readFileSync(storePath).equals(before)).toBe(true);
    expect(events.filter(({ kind }) => kind === "failed")).toMatchObject([{ code: "FENCED" }]);
    expect(await native.readStore(storePath)).toMatchObject({ clean: false, syncFailed: false });
  });

  it("takes numbers across threads, each once", async () => {
    const first = native.createGate();
    const theirs = (await inWorker("return native.createGate()", null)) as number;
    expect(theirs).toBeGreaterThan(first);
    expect(native.createGate()).toBeGreaterThan(theirs);
    // The worker has ended; its gate is the process's.
    const { volume, snapshot } = await volumeWith("theirs", theirs);
    native.extendGate(theirs, native.boottimeMs() - 1);
    await expect(snapshot()).rejects.toMatchObject({ code: "FENCED" });
    await expect(volume.close()).rejects.toMatchObject({ code: "FENCED" });
  });

  it("is open for ever until it is extended, and closes nothing that has none", async () => {
    const unbounded = native.createGate();
    for (const gate of [unbounded, undefined]) {
      const { volume, snapshot, storePath } = await volumeWith(`free-${gate ?? "none"}`, gate);
      await snapshot();
      expect(volume.info()).toMatchObject({ failed: false, fenced: false, gateRefusals: 0 });
      await volume.close();
      expect((await native.readStore(storePath)).clean).toBe(true);
    }
  });

  it("refuses to open a volume with a gate that is shut, whatever extends it later", async () => {
    const gate = native.createGate();
    native.shutGate(gate);
    native.shutGate(gate);
    native.extendGate(gate, native.boottimeMs() + HOUR_MS);
    await expect(volumeWith("shut", gate)).rejects.toMatchObject({ code: "FENCED" });
  });

  it("takes no nonsense", () => {
    const gate = native.createGate();
    for (const wrong of [0, -1, gate + 1_000_000, 1.5, Number.NaN, "1", undefined]) {
      expect(() => native.extendGate(wrong as number, 1)).toThrow(TypeError);
      expect(() => native.shutGate(wrong as number)).toThrow(TypeError);
    }
    for (const wrong of [Number.NaN, -1, Number.POSITIVE_INFINITY, 1e13, "5", undefined])
      expect(() => native.extendGate(gate, wrong as number)).toThrow(TypeError);
    expect(() =>
      native.openVolume({
        originPath: "",
        storePath: "",
        durability: "flush",
        lookOnly: false,
        acceptOrigin: false,
        acceptLoss: false,
        gate: gate + 1_000_000,
      }),
    ).toThrow("the number of a gate is expected");
  });

  it("has a clock that is the kernel's, with a fraction", () => {
    const before = Number(readFileSync("/proc/uptime", "utf8").split(" ")[0]) * 1000;
    const now = native.boottimeMs();
    const after = Number(readFileSync("/proc/uptime", "utf8").split(" ")[0]) * 1000;
    expect(now).toBeGreaterThanOrEqual(before);
    expect(now).toBeLessThan(after + 10); // uptime is cut to hundredths
    const looks = Array.from({ length: 100 }, () => native.boottimeMs());
    expect([...looks].sort((a, b) => a - b)).toEqual(looks);
    expect(looks.some((ms) => !Number.isInteger(ms))).toBe(true);
  });
});
