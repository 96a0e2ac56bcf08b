/** What a fault did to a client, from the times that were taken: pure arithmetic. All times are ms of one clock. */

/** How a service's record stood from `ms` on. */
export interface RecordAt {
  readonly ms: number;
  readonly epoch: bigint;
  readonly state: string;
  readonly isFencing: boolean;
  readonly holder: { readonly host: string; readonly pid: number } | null;
}

/** An acknowledged request: of which term, and when. */
export interface Answer {
  readonly epoch: bigint;
  readonly ms: number;
}

export interface FaultTimes {
  readonly kind: string;
  /** before the fault was begun */
  readonly faultMs: number;
  /** of the term that the fault ended */
  readonly epoch: bigint;
  /** acknowledged requests, in order, from well before the fault to well after it */
  readonly acknowledged: readonly Answer[];
  /** each revision of the record, in order */
  readonly records: readonly RecordAt[];
}

/** One fault, in ms. The phases follow each other and last from the fault to the first answer of the new term. */
export interface FaultRow {
  readonly kind: string;
  readonly epoch: number;
  /** longest time between two answers, less the median of what lay between them before the fault */
  readonly stall_ms: number;
  /** until the record shows that somebody acts upon it */
  readonly detect_ms: number;
  /** until an agent has ordered the next server: the fence, or the former server's end in order */
  readonly release_ms: number;
  /** until the new server's address is published: start, claim, stamp, recovery, probe */
  readonly start_ms: number;
  /** until the client has an answer */
  readonly reconnect_ms: number;
}

/** Throws where the times don't show a recovery. */
export function rowOf({ kind, faultMs, epoch, acknowledged, records }: FaultTimes): FaultRow {
  const since = records.filter(({ ms }) => ms >= faultMs);
  const next = acknowledged.find((each) => each.ms >= faultMs && each.epoch > epoch);
  const reaction = since.find((record) => isReaction(record, epoch));
  const ordered = since.find((record) => record.epoch > epoch);
  const published = since.find((record) => record.epoch === next?.epoch && record.state === "published");
  if (!next || !reaction || !ordered || !published)
    throw new Error(`no recovery from ${kind} in epoch ${epoch} is in the record's history`);
  return {
    kind,
    epoch: Number(epoch),
    stall_ms: round(stallOf(acknowledged, faultMs)),
    detect_ms: round(reaction.ms - faultMs),
    release_ms: round(ordered.ms - reaction.ms),
    start_ms: round(published.ms - ordered.ms),
    reconnect_ms: round(next.ms - published.ms),
  };
}

/** Fencing has begun, the address is withdrawn, or the slot is free. */
function isReaction({ epoch, state, isFencing }: RecordAt, former: bigint): boolean {
  return isFencing || state !== "published" || epoch > former;
}

function stallOf(acknowledged: FaultTimes["acknowledged"], faultMs: number): number {
  const before: number[] = [];
  let longest = 0;
  for (const [i, { ms }] of acknowledged.slice(1).entries()) {
    const gap = ms - (acknowledged[i]?.ms ?? ms);
    if (ms < faultMs) before.push(gap);
    else longest = Math.max(longest, gap);
  }
  return longest - quantile(before, 0.5);
}

/** By nearest rank: one of the values. @param q from 0 up to 1 */
export function quantile(values: readonly number[], q: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(q * sorted.length) - 1)] ?? Number.NaN;
}

export interface Summary {
  readonly kind: string;
  readonly faults: number;
  readonly p50_ms: number;
  readonly p95_ms: number;
  readonly p99_ms: number;
  readonly max_ms: number;
  /** medians of the phases */
  readonly detect_ms: number;
  readonly release_ms: number;
  readonly start_ms: number;
  readonly reconnect_ms: number;
}

export function summaryOf(kind: string, rows: readonly FaultRow[]): Summary {
  const own = rows.filter((row) => row.kind === kind);
  const of = (field: Exclude<keyof FaultRow, "kind">, q: number) =>
    quantile(
      own.map((row) => row[field]),
      q,
    );
  return {
    kind,
    faults: own.length,
    p50_ms: of("stall_ms", 0.5),
    p95_ms: of("stall_ms", 0.95),
    p99_ms: of("stall_ms", 0.99),
    max_ms: of("stall_ms", 1),
    detect_ms: of("detect_ms", 0.5),
    release_ms: of("release_ms", 0.5),
    start_ms: of("start_ms", 0.5),
    reconnect_ms: of("reconnect_ms", 0.5),
  };
}

/** For a person: in seconds. */
export function tableOf(summaries: readonly Summary[]): string {
  const seconds = (ms: number) => (ms / 1000).toFixed(2);
  const head = ["fault", "count", "p50", "p95", "p99", "max", "detect", "release", "start", "reconnect"];
  const lines = summaries.map((each) => [
    each.kind,
    String(each.faults),
    ...[each.p50_ms, each.p95_ms, each.p99_ms, each.max_ms].map(seconds),
    ...[each.detect_ms, each.release_ms, each.start_ms, each.reconnect_ms].map(seconds),
  ]);
  const widths = head.map((_, i) => Math.max(...[head, ...lines].map((line) => line[i]?.length ?? 0)));
  const padded = [head, ...lines].map((line) =>
    line.map((cell, i) => (i === 0 ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0))).join("  "),
  );
  return `stalls in seconds; on the right the medians of their parts\n${padded.join("\n")}`;
}

function round(ms: number): number {
  return Math.round(ms * 10) / 10;
}
