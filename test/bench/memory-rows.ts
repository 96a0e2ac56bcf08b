/** How the memory of `scripts/bench memory` grows with what a volume holds. */

export interface MemoryPoint {
  readonly originBytes: number;
  readonly exceptions: number;
  readonly snapshots: number;
  /** Resident, less what is mapped from files: right after the start, and after reads and writes. */
  readonly openedBytes: number;
  readonly workedBytes: number;
}

const dimensions = ["originBytes", "exceptions", "snapshots"] as const;
type Dimension = (typeof dimensions)[number];

export interface Growth {
  readonly growth_with: Dimension;
  readonly from: number;
  readonly to: number;
  /** Bytes for each byte, exception or snapshot more. */
  readonly opened_bytes_each: number;
  readonly worked_bytes_each: number;
}

/** One for each pair of neighbours that differ in one dimension only. */
export function growths(points: readonly MemoryPoint[]): Growth[] {
  return points.slice(1).flatMap((large, i) => {
    const small = points[i];
    if (small === undefined) return [];
    const [dimension, ...others] = dimensions.filter((name) => small[name] !== large[name]);
    if (dimension === undefined || others.length > 0) return [];
    const more = large[dimension] - small[dimension];
    return [
      {
        growth_with: dimension,
        from: small[dimension],
        to: large[dimension],
        opened_bytes_each: (large.openedBytes - small.openedBytes) / more,
        worked_bytes_each: (large.workedBytes - small.workedBytes) / more,
      },
    ];
  });
}
