/** The arithmetic of `scripts/bench failover`. */
import { describe, expect, it } from "vitest";
import { type FaultTimes, quantile, rowOf, summaryOf } from "../bench/failover-rows.js";

const at = (ms: number, epoch: bigint, state: string, isFencing = false) => ({
  ms,
  epoch,
  state,
  isFencing,
  holder: null,
});

const lost: FaultTimes = {
  kind: "host lost",
  faultMs: 1000,
  epoch: 4n,
  acknowledged: [
    ...[985, 990, 995, 1000].map((ms) => ({ epoch: 4n, ms })),
    ...[6000, 6005, 6010].map((ms) => ({ epoch: 5n, ms })),
  ],
  records: [
    at(900, 4n, "published"),
    at(5600, 4n, "published", true),
    at(5700, 4n, "vacant"),
    at(5720, 5n, "claimed"),
    at(5900, 5n, "published"),
    at(6600, 5n, "published"),
  ],
};

describe("a fault's row", () => {
  it("has the longest gap less the usual one, and phases that follow each other", () => {
    expect(rowOf(lost)).toEqual({
      kind: "host lost",
      epoch: 4,
      stall_ms: 4995,
      detect_ms: 4600,
      release_ms: 120,
      start_ms: 180,
      reconnect_ms: 100,
    });
  });

  it("counts a stall that comes after the first answer", () => {
    const acknowledged = [...lost.acknowledged, { epoch: 5n, ms: 16_010 }];
    expect(rowOf({ ...lost, acknowledged }).stall_ms).toBe(9995);
  });

  it("is none where no later term has answered", () => {
    expect(() => rowOf({ ...lost, acknowledged: lost.acknowledged.slice(0, 4) })).toThrow("no recovery");
  });

  it("is summed up by nearest rank", () => {
    expect(quantile([5, 1, 4, 2, 3], 0.5)).toBe(3);
    expect(quantile([1, 2, 3, 4], 0.99)).toBe(4);
    expect(quantile([], 0.5)).toBeNaN();
    const row = rowOf(lost);
    const rows = [row, { ...row, stall_ms: 100 }, { ...row, kind: "moved", stall_ms: 7 }];
    expect(summaryOf("host lost", rows)).toMatchObject({ faults: 2, p50_ms: 100, max_ms: 4995 });
  });
});
