/** What interleaved rounds say: medians, and paired ratios with an interval that assumes no distribution. */

export function median(values: readonly number[]): number {
  if (values.length === 0) return Number.NaN;
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? Number.NaN) + upper) / 2;
}

export interface Ratio {
  readonly median: number;
  /** Of the median, 95 %. With fewer than six rounds no order statistic is that sure: null. */
  readonly low: number | null;
  readonly high: number | null;
  readonly rounds: number;
}

/**
 * Of pairs measured in the same round. The interval's ends are order statistics: the median lies between the k-th
 * smallest and the k-th largest ratio with the probability that fair coins give between k and n - k heads.
 */
export function ratioOf(ours: readonly number[], theirs: readonly number[]): Ratio {
  if (ours.length !== theirs.length) throw new Error("ratios need pairs");
  const ratios = ours.map((value, i) => value / (theirs[i] ?? Number.NaN)).sort((a, b) => a - b);
  const rank = surestRank(ratios.length);
  return {
    median: median(ratios),
    low: rank === 0 ? null : (ratios[rank - 1] ?? null),
    high: rank === 0 ? null : (ratios[ratios.length - rank] ?? null),
    rounds: ratios.length,
  };
}

/** The largest k whose interval still covers 95 %; 0: none does. */
function surestRank(n: number): number {
  let below = 0;
  let ways = 1;
  for (let k = 0; 2 * k < n; k++) {
    below += ways / 2 ** n;
    if (2 * below > 0.05) return k;
    ways = (ways * (n - k)) / (k + 1);
  }
  return 0;
}
