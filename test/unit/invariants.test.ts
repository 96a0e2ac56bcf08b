/** The failover tests' own judges: each violation that they look for is one that they see. */
import { describe, expect, it } from "vitest";
import { judgedHistory, type StoredRecord, type StoredSlot } from "../support/record-history.js";
import { TermSpans } from "../support/term-spans.js";

describe("terms that act", () => {
  it("may follow each other, with answers that were long on their way", () => {
    const spans = new TermSpans();
    spans.saw(1, 100, 110);
    spans.saw(2, 300, 310);
    // Asked before the second term had answered anybody.
    spans.saw(1, 200, 900);
    spans.saw(4, 1000, 1010);
    expect(spans.stale("read")).toEqual([]);
    expect(spans.answers).toBe(4);
  });

  it("may not answer what was asked after a newer one had answered", () => {
    const spans = new TermSpans();
    spans.saw(1, 100, 110);
    spans.saw(3, 300, 310);
    spans.saw(1, 350, 360);
    expect(spans.stale("read")).toEqual(["read: epoch 1 40 ms after epoch 3 had begun"]);
  });

  it("are judged by what all who saw them say together, and against every newer term", () => {
    const [one, two] = [new TermSpans(), new TermSpans()];
    one.saw(1, 500, 510);
    two.saw(2, 700, 710);
    two.saw(3, 300, 310);
    for (const span of two.list()) one.add(span);
    expect(one.stale("read")).toEqual([
      "read: epoch 2 390 ms after epoch 3 had begun",
      "read: epoch 1 190 ms after epoch 3 had begun",
    ]);
  });
});

describe("a record's history", () => {
  const held = (epoch: string, host: string, seq: number, more: Partial<StoredSlot> = {}): StoredRecord => ({
    epoch,
    slot: { instance: `instance ${epoch}`, holder: { host }, beat: { seq }, fencing: null, ...more },
  });
  const vacant = (epoch: string): StoredRecord => ({
    epoch,
    slot: { instance: "", holder: null, beat: null, fencing: null },
  });
  const problems = (...records: StoredRecord[]) => judgedHistory(records, ["12.5 alpha epoch 1"]).problems;

  it("is right where terms end before others begin", () => {
    const history = judgedHistory(
      [
        vacant("0"),
        held("1", "alpha", 1),
        held("1", "alpha", 2),
        held("1", "alpha", 2, { fencing: {} }),
        vacant("1"),
        held("2", "beta", 1),
        // Its process is gone, as its own kernel says.
        held("3", "beta", 1),
      ],
      ["12.5 alpha epoch 1"],
    );
    expect(history).toEqual({ revisions: 7, epochs: 3, problems: [] });
  });

  it("is wrong where an epoch falls, comes twice or changes hands", () => {
    expect(problems(held("2", "alpha", 1), vacant("1"))).toEqual(["epoch 1 follows 2"]);
    expect(problems(held("1", "alpha", 1), vacant("1"), held("1", "alpha", 2))).toEqual([
      "epoch 1 is held again after its end",
    ]);
    expect(problems(held("1", "alpha", 1), held("1", "alpha", 2, { instance: "other" }))).toEqual([
      "epoch 1 was granted twice",
    ]);
    expect(problems(held("1", "alpha", 1), held("1", "beta", 2))).toEqual([
      "epoch 1 went from alpha to beta",
    ]);
    expect(problems(held("1", "alpha", 3), held("1", "alpha", 2))).toEqual([
      "epoch 1: a renewal's number came twice",
    ]);
  });

  it("is wrong where a host loses its term to another without a fence", () => {
    expect(problems(held("1", "alpha", 1), held("2", "beta", 1))).toEqual([
      "epoch 2 was given to another host while alpha had 1",
    ]);
    expect(problems(held("4", "gamma", 1, { fencing: {} }), vacant("4"))).toEqual([
      "gamma lost epoch 4 without a fence",
    ]);
  });
});
