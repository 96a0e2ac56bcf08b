/**
 * The rows that a benchmark prints, a JSON object a line. Numbers have four digits; `low95` and `high95` bound the figure
 * before them (null: too few rounds).
 */
import { appendFileSync } from "node:fs";
import { intervalOf, median, quantile, type Ratio } from "./statistics.js";

/** A server's rate in a workload. */
export interface RateRow {
  readonly workload: string;
  readonly server: string;
  /** What was measured, where a workload has several. */
  readonly measure?: string;
  readonly unit: "requests/s" | "MB/s";
  readonly rate: number;
  readonly low95: number | null;
  readonly high95: number | null;
  readonly rounds: number;
}

/** csnap's rate through another's, or through its own in another state. */
export interface RatioRow {
  readonly workload: string;
  readonly server: string;
  readonly measure?: string;
  readonly against: string;
  readonly ratio: number;
  readonly low95: number | null;
  readonly high95: number | null;
  /** what the ratio shall be; null: nothing is asked */
  readonly least: number | null;
  readonly aim: number | null;
  readonly rounds: number;
}

/** How long something took, or how much there was of it. */
export interface AmountRow {
  readonly workload: string;
  readonly server: string;
  readonly measure: string;
  readonly unit: "ms" | "MiB";
  readonly p50: number;
  readonly p99: number;
  /** of p99 */
  readonly low95: number | null;
  readonly high95: number | null;
  readonly max: number;
  /** what p99 shall be; null: nothing is asked */
  readonly most: number | null;
  readonly aim: number | null;
  readonly count: number;
}

const rounded = (value: number) => Number(value.toPrecision(4));
const bound = (value: number | null) => (value === null ? null : rounded(value));
const bounds = (values: readonly number[], q: number) => {
  const { low, high } = intervalOf(values, q);
  return { low95: bound(low), high95: bound(high) };
};

export interface Label {
  readonly workload: string;
  readonly server: string;
  readonly measure?: string;
}

export function rateRow(
  label: Label,
  unit: RateRow["unit"],
  rates: readonly number[],
  further: Readonly<Record<string, number>> = {},
): RateRow {
  const others = Object.entries(further).map(([name, value]) => [name, rounded(value)]);
  return {
    ...label,
    unit,
    rate: rounded(median(rates)),
    ...bounds(rates, 0.5),
    ...Object.fromEntries(others),
    rounds: rates.length,
  };
}

export function ratioRow(
  label: Label,
  against: string,
  ratio: Ratio,
  asked: { readonly least?: number; readonly aim?: number },
  further: Readonly<Record<string, number>> = {},
): RatioRow {
  const others = Object.entries(further).map(([name, value]) => [name, rounded(value)]);
  return {
    ...label,
    against,
    ratio: rounded(ratio.median),
    low95: bound(ratio.low),
    high95: bound(ratio.high),
    least: asked.least ?? null,
    aim: asked.aim ?? null,
    ...Object.fromEntries(others),
    rounds: ratio.rounds,
  };
}

export function amountRow(
  label: Label & { readonly measure: string },
  unit: AmountRow["unit"],
  values: readonly number[],
  asked: { readonly most?: number; readonly aim?: number } = {},
): AmountRow {
  return {
    ...label,
    unit,
    p50: rounded(median(values)),
    p99: rounded(quantile(values, 0.99)),
    ...bounds(values, 0.99),
    max: rounded(Math.max(...values)),
    most: asked.most ?? null,
    aim: asked.aim ?? null,
    count: values.length,
  };
}

/** Appends to the file that `scripts/bench` prints. */
export function say(file: string, rows: readonly object[]): void {
  for (const row of rows) appendFileSync(file, `${JSON.stringify(row)}\n`);
}
