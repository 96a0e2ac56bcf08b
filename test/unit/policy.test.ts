// The store-full policy (design §8): which snapshot is dropped, on hand-made and on random tables.
import { describe, expect, it } from "vitest";
import { chooseDrop, type DropCandidate } from "../../src/volume/policy.js";

function candidate(name: string, changes: Partial<DropCandidate> = {}): DropCandidate {
  return { uuid: name, name, state: "live", pinned: false, priority: 50, generation: 1n, ...changes };
}

function chosenName(candidates: readonly DropCandidate[]): string | undefined {
  return chooseDrop("drop-snapshots", candidates)?.name;
}

describe("chooseDrop", () => {
  it("drops the lowest priority first, even if it is the newest", () => {
    expect(
      chosenName([candidate("old", { generation: 1n }), candidate("new", { generation: 9n, priority: 49 })]),
    ).toBe("new");
  });

  it("drops the oldest of equal priority, by generation and not by place", () => {
    expect(
      chosenName([
        candidate("b", { generation: 2n }),
        candidate("a", { generation: 1n }),
        candidate("c", { generation: 3n }),
      ]),
    ).toBe("a");
  });

  it("never drops a pinned one, whatever its priority", () => {
    expect(
      chosenName([candidate("pinned", { pinned: true, priority: 0 }), candidate("other", { priority: 100 })]),
    ).toBe("other");
    expect(chosenName([candidate("pinned", { pinned: true })])).toBeUndefined();
  });

  it("leaves alone what is not live", () => {
    const states = ["creating", "deleted", "dropped"] as const;
    expect(chosenName(states.map((state) => candidate(state, { state })))).toBeUndefined();
  });

  it("drops nothing under refuse-writes", () => {
    expect(chooseDrop("refuse-writes", [candidate("a")])).toBeUndefined();
  });

  it("empties a random table in the order of priority, then age, and spares the pinned", () => {
    const seed = Number(process.env.CSNAP_SEED ?? Date.now() % 1_000_000);
    console.log(`CSNAP_SEED=${seed}`);
    let state = seed;
    const random = (limit: number) => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return Math.floor((state / 2 ** 32) * limit);
    };
    for (let round = 0; round < 50; round += 1) {
      const table = Array.from({ length: random(40) }, (_, i) =>
        candidate(`s${i}`, { generation: BigInt(i), priority: random(4), pinned: random(4) === 0 }),
      ).sort(() => random(3) - 1);
      const expected = table
        .filter((one) => !one.pinned)
        .sort((a, b) => a.priority - b.priority || Number(a.generation - b.generation))
        .map((one) => one.name);
      const dropped: string[] = [];
      for (let left = table; ; left = left.filter((one) => one.name !== dropped.at(-1))) {
        const name = chosenName(left);
        if (name === undefined) break;
        dropped.push(name);
      }
      expect(dropped).toEqual(expected);
    }
  });
});
