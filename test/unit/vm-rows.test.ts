/** The arithmetic of `scripts/bench vm`. */
import { describe, expect, it } from "vitest";
import { type Run, rowsOf } from "../bench/vm/rows.js";

const nothing = { reads: 0, readBytes: 0, writes: 0, writtenBytes: 0, flushes: 0 };

/** `kib` read and as much written, in an operation each, per first write. */
function run(contestant: string, snapshots: number, round: number, kib: number, seconds: number): Run {
  const firstWrites = 100;
  const [operations, bytes] = [firstWrites, firstWrites * kib * 1024];
  return {
    ...{ contestant, snapshots, round, firstWrites, seconds, acknowledgedS: seconds / 2 },
    disk: { reads: operations, readBytes: bytes, writes: operations, writtenBytes: bytes, flushes: 10 },
    parts: contestant.startsWith("csnap")
      ? { store: { ...nothing, readBytes: 3 * firstWrites * 1024, writtenBytes: firstWrites * 1024 } }
      : {},
    closing: { ...nothing, writtenBytes: 2048 },
    ...{ diskBusy: 0.9, processorBusy: 0.3, ofLimit: 0.95 },
  };
}

describe("rows of first writes on a slow disk", () => {
  const runs = [
    run("csnap 16k", 1, 1, 10, 2),
    run("dm-snapshot 16k", 1, 0, 20, 3),
    run("csnap 16k", 1, 0, 10, 1),
    run("dm-snapshot 16k", 1, 1, 20, 8),
    run("csnap 16k", 16, 0, 10, 1),
  ];
  const rows = rowsOf(runs);

  it("tell what a first write costs the disk", () => {
    expect(rows[0]).toMatchObject({
      contestant: "csnap 16k",
      snapshots: 1,
      per_first_write: { reads: 1, read_kib: 10, writes: 1, written_kib: 10, flushes: 0.1 },
      store: { read_kib: 3, written_kib: 1 },
      closing_kib: 2,
      seconds: 1.5,
      rounds: 2,
    });
  });

  it("compare runs of the same round, bytes as ours through theirs and times as theirs through ours", () => {
    const compared = rows.filter((row) => "against" in row);
    expect(compared).toMatchObject([
      { what: expect.stringMatching(/bytes/), ratio: 0.5, most: 1, aim: 0.7, low95: null },
      { what: expect.stringMatching(/reads and writes/), ratio: 1 },
      { what: expect.stringMatching(/time/), ratio: 3.5, least: 1, aim: 2 },
    ]);
  });

  it("leave out what has no counterpart", () => {
    expect(rows.filter((row) => "against" in row && "snapshots" in row && row.snapshots === 16)).toEqual([]);
  });
});
