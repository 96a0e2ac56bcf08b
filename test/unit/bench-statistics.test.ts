/** The interval that scripts/bench prints beside its ratios. */
import { describe, expect, it } from "vitest";
import { intervalOf, median, quantile, ratioOf } from "../bench/data/statistics.js";
import { seededRandom } from "../support/random.js";

describe("ratios of interleaved rounds", () => {
  it("are paired by round, not by rank", () => {
    expect(ratioOf([10, 20, 40], [5, 10, 10]).median).toBe(2);
    expect(ratioOf([40, 10, 20], [5, 10, 10]).median).toBe(2);
    expect(() => ratioOf([1, 2], [1])).toThrow("pairs");
  });

  it("have the interval of the sign test: the 4th of 15 from either end, none below six rounds", () => {
    const rates = Array.from({ length: 15 }, (_, i) => i + 1);
    const ones = rates.map(() => 1);
    expect(ratioOf(rates, ones)).toEqual({ median: 8, low: 4, high: 12, rounds: 15 });
    expect(ratioOf(rates.slice(0, 6), ones.slice(0, 6))).toEqual({ median: 3.5, low: 1, high: 6, rounds: 6 });
    expect(ratioOf(rates.slice(0, 5), ones.slice(0, 5))).toMatchObject({ low: null, high: null });
  });

  it("cover the true median in 95 % of samples or more, whatever the distribution", () => {
    const random = seededRandom(20261123);
    let covered = 0;
    const samples = 2000;
    for (let i = 0; i < samples; i++) {
      // Skewed, with median e^0 = 1.
      const draws = Array.from({ length: 15 }, () => Math.exp(3 * (random() - 0.5)));
      const { low, high } = ratioOf(
        draws,
        draws.map(() => 1),
      );
      if ((low ?? 1) <= 1 && 1 <= (high ?? 1)) covered++;
    }
    expect(covered / samples).toBeGreaterThan(0.95);
    expect(median([3, 1, 2])).toBe(2);
    expect(median([4, 1, 2, 3])).toBe(2.5);
  });
});

describe("quantiles", () => {
  const upTo = (n: number) => Array.from({ length: n }, (_, i) => n - i);

  it("are values by their rank", () => {
    expect(quantile(upTo(100), 0.99)).toBe(99);
    expect(quantile(upTo(10), 0.99)).toBe(10);
    expect(quantile([7], 0.5)).toBe(7);
    expect(quantile([], 0.5)).toBeNaN();
  });

  it("have an upper bound only where so many values could hardly all lie below: 368 and up for p99", () => {
    // 0.99^n <= 0.025 from n = 368 on (ln 0.025 / ln 0.99 = 367.04).
    expect(intervalOf(upTo(367), 0.99)).toMatchObject({ high: null });
    expect(intervalOf(upTo(368), 0.99)).toMatchObject({ high: 368 });
    // Of 100 values the 97th is the largest that fewer than 2.5 % of samples put above p99: P(X <= 96) = 0.018.
    expect(intervalOf(upTo(100), 0.99)).toEqual({ low: 97, high: null });
  });
});
