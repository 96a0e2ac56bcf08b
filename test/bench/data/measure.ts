/** One contestant's run of one workload. */
import { addressOf, NbdClient } from "../../support/nbd-client.js";
import { type Contestant, exportOf, type Running } from "./contestant.js";
import { fio, type Outcome } from "./fio.js";
import { median } from "./statistics.js";
import type { Workload } from "./workload.js";

export interface Run extends Outcome {
  /** of the workload's unit */
  readonly rate: number;
}

/** A run that is over sooner says more about its start than about a rate. */
const LEAST_S = 0.3;
const MOST_PASSES = 10;
const FLUSH_LIMIT_MS = 300_000;

/**
 * A load that writes each offset once is over when it has; a fast server then takes it again, with everything shared anew,
 * until the passes together are long enough. Throws where they would be too many.
 */
export async function measure(one: Contestant, workload: Workload, sizeBytes: number): Promise<Run> {
  const passes: Outcome[] = [];
  const total = (figure: "requests" | "seconds" | "serverCpuS") =>
    passes.reduce((sum, pass) => sum + pass[figure], 0);
  do {
    if (passes.length === MOST_PASSES)
      throw new Error(
        `${one.name}: ${MOST_PASSES} passes of '${workload.name}' last ${total("seconds").toFixed(2)} s, ` +
          `too short for a rate: use a larger --size`,
      );
    passes.push(await pass(one, workload, sizeBytes));
  } while (total("seconds") < LEAST_S);
  const seconds = total("seconds");
  const bytes = passes.reduce((sum, pass) => sum + pass.bytesPerSecond * pass.seconds, 0);
  return {
    requests: total("requests"),
    seconds,
    serverCpuS: total("serverCpuS"),
    bytesPerSecond: bytes / seconds,
    p50Us: median(passes.map(({ p50Us }) => p50Us)),
    p99Us: median(passes.map(({ p99Us }) => p99Us)),
    maxUs: Math.max(...passes.map(({ maxUs }) => maxUs)),
    rate: workload.unit === "MB/s" ? bytes / seconds / 1e6 : total("requests") / seconds,
  };
}

async function pass(one: Contestant, workload: Workload, sizeBytes: number): Promise<Outcome> {
  const { before, load, sustained, transport = "unix" } = workload;
  if (before === "share" && one.live !== true) await one.shareAll?.();
  if (before === "drop-cache") await one.dropCache();
  const running = await one.start(transport);
  let outcome: Outcome;
  let start: number;
  try {
    if (before === "share" && one.live === true) await one.shareAll?.();
    if (before === "copy") await one.copyAll?.();
    outcome = await fio(running.uri, load, sizeBytes, running.pids);
    start = performance.now();
    if (sustained === true && one.volatile !== true) await flush(running);
  } finally {
    await running.stop();
  }
  if (sustained !== true) return outcome;
  const seconds = outcome.seconds + (performance.now() - start) / 1000;
  return { ...outcome, seconds, bytesPerSecond: (outcome.bytesPerSecond * outcome.seconds) / seconds };
}

async function flush({ uri }: Running): Promise<void> {
  const client = await NbdClient.open(addressOf(uri), { export: exportOf(uri), timeoutMs: FLUSH_LIMIT_MS });
  await client.flush();
  await client.disconnect();
}
