// What a person may write for names, sizes, times, labels and properties, and how csnap prints them.
import { describe, expect, it } from "vitest";
import { groupByVolume } from "../../src/cli/commands/delete.js";
import { parseLabels } from "../../src/cli/commands/snapshot.js";
import { counted, grouped, tableLines } from "../../src/cli/output.js";
import { parseSnapshotAssignments, parseVolumeAssignments } from "../../src/cli/properties.js";
import { checkChunkSize, checkNewOriginSize, defaultStoreBytes } from "../../src/volume/create.js";
import { CsnapError, codeOf, messageOf } from "../../src/volume/errors.js";
import {
  checkPriority,
  checkVolumeName,
  parseObjectName,
  parseSnapshotName,
} from "../../src/volume/names.js";
import {
  formatDuration,
  formatSize,
  isoTime,
  parseDuration,
  parseSize,
  sizeArgument,
} from "../../src/volume/sizes.js";

const usage = expect.objectContaining({ code: "USAGE" });

function refuses(action: () => unknown, text: RegExp): void {
  try {
    action();
  } catch (error) {
    expect(error).toEqual(usage);
    expect((error as CsnapError).message).toMatch(text);
    return;
  }
  throw new Error(`not refused: ${action}`);
}

describe("sizes", () => {
  it.each([
    ["4096", 4096],
    ["16k", 16384],
    ["16K", 16384],
    ["1G", 2 ** 30],
    ["1GiB", 2 ** 30],
    ["2T", 2 ** 41],
    ["0", 0],
  ])("%s is %d bytes", (text, bytes) => expect(parseSize(text, "--size")).toBe(bytes));

  it.each(["", "k", "1.5G", "-1", "1 G", "1x", "0x10", "1e9", "99999999999999999999"])(
    "%j is refused",
    (text) => {
      refuses(() => parseSize(text, "--size"), /^--size '/);
    },
  );

  it("come back exactly from their short form", () => {
    for (const bytes of [0, 1, 4097, 16384, 2 ** 20 + 1024, 3 * 2 ** 30, 2 ** 50]) {
      expect(parseSize(sizeArgument(bytes), "x")).toBe(bytes);
    }
  });

  it("are printed with three digits that matter", () => {
    expect([0, 1023, 1024, 10 * 1024, 1536 * 1024, 2 ** 40].map(formatSize)).toEqual([
      "0 B",
      "1023 B",
      "1.00 KiB",
      "10.0 KiB",
      "1.50 MiB",
      "1.00 TiB",
    ]);
  });
});

describe("times", () => {
  it("are read with their unit", () => {
    expect(["500ms", "10s", "3", "2m", "1h"].map((text) => parseDuration(text, "x"))).toEqual([
      500, 10_000, 3000, 120_000, 3_600_000,
    ]);
    for (const text of ["", "0", "-1s", "1d", "soon"])
      refuses(() => parseDuration(text, "--freeze-limit"), /is not a time/);
  });

  it("are printed as a person reads them", () => {
    expect([0.4, 12, 1500, 125_000].map(formatDuration)).toEqual(["0 ms", "12 ms", "1.50 s", "2 min 5 s"]);
    expect(isoTime(1_722_852_672_123_456_789n)).toBe("2024-08-05T10:11:12.123Z");
  });
});

describe("names", () => {
  it("follow the rule of cli.md", () => {
    for (const name of ["a", "0", "disk1", "A.b_c:d-e", "x".repeat(128)])
      expect(checkVolumeName(name)).toBe(name);
    for (const name of ["", ".a", "-a", "a b", "a/b", "ä", "x".repeat(129), "a?b", "a\n"]) {
      refuses(() => checkVolumeName(name), /is not allowed/);
    }
  });

  it("split at the @", () => {
    expect(parseSnapshotName("disk1@mon")).toEqual({ volume: "disk1", snapshot: "mon" });
    expect(parseObjectName("disk1")).toEqual({ volume: "disk1" });
    refuses(() => parseSnapshotName("disk1"), /names no snapshot/);
    refuses(() => parseSnapshotName("disk1@"), /snapshot name ''/);
    refuses(() => parseSnapshotName("@x"), /volume name ''/);
    refuses(() => parseSnapshotName("a@b@c"), /snapshot name 'b@c'/);
    refuses(() => checkVolumeName("a@b"), /names a snapshot/);
  });

  it("of several volumes are grouped for one visit each", () => {
    expect([...groupByVolume(["a@1", "b@1", "a@2"])]).toEqual([
      ["a", ["1", "2"]],
      ["b", ["1"]],
    ]);
    refuses(() => groupByVolume(["a@1", "b"]), /'b' is not a snapshot/);
  });
});

describe("labels and properties", () => {
  it("are read", () => {
    expect(parseLabels(["kind=nightly", "note=a=b"])).toEqual({ kind: "nightly", note: "a=b" });
    expect(parseSnapshotAssignments(["pin=on", "priority=7", "label.kind=", "label.x=1"])).toEqual({
      pinned: true,
      priority: 7,
      labels: { kind: "", x: "1" },
    });
    expect(parseVolumeAssignments(["on-full=refuse-writes", "staged-limit=64M", "reclaim-rate=0"])).toEqual({
      on_full: "refuse-writes",
      staged_limit: 64 * 2 ** 20,
      reclaim_rate: 0,
    });
  });

  it("are refused with what is allowed", () => {
    refuses(() => parseLabels(["kind"]), /is not K=V/);
    refuses(() => parseLabels(["kind="]), /has no value/);
    refuses(() => parseLabels(["a b=c"]), /a label's key is/);
    refuses(() => parseLabels(["a=x\ny"]), /printable/);
    refuses(() => parseSnapshotAssignments(["pin=yes"]), /it is on or off/);
    refuses(() => parseSnapshotAssignments(["priority=1.5"]), /whole number from 0 to 100/);
    refuses(() => parseSnapshotAssignments(["on-full=x"]), /a snapshot has no property/);
    refuses(() => parseVolumeAssignments(["pin=on"]), /belong to snapshots/);
    refuses(() => parseVolumeAssignments(["constructor=1"]), /a volume has no property/);
    refuses(() => parseVolumeAssignments(["cache-limit"]), /is not PROPERTY=VALUE/);
    refuses(() => checkPriority(101), /0 to 100/);
  });
});

describe("making a volume", () => {
  const GiB = 2 ** 30;

  it("takes 20 % of the origin for the store, at least 1 GiB where that fits", () => {
    expect(defaultStoreBytes(100 * GiB, 1000 * GiB)).toBe(20 * GiB);
    expect(defaultStoreBytes(GiB, 10 * GiB)).toBe(GiB);
    expect(defaultStoreBytes(GiB, GiB - 1)).toBe(205 * 2 ** 20);
    expect(defaultStoreBytes(5 * GiB, 0)).toBe(GiB);
  });

  it("refuses odd chunk and origin sizes", () => {
    for (const bytes of [0, 2048, 5000, 12288, 2 ** 21])
      refuses(() => checkChunkSize(bytes), /power of two from 4k to 1M/);
    for (const bytes of [4096, 16384, 2 ** 20]) expect(checkChunkSize(bytes)).toBe(bytes);
    refuses(() => checkNewOriginSize(0), /use 4k/);
    refuses(() => checkNewOriginSize(1_000_000), /use 980k/);
  });
});

describe("output", () => {
  it("lines columns up and leaves no blanks at the end", () => {
    const columns = [
      { title: "NAME", cell: (row: [string, string]) => row[0] },
      { title: "SIZE", right: true, cell: (row: [string, string]) => row[1] },
      { title: "X", cell: () => "" },
    ];
    expect(
      tableLines(columns, [
        ["disk1", "1 B"],
        ["d", "1000 B"],
      ]),
    ).toEqual(["NAME     SIZE  X", "disk1     1 B", "d      1000 B"]);
  });

  it("counts with the right noun", () => {
    expect([counted(1, "snapshot"), counted(1234, "snapshot"), grouped(1e6)]).toEqual([
      "1 snapshot",
      "1,234 snapshots",
      "1,000,000",
    ]);
  });
});

describe("errors", () => {
  it("have one line and a stable code, whatever they come from", () => {
    expect(new CsnapError("BUSY", "a\n  b\n").message).toBe("a b");
    const system = Object.assign(new Error("EACCES: permission denied, open '/x'"), {
      code: "EACCES",
      syscall: "open",
      path: "/x",
    });
    expect([codeOf(system), messageOf(system)]).toEqual(["ACCESS", "/x: permission denied"]);
    expect(codeOf(new TypeError("x"))).toBe("FAILED");
  });
});
