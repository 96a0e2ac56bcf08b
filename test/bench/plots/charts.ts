/** The charts that README shows, from rows that `scripts/bench data` has printed. */
import type { RateRow } from "../data/rows.js";
import type { Bar, Chart } from "./bar-chart.js";

/** The first row of a run. */
interface MachineRow {
  readonly machine: string;
  readonly file_system?: string;
}

type Row = Partial<RateRow> & Partial<MachineRow>;

interface Plan {
  readonly file: string;
  readonly title: string;
  readonly scale: Chart["scale"];
  /** heading and workload */
  readonly groups: readonly (readonly [string, string])[];
}

const WAYS = [
  ["one at a time, one core", "QD1, one core"],
  ["one at a time, two cores", "QD1, two cores"],
  ["queue depth 16", "QD16"],
  ["queue depth 64", "QD64"],
] as const;

const firstWrites = (suffix: string) =>
  WAYS.map(
    ([heading, way]) => [heading, `first write after a snapshot, 16k chunks, ${way}${suffix}`] as const,
  );

const plans: readonly Plan[] = [
  {
    file: "random-4k.svg",
    title: "4 KiB random reads and writes, queue depth 16",
    scale: "linear",
    groups: ["read", "write"].flatMap((word) =>
      ["1 connection", "4 connections"].map(
        (connections) => [`${word}, ${connections}`, `4k random ${word}, QD16, ${connections}`] as const,
      ),
    ),
  },
  {
    file: "first-write.svg",
    title: "First writes of 4 KiB after a snapshot: a burst",
    scale: "log",
    groups: firstWrites(""),
  },
  {
    file: "first-write-sustained.svg",
    title: "First writes of 4 KiB after a snapshot, until flushed and cleanly stopped",
    scale: "log",
    groups: firstWrites(", sustained"),
  },
];

const isRate = (row: Row): row is RateRow => row.rate !== undefined && row.server !== undefined;

function barOf({ server, rate, low95, high95 }: RateRow): Bar {
  return { label: server, value: rate, low: low95, high: high95, ours: server.startsWith("csnap") };
}

/** Of a workload measured twice the later rows count. */
function barsOf(rows: readonly RateRow[], workload: string): Bar[] {
  const latest = new Map<string, RateRow>();
  for (const row of rows) if (row.workload === workload) latest.set(row.server, row);
  return [...latest.values()].map(barOf);
}

/** Of each rate the machine that it was measured on: of the last such row before it. */
function placesOf(rows: readonly Row[]): Map<Row, string> {
  const places = new Map<Row, string>();
  let place = "";
  for (const row of rows) {
    if (row.machine !== undefined)
      place = [row.machine, row.file_system].filter((part) => part !== undefined).join("; ");
    else if (place !== "") places.set(row, place);
  }
  return places;
}

/** What is drawn, by file name. A workload that was not measured is left out, and so is a chart that has none. */
export function chartsOf(rows: readonly Row[]): Map<string, Chart> {
  const rates = rows.filter(isRate);
  const places = placesOf(rows);
  const charts = new Map<string, Chart>();
  for (const { file, title, scale, groups } of plans) {
    const drawn = groups
      .map(([name, workload]) => ({ name, workload, bars: barsOf(rates, workload) }))
      .filter(({ bars }) => bars.length > 0);
    if (drawn.length === 0) continue;
    const rounds = rates.find(({ workload }) => workload === drawn[0]?.workload)?.rounds ?? 0;
    const workloads = new Set(drawn.map(({ workload }) => workload));
    const where = rates.filter(({ workload }) => workloads.has(workload)).map((row) => places.get(row));
    const how = `median of ${rounds} interleaved rounds, with the 95 % interval of the median`;
    const notes = [how, ...new Set(where.filter((place) => place !== undefined))];
    charts.set(file, { title, unit: "requests per second", scale, groups: drawn, notes });
  }
  return charts;
}
