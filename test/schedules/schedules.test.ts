// The shipped agent, broker and term in simulated worlds (test/support/cluster): each seed is a schedule of
// faults and then a quiet phase, and every rule holds at each of its events.
//
// CSNAP_SEED runs that schedule alone, and prints its trace; CSNAP_SCHEDULES says how many; CSNAP_SHARD=I/N
// runs every Nth from the Ith on.
import { describe, expect, it } from "vitest";
import { type Found, run, runAll, seeds, told } from "../support/cluster/run.js";
import { EVENTS_MIN } from "../support/cluster/world.js";

const isFull = process.env.CSNAP_TIER === "full";
const schedules = Number(process.env.CSNAP_SCHEDULES ?? (isFull ? 100_000 : 2_000));
const [shard = 0, shards = 1] = (process.env.CSNAP_SHARD ?? "0/1").split("/").map(Number);
const only = process.env.CSNAP_SEED === undefined ? undefined : Number(process.env.CSNAP_SEED);

describe.skipIf(only !== undefined)("schedules", () => {
  it("keep every rule, and service returns", async () => {
    const startedMs = performance.now();
    const sums = { schedules: 0, events: 0, acknowledged: 0, takeovers: 0, faults: 0, virtualHours: 0 };
    let fewestEvents = Number.POSITIVE_INFINITY;
    let slowestReturnMs = 0;
    const failed: Found[] = [];
    await runAll(seeds(1 + shard, schedules, shards), [], (found) => {
      sums.schedules++;
      sums.events += found.events;
      sums.acknowledged += found.acks;
      sums.takeovers += found.takeovers;
      sums.faults += found.faults;
      sums.virtualHours += found.virtualMs / 3_600_000;
      fewestEvents = Math.min(fewestEvents, found.events);
      slowestReturnMs = Math.max(slowestReturnMs, found.returnedMs);
      if (found.violation !== undefined) failed.push(found);
      return failed.length > 0;
    });
    const seconds = ((performance.now() - startedMs) / 1000).toFixed(1);
    const name = `shard ${shard}/${shards} of ${schedules} schedules`;
    console.log(`${name}, ${seconds} s:`, { ...sums, fewestEvents, slowestReturnMs });
    const [first] = failed;
    if (first) throw new Error(await told(first));
    expect(sums.schedules).toBe(Math.ceil((schedules - shard) / shards));
    expect(fewestEvents).toBeGreaterThanOrEqual(EVENTS_MIN);
    // Else the schedules would be about nothing.
    expect(sums.takeovers).toBeGreaterThan(sums.schedules / 4);
    expect(sums.acknowledged).toBeGreaterThan(20 * sums.schedules);
  });

  it("of one seed are the same, event for event, beside others and alone", async () => {
    const traces = [[], [], []] as [string[], string[], string[]];
    await Promise.all([run(7, [], traces[0]), run(8), run(7, [], traces[1])]);
    await run(7, [], traces[2]);
    expect(traces[0].length).toBeGreaterThan(10);
    expect(traces[1]).toEqual(traces[0]);
    expect(traces[2]).toEqual(traces[0]);
  });
});

it.runIf(only !== undefined)("the schedule of CSNAP_SEED", async () => {
  const trace: string[] = [];
  const { violation, events } = await run(only ?? 0, [], trace);
  console.log([`CSNAP_SEED=${only}: ${events} events`, ...trace].join("\n  "));
  expect(violation).toBeUndefined();
});
