/** The arithmetic of `scripts/bench memory`. */
import { describe, expect, it } from "vitest";
import { growths } from "../bench/memory-rows.js";

const point = (
  originBytes: number,
  exceptions: number,
  snapshots: number,
  opened: number,
  worked: number,
) => ({
  ...{ originBytes, exceptions, snapshots },
  ...{ openedBytes: opened, workedBytes: worked },
});

describe("growth of memory", () => {
  it("is the difference of neighbours, for each of what was added", () => {
    const found = growths([point(8, 0, 1, 100, 200), point(8, 10, 1, 150, 400), point(8, 10, 5, 154, 400)]);
    expect(found).toEqual([
      { growth_with: "exceptions", from: 0, to: 10, opened_bytes_each: 5, worked_bytes_each: 20 },
      { growth_with: "snapshots", from: 1, to: 5, opened_bytes_each: 1, worked_bytes_each: 0 },
    ]);
  });

  it("is not told where two things changed, or none", () => {
    expect(growths([point(8, 0, 1, 1, 1), point(16, 1, 1, 2, 2)])).toEqual([]);
    expect(growths([point(8, 0, 1, 1, 1), point(8, 0, 1, 2, 2)])).toEqual([]);
    expect(growths([])).toEqual([]);
  });
});
