/** What scripts/bench measures is found out in hours; that it names whom it compares is found out here. */
import tmp from "tmp";
import { afterAll, describe, expect, it } from "vitest";
import { contestants } from "../bench/data/contestants.js";
import { Csnap } from "../bench/data/csnap.js";
import { scenarios } from "../bench/data/scenarios.js";
import { workloads } from "../bench/data/workloads.js";

describe("the workloads of scripts/bench data", () => {
  const directory = tmp.dirSync({ prefix: "csnap-test-", unsafeCleanup: true });
  const all = contestants(directory.name, 2 ** 20);
  const every = workloads({ every: "", some: "" });
  afterAll(() => directory.removeCallback());

  it("name contestants that there are", () => {
    const named = every.flatMap(({ ours, peers }) => [ours, ...peers.map(({ peer }) => peer)]);
    expect(named.filter((name) => !all.has(name))).toEqual([]);
    expect(scenarios.filter(({ ours }) => !(all.get(ours) instanceof Csnap))).toEqual([]);
  });

  it("have names that --only can tell apart", () => {
    const names = [...every, ...scenarios].map(({ name }) => name);
    expect(names.filter((name, i) => names.indexOf(name) !== i)).toEqual([]);
  });

  it("are judged against others than themselves, and by aims beyond what is asked at least", () => {
    for (const { ours, peers } of every)
      for (const { peer, least = 0, aim = Number.POSITIVE_INFINITY } of peers) {
        expect(peer).not.toBe(ours);
        expect(aim).toBeGreaterThan(least);
      }
  });

  it("write each place once only right after a snapshot", () => {
    const once = every.filter(({ load }) => load.offsets !== undefined);
    expect(once.length).toBeGreaterThan(0);
    expect(once.filter(({ before }) => before !== "share")).toEqual([]);
  });
});
