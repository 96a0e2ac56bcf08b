/**
 * Snapshots are created while the origin is written at half of the rate that its device takes, or that the volume takes
 * where that is less: nearly all are first writes, and a load that can't be carried measures its own queue. Measured
 * alternately, under the same load: the creation, and bare syncs of origin and store, which it can't do without; also what
 * either delays.
 */
import { closeSync, fdatasync, openSync, rmSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { promisify } from "node:util";
import type { Csnap } from "./csnap.js";
import { deviceWriteRate, fillImage } from "./image.js";
import { LoggedLoad, type Span } from "./latency-log.js";
import { measure } from "./measure.js";
import { amountRow, rateRow } from "./rows.js";
import type { Circumstances, Scenario } from "./scenario.js";
import { small, type Workload } from "./workload.js";

const NAME = "snapshot create under load";
const CREATIONS_PER_ROUND = 10;
const DEPTH = 16;
/** Between the two that alternate; as much of it counts for what each delays. */
const APART_MS = 100;
/** So many of them live, and are what the store must hold. */
const KEPT = 3;

const syncOf = promisify(fdatasync);

async function timed(action: () => Promise<void>): Promise<Span> {
  const from = Date.now();
  const start = performance.now();
  await action();
  return { from, to: from + performance.now() - start };
}

const lengthOf = ({ from, to }: Span) => to - from;

/** Writes per second with what makes them durable: of a file like the origin beside it, and of the volume after a snapshot. */
async function ratesOf({ csnap, directory, offsets, seconds }: Circumstances) {
  const image = join(directory, "device.img");
  fillImage(image, csnap.bytes);
  const device = deviceWriteRate(image, csnap.bytes, seconds, 1);
  rmSync(image);
  const firstWrites: Workload = {
    ...{ name: NAME, ours: csnap.name, peers: [], unit: "requests/s" },
    load: { ...small("randwrite", DEPTH), offsets: offsets.every },
    before: "share",
    sustained: true,
  };
  return { device, volume: (await measure(csnap, firstWrites, csnap.bytes)).rate };
}

async function alternate(csnap: Csnap, count: number): Promise<{ creations: Span[]; syncs: Span[] }> {
  const [creations, syncs]: [Span[], Span[]] = [[], []];
  const files = [csnap.originPath, csnap.storePath].map((path) => openSync(path, "r"));
  try {
    for (let i = 0; i < count; i++) {
      await pause(APART_MS);
      syncs.push(
        await timed(async () => {
          for (const file of files) await syncOf(file);
        }),
      );
      await pause(2 * APART_MS);
      creations.push(await timed(() => csnap.snapshot(`load${i}`)));
      await pause(APART_MS);
      if (i >= KEPT) await csnap.control.deleteSnapshots([`load${i - KEPT}`], false);
      await csnap.reclaimed();
    }
  } finally {
    for (const file of files) closeSync(file);
  }
  return { creations, syncs };
}

async function run(circumstances: Circumstances): Promise<object[]> {
  const { csnap, directory, rounds } = circumstances;
  const rates = await ratesOf(circumstances);
  const asked = Math.min(rates.device, rates.volume) / 2;
  const running = await csnap.start("unix");
  try {
    const load = { ...small("randwrite", DEPTH), perSecond: asked };
    const writes = new LoggedLoad(running.uri, load, csnap.bytes, join(directory, "create"));
    await csnap.written();
    const { creations, syncs } = await alternate(csnap, rounds * CREATIONS_PER_ROUND);
    const log = await writes.stop();
    const whole = { from: syncs[0]?.from ?? 0, to: creations.at(-1)?.to ?? 0 };
    const usual = log.usual();
    const longest = ({ from, to }: Span) =>
      Math.max(usual, ...log.during({ from, to: to + APART_MS })) - usual;
    const label = { workload: NAME, server: "csnap" };
    const amount = (measure: string, values: readonly number[], limits = {}) =>
      amountRow({ ...label, measure }, "ms", values, limits);
    const limits = { most: 50, aim: 10 };
    const beyond = creations.map((creation, i) => lengthOf(creation) - lengthOf(syncs[i] ?? creation));
    return [
      rateRow({ ...label, measure: "writes" }, "requests/s", [log.rate(whole)], {
        asked,
        device_rate: rates.device,
        volume_rate: rates.volume,
        usual_us: 1000 * usual,
      }),
      amount("longest delay added to a write", creations.map(longest), limits),
      amount("longest delay added to a write by bare syncs", syncs.map(longest)),
      amount("time to return, less bare syncs of origin and store", beyond, limits),
      amount("time to return", creations.map(lengthOf)),
      amount("bare syncs of origin and store", syncs.map(lengthOf)),
    ];
  } finally {
    await running.stop();
  }
}

export const createUnderLoad: Scenario = { name: NAME, ours: "csnap, create", run };
