/** What interleaved rounds say: quantiles, and paired ratios, with intervals that assume no distribution. */

export function median(values: readonly number[]): number {
  if (values.length === 0) return Number.NaN;
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? Number.NaN) + upper) / 2;
}

/** The smallest value that at least the fraction `q` of them doesn't exceed (nearest rank). */
export function quantile(values: readonly number[], q: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(q * sorted.length) - 1)] ?? Number.NaN;
}

/** The ends of a 95 % interval of what the values are a sample of. */
export interface Interval {
  /** null: no order statistic of so few values is that sure */
  readonly low: number | null;
  readonly high: number | null;
}

/**
 * Of the quantile `q`. Order statistics: the number of values below it is binomial with (n, q), so it lies below the
 * k-th smallest value with the probability that fewer than k are; each end errs in 2.5 % of samples at most.
 */
export function intervalOf(values: readonly number[], q = 0.5): Interval {
  const sorted = [...values].sort((a, b) => a - b);
  const n = sorted.length;
  let low: number | null = null;
  let high: number | null = null;
  let below = 0;
  for (let k = 0; k < n; k++) {
    const chance = binomial(n, k, q);
    below += chance;
    if (below <= 0.025) low = sorted[k] ?? null;
    if (1 - below <= 0.025) {
      high = sorted[k] ?? null;
      break;
    }
  }
  return { low, high };
}

/** The probability of k heads in n throws of a coin that shows heads with `q`. */
function binomial(n: number, k: number, q: number): number {
  let logarithm = k * Math.log(q) + (n - k) * Math.log1p(-q);
  for (let i = 1; i <= k; i++) logarithm += Math.log((n - k + i) / i);
  return Math.exp(logarithm);
}

export interface Ratio extends Interval {
  readonly median: number;
  readonly rounds: number;
}

/** Of pairs measured in the same round; the interval is that of the median. */
export function ratioOf(ours: readonly number[], theirs: readonly number[]): Ratio {
  if (ours.length !== theirs.length) throw new Error("ratios need pairs");
  const ratios = ours.map((value, i) => value / (theirs[i] ?? Number.NaN));
  return { median: median(ratios), ...intervalOf(ratios), rounds: ratios.length };
}
