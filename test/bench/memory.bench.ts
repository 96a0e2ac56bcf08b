/**
 * What the server of a large volume keeps in memory, and how that grows with the origin, the exceptions and the snapshots:
 * a sparse origin, a store that native_bench fills, a real server. Run by `scripts/bench memory`, which sets
 * CSNAP_BENCH_OUT: a JSON line for each point goes there, then one for each growth.
 */
import { execFileSync } from "node:child_process";
import { appendFileSync, readFileSync, rmSync } from "node:fs";
import { setTimeout as pause } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { afterAll, describe, it } from "vitest";
import { importBuilt } from "../support/built.js";
import { Sandbox, type Server } from "../support/csnap.js";
import { fio } from "./data/fio.js";
import { median } from "./data/statistics.js";
import { growths, type MemoryPoint } from "./memory-rows.js";

const out = process.env.CSNAP_BENCH_OUT;
const exceptions = Number(process.env.CSNAP_BENCH_EXCEPTIONS ?? 10_000_000);
const snapshots = Number(process.env.CSNAP_BENCH_SNAPSHOTS ?? 1000);
const few = Math.floor(snapshots / 10);
const NATIVE = fileURLToPath(new URL("../../build/Release/native_bench", import.meta.url));
const VOLUME = "bench";
const GIB = 2 ** 30;
const TIB = 1024 * GIB;
const CHUNK_BYTES = 16 * 1024;
const STORE_BYTES_PER_EXCEPTION = 96;
const READ_VIEWS = 8;
const SETTLE_MS = 1000;
const SAMPLES = 5;

/** Neighbours differ in one thing, so that their difference is its price. */
const points: readonly (readonly [originBytes: number, exceptions: number, snapshots: number])[] = [
  [64 * GIB, 0, 1],
  [TIB, 0, 1],
  [TIB, 0, few],
  [TIB, Math.floor(exceptions / 10), few],
  [TIB, exceptions, few],
  [TIB, exceptions, snapshots],
];

interface Memory {
  readonly anonymousBytes: number;
  readonly residentBytes: number;
}

/** Samples lie apart, as V8 collects when it likes. */
async function memoryOf(server: Server): Promise<Memory> {
  const anonymous: number[] = [];
  const resident: number[] = [];
  for (let i = 0; i < SAMPLES; i++) {
    await pause(SETTLE_MS);
    const status = readFileSync(`/proc/${server.child.pid}/status`, "utf8");
    const bytes = (name: string) =>
      Number(new RegExp(`^${name}:\\s+(\\d+) kB$`, "m").exec(status)?.[1]) * 1024;
    anonymous.push(bytes("RssAnon"));
    resident.push(bytes("VmRSS"));
  }
  return { anonymousBytes: median(anonymous), residentBytes: median(resident) };
}

async function makeSnapshots(sandbox: Sandbox, count: number): Promise<void> {
  const { ControlClient } =
    await importBuilt<typeof import("../../src/control/client.js")>("control/client.js");
  const client = new ControlClient(sandbox.path(`run/${VOLUME}.control`), VOLUME);
  for (let i = 0; i < count; i++)
    await client.createSnapshot({ name: `s${i}`, pinned: false, priority: 50, labels: {} });
}

/** Look-ups all over the index by several connections, then first writes. */
async function work(server: Server, held: number, count: number): Promise<void> {
  const load = { blockBytes: 4096, depth: 16, connections: 1, seconds: 2 };
  const read = Math.max(held / 2, 1000) * CHUNK_BYTES;
  for (let i = 0; i < READ_VIEWS; i++) {
    const name = `s${Math.floor((i * count) / READ_VIEWS)}`;
    await fio(server.exportUri(`${VOLUME}@${name}`), { ...load, rw: "randread" }, read, []);
  }
  await fio(server.uri, { ...load, rw: "randwrite" }, 16 * GIB, []);
}

describe.skipIf(out === undefined)("memory", () => {
  const sandboxes: Sandbox[] = [];
  afterAll(async () => {
    for (const sandbox of sandboxes) await sandbox.close();
  });
  const say = (row: object) => appendFileSync(out ?? "", `${JSON.stringify(row)}\n`);

  it("of a server", { timeout: 0 }, async () => {
    const measured: MemoryPoint[] = [];
    for (const [originBytes, held, count] of points) {
      const sandbox = new Sandbox();
      sandboxes.push(sandbox);
      const storeBytes = 4 * GIB + held * STORE_BYTES_PER_EXCEPTION;
      await sandbox.init(VOLUME, String(originBytes), String(storeBytes), "--progress", "none");
      const first = await sandbox.serve(VOLUME);
      await makeSnapshots(sandbox, count);
      await first.stop();
      const [origin, store] = [sandbox.path(`${VOLUME}.img`), sandbox.path(`${VOLUME}.store`)];
      if (held > 0)
        execFileSync(NATIVE, [
          ...["load", "--store", store, "--origin", origin],
          ...["--exceptions", String(held), "--snapshots", String(count)],
        ]);
      const server = await sandbox.serve(VOLUME);
      const opened = await memoryOf(server);
      await work(server, held, count);
      const worked = await memoryOf(server);
      await server.stop();
      for (const path of [origin, store]) rmSync(path);
      const point = { originBytes, exceptions: held, snapshots: count };
      measured.push({ ...point, openedBytes: opened.anonymousBytes, workedBytes: worked.anonymousBytes });
      say({
        origin_bytes: originBytes,
        exceptions: held,
        snapshots: count,
        opened_bytes: opened.anonymousBytes,
        worked_bytes: worked.anonymousBytes,
        resident_bytes: worked.residentBytes,
      });
    }
    for (const growth of growths(measured)) say(growth);
  });
});
