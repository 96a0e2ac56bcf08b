/** Which writes a span of time delayed, from the log of fio that scripts/bench reads. */
import { describe, expect, it } from "vitest";
import { LatencyLog } from "../bench/data/latency-log.js";

/** Answered at that time after that long; both in ms. */
function logOf(...writes: readonly (readonly [number, number])[]): LatencyLog {
  const log = new LatencyLog();
  for (const [answered, took] of writes) log.add(`${answered}, ${took * 1e6}, 1, 4096, 0`);
  return log;
}

describe("the log of a load", () => {
  const log = logOf([1000, 1], [1010, 2], [1050, 45], [1060, 3], [2000, 1]);

  it("finds all writes that were under way in a span, however long after it they were answered", () => {
    expect(log.during({ from: 1005, to: 1012 })).toEqual([2, 45]);
    expect(log.during({ from: 1020, to: 1021 })).toEqual([45]);
    expect(log.during({ from: 1100, to: 1900 })).toEqual([]);
    expect(log.during({ from: 0, to: 3000 })).toHaveLength(5);
  });

  it("allows for a clock that counts milliseconds", () => {
    expect(log.during({ from: 1000.9, to: 1001 })).toContain(1);
    expect(log.during({ from: 1900, to: 1998.1 })).toEqual([1]);
    expect(log.during({ from: 1900, to: 1997.9 })).toEqual([]);
  });

  it("counts what was answered, by the second", () => {
    expect(log.rate({ from: 1000, to: 1500 })).toBe(8);
    expect(log.rate({ from: 1010, to: 1060 })).toBe(40);
  });

  it("knows the usual latency", () => {
    expect(log.usual()).toBe(2);
  });
});
