// Runs simulated worlds, one for each seed.
import { expect } from "vitest";
import { type Mistake, type Outcome, World } from "./world.js";

/** Worlds that take turns, so that a turn of the event loop serves one event of each. */
const ABREAST = 16;

export interface Found extends Outcome {
  readonly seed: number;
}

export async function run(seed: number, mistakes: readonly Mistake[] = [], trace?: string[]): Promise<Found> {
  const world = new World(seed, new Set(mistakes), trace && ((line) => trace.push(line)));
  return { seed, ...(await world.run()) };
}

/** Until all seeds are done, or `heard` says that it is enough. */
export async function runAll(
  seeds: Iterable<number>,
  mistakes: readonly Mistake[],
  heard: (found: Found) => boolean,
): Promise<void> {
  const left = seeds[Symbol.iterator]();
  let isEnough = false;
  const worker = async () => {
    for (let next = left.next(); !next.done && !isEnough; next = left.next())
      if (heard(await run(next.value, mistakes))) isEnough = true;
  };
  await Promise.all(Array.from({ length: ABREAST }, worker));
}

/** `first`, and every `step`th after it, up to `last`. */
export function* seeds(first: number, last: number, step = 1): Iterable<number> {
  for (let seed = first; seed <= last; seed += step) yield seed;
}

/** The schedule again, event for event. */
export async function told({ seed, violation }: Found): Promise<string> {
  const trace: string[] = [];
  const again = await run(seed, [], trace);
  expect(again.violation, `seed ${seed} replays`).toBe(violation);
  return [`CSNAP_SEED=${seed}: ${violation}`, ...trace].join("\n  ");
}
