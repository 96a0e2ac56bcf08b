/** What the runs of `scripts/bench vm` say: a row for each contestant, then csnap beside each of the others. */
import { median, ratioOf } from "../data/statistics.js";

/** What the whole disk was asked for. */
export interface DiskCounts {
  readonly reads: number;
  readonly readBytes: number;
  readonly writes: number;
  readonly writtenBytes: number;
  readonly flushes: number;
}

/** One run of one contestant, as the machine prints it (guest.mjs). */
export interface Run {
  readonly contestant: string;
  readonly snapshots: number;
  readonly round: number;
  readonly firstWrites: number;
  /** From the first write until everything that the writes owe is on the disk. */
  readonly seconds: number;
  readonly acknowledgedS: number;
  readonly disk: DiskCounts;
  /** Of that, by logical volume; flushes and merged requests are counted otherwise there. */
  readonly parts: Readonly<Record<string, DiskCounts>>;
  /** What a stop in order adds. */
  readonly closing: DiskCounts;
  /** Shares of the run: the disk had something to do; the two processors had. */
  readonly diskBusy: number;
  readonly processorBusy: number;
  /** Reads and writes a second through the disk's limit. */
  readonly ofLimit: number;
}

interface Target {
  /** The bound, and the aim: of a ratio of bytes from above, of one of times from below. */
  readonly bound: number;
  readonly aim: number;
}

interface Comparison {
  readonly ours: string;
  readonly other: string;
  readonly bytes?: Readonly<Record<number, Target>>;
  readonly time?: Readonly<Record<number, Target>>;
}

/** At the same chunk size, and csnap's default beside the least that LVM thin has. */
const comparisons: readonly Comparison[] = [
  {
    ours: "csnap 16k",
    other: "dm-snapshot 16k",
    bytes: { 1: { bound: 1, aim: 0.7 }, 16: { bound: 0.15, aim: 0.08 } },
    time: { 1: { bound: 1, aim: 2 }, 16: { bound: 5, aim: 15 } },
  },
  { ours: "csnap 64k", other: "LVM thin 64k", time: { 1: { bound: 0.8, aim: 1.5 } } },
  { ours: "csnap 16k", other: "LVM thin 64k" },
];

const rounded = (value: number) => Number(value.toPrecision(4));
const KIB = 1024;
const bytesOf = ({ readBytes, writtenBytes }: DiskCounts) => readBytes + writtenBytes;
const operationsOf = ({ reads, writes }: DiskCounts) => reads + writes;
const perWrite = (figure: (disk: DiskCounts) => number) => (run: Run) => figure(run.disk) / run.firstWrites;

function contestantRow(runs: readonly Run[]): object {
  const of = (figure: (run: Run) => number) => rounded(median(runs.map(figure)));
  return {
    contestant: runs[0]?.contestant,
    snapshots: runs[0]?.snapshots,
    per_first_write: {
      reads: of(perWrite((disk) => disk.reads)),
      read_kib: of(perWrite((disk) => disk.readBytes / KIB)),
      writes: of(perWrite((disk) => disk.writes)),
      written_kib: of(perWrite((disk) => disk.writtenBytes / KIB)),
      flushes: of(perWrite((disk) => disk.flushes)),
    },
    ...partsOf(runs),
    closing_kib: of(({ closing }) => bytesOf(closing) / KIB),
    seconds: of(({ seconds }) => seconds),
    acknowledged_s: of(({ acknowledgedS }) => acknowledgedS),
    disk_busy: of(({ diskBusy }) => diskBusy),
    processor_busy: of(({ processorBusy }) => processorBusy),
    of_limit: of(({ ofLimit }) => ofLimit),
    rounds: runs.length,
  };
}

/** KiB by part, per first write. */
function partsOf(runs: readonly Run[]): object {
  const names = Object.keys(runs[0]?.parts ?? {});
  const kib = (name: string, figure: "readBytes" | "writtenBytes") =>
    rounded(median(runs.map(({ parts, firstWrites }) => (parts[name]?.[figure] ?? 0) / KIB / firstWrites)));
  return Object.fromEntries(
    names.map((name) => [name, { read_kib: kib(name, "readBytes"), written_kib: kib(name, "writtenBytes") }]),
  );
}

/** Rows in the order of the runs' first appearance; a comparison is left out where one side did not take part. */
export function rowsOf(runs: readonly Run[]): object[] {
  const groups = new Map<string, Run[]>();
  for (const run of runs) {
    const key = keyOf(run.contestant, run.snapshots);
    groups.set(key, [...(groups.get(key) ?? []), run]);
  }
  for (const group of groups.values()) group.sort((a, b) => a.round - b.round);
  const rows: object[] = [...groups.values()].map(contestantRow);
  const counts = [...new Set(runs.map(({ snapshots }) => snapshots))].sort((a, b) => a - b);
  for (const { ours, other, bytes, time } of comparisons)
    for (const snapshots of counts) {
      const mine = groups.get(keyOf(ours, snapshots));
      const theirs = groups.get(keyOf(other, snapshots));
      if (mine === undefined || theirs === undefined) continue;
      const row = (what: string, a: readonly number[], b: readonly number[], target?: object) => {
        const ratio = ratioOf(a, b);
        const ends = [ratio.low, ratio.high].map((end) => (end === null ? null : rounded(end)));
        rows.push({
          ...{ what, contestant: ours, against: other, snapshots },
          ...{ ratio: rounded(ratio.median), low95: ends[0], high95: ends[1] },
          ...{ ...target, rounds: ratio.rounds },
        });
      };
      const volume = perWrite(bytesOf);
      const operations = perWrite(operationsOf);
      const most = bytes?.[snapshots];
      const least = time?.[snapshots];
      row(
        "device bytes, csnap's through the other's",
        mine.map(volume),
        theirs.map(volume),
        most && { most: most.bound, aim: most.aim },
      );
      row(
        "device reads and writes, csnap's through the other's",
        mine.map(operations),
        theirs.map(operations),
      );
      row(
        "time, the other's through csnap's",
        theirs.map(({ seconds }) => seconds),
        mine.map(({ seconds }) => seconds),
        least && { least: least.bound, aim: least.aim },
      );
    }
  return rows;
}

const keyOf = (contestant: string, snapshots: number) => `${contestant} ${snapshots}`;
