// The control API's request bodies, the event hub and the metrics text, without a server.
import { describe, expect, it } from "vitest";
import {
  httpStatus,
  parseCheck,
  parseCreateSnapshot,
  parseDelete,
  parsePropertyChanges,
  parseSnapshotChanges,
} from "../../src/control/api.js";
import { EventHub, type EventRecord } from "../../src/control/events.js";
import { renderMetrics } from "../../src/control/metrics.js";
import type { NativeVolumeInfo } from "../../src/native.js";
import { volumeRecord } from "../../src/volume/model.js";

describe("request bodies", () => {
  it("get their defaults", () => {
    expect(parseCreateSnapshot({ name: "mon" })).toEqual({
      name: "mon",
      pinned: false,
      priority: 50,
      labels: {},
    });
    expect(parseDelete({ snapshots: ["a"] })).toEqual({ ids: ["a"], dryRun: false });
    expect(parseCheck({})).toEqual({ data: false });
    expect(parseSnapshotChanges({})).toEqual({});
  });

  it.each([
    [() => parseCreateSnapshot(null), "must be a JSON object"],
    [() => parseCreateSnapshot([]), "must be a JSON object"],
    [() => parseCreateSnapshot({}), "'name' must be a text"],
    [() => parseCreateSnapshot({ name: "a/b" }), "snapshot name 'a/b' is not allowed"],
    [() => parseCreateSnapshot({ name: "a", pined: true }), "unknown key 'pined'"],
    [() => parseCreateSnapshot({ name: "a", pinned: "yes" }), "'pinned' must be true or false"],
    [() => parseCreateSnapshot({ name: "a", priority: 1.5 }), "whole number from 0 to 100"],
    [() => parseCreateSnapshot({ name: "a", labels: { "x y": "1" } }), "label 'x y' is not allowed"],
    [() => parseCreateSnapshot({ name: "a", labels: { x: 1 } }), "'labels.x' must be a text"],
    [() => parseDelete({ snapshots: [] }), "1 to 1000"],
    [() => parseDelete({ snapshots: new Array(1001).fill("a") }), "1 to 1000"],
    [() => parseDelete({ snapshots: [1] }), "must be a text"],
    [() => parsePropertyChanges({ on_full: "panic" }), "drop-snapshots or refuse-writes"],
    [() => parsePropertyChanges({ cache_limit: -1 }), "number of bytes"],
    [() => parsePropertyChanges({ cache_limit: 1e300 }), "number of bytes"],
    [() => parseCheck({ data: 1 }), "true or false"],
  ])("%s is refused", (parse, text) => {
    expect(parse).toThrowError(
      expect.objectContaining({ code: "USAGE", message: expect.stringContaining(text) }),
    );
  });

  it("are answered with a status that tells whose fault it is", () => {
    expect(
      ["USAGE", "NOT_FOUND", "ALREADY_EXISTS", "NO_SPACE", "FAILED"].map((code) =>
        httpStatus(code as "USAGE"),
      ),
    ).toEqual([400, 404, 409, 507, 500]);
  });
});

describe("events", () => {
  const clock = () => new Date("2026-08-05T10:11:12Z");

  it("reach every listener in order, with growing ids", () => {
    const hub = new EventHub("disk1", clock);
    const seen: EventRecord[] = [];
    hub.subscribe(0, (event) => seen.push(event));
    hub.emit({ kind: "snapshot-created", snapshot: "mon", snapshotUuid: "u", message: "m" });
    hub.emit({ kind: "low-water", snapshot: "", message: "" });
    expect(seen).toEqual([
      {
        id: 1,
        time: "2026-08-05T10:11:12.000Z",
        volume: "disk1",
        kind: "snapshot-created",
        snapshot: "mon",
        snapshot_uuid: "u",
        message: "m",
      },
      expect.objectContaining({ id: 2, kind: "low-water", snapshot: null, snapshot_uuid: null }),
    ]);
  });

  it("are kept for those who come back, and not sent to those who left", () => {
    const hub = new EventHub("disk1", clock);
    for (let i = 0; i < 1500; i += 1) hub.emit({ kind: "low-water", message: String(i) });
    const ids = (since: number) => {
      const seen: number[] = [];
      hub.subscribe(since, (event) => seen.push(event.id))();
      return seen;
    };
    expect(ids(1498)).toEqual([1499, 1500]);
    expect(ids(0)).toHaveLength(1000);
    expect(ids(hub.lastEventId)).toEqual([]);
    const left: number[] = [];
    hub.subscribe(hub.lastEventId, (event) => left.push(event.id))();
    hub.emit({ kind: "low-water", message: "" });
    expect(left).toEqual([]);
  });
});

const info: NativeVolumeInfo = {
  volumeName: "disk1",
  volumeUuid: "6f1c4d8e-0d2b-4a55-9a3e-3f6d0f2b7a11",
  storeUuid: "00000000-0000-0000-0000-000000000001",
  durabilityId: "00000000-0000-0000-0000-000000000002",
  epoch: 7n,
  originPath: "/elsewhere",
  originIdentity: "id",
  originBytes: 1000,
  storeBytes: 8192,
  chunkBytes: 16384,
  clean: true,
  syncFailed: false,
  createdNs: 1_722_852_672_000_000_000n,
  superblockSequence: 9n,
  durability: "sync",
  onFull: "drop-snapshots",
  journalBytes: 4096,
  generation: 3n,
  hold: {
    attachment: "6f1c4d8e-0d2b-4a55-9a3e-3f6d0f2b7a12",
    host: "alpha",
    sinceNs: 1_722_852_672_000_000_000n,
  },
  suspect: false,
  failed: false,
  failure: "",
  exceptions: 5,
  blocksTotal: 100,
  blocksFree: 60,
  blocksMetadata: 10,
  blocksData: 20,
  blocksReserve: 10,
  journalUsedBytes: 512,
  replayedRecords: 0,
  droppedEntries: 0,
  lostEntries: 0,
  reclaimActive: false,
  reclaimRateBytes: 0,
  stagedLimitBytes: 0,
  cacheLimitBytes: 0,
  snapshotsLive: 2,
  snapshotsDeleting: 1,
  reads: 11,
  writes: 12,
  flushes: 13,
  readBytes: 14,
  writeBytes: 15,
  copyOuts: 16,
  zeroChunks: 17,
  commits: 18,
  checkpoints: 19,
  parked: 20,
  staged: 22,
  applied: 23,
  stagedBytes: 24,
  checksumErrors: 0,
  fenced: false,
  gateRefusals: 0,
  chunksFreed: 21,
};

const context = { volume: 'a"b\\c', storePath: "/s", originPath: "/o", served: true, server: null };

describe("records", () => {
  it("say what state a volume is in", () => {
    const state = (served: boolean, changes: Partial<NativeVolumeInfo>) =>
      volumeRecord({ ...context, served }, { ...info, ...changes }).state;
    expect(state(true, {})).toBe("serving");
    expect(state(true, { clean: false })).toBe("serving");
    expect(state(false, {})).toBe("stopped");
    expect(state(false, { clean: false })).toBe("unclean");
    expect(state(true, { failed: true })).toBe("failed");
    expect(state(false, { syncFailed: true })).toBe("failed");
  });

  it("have bytes, ISO times and plain numbers", () => {
    const record = volumeRecord(context, info);
    expect(record).toMatchObject({
      created: "2024-08-05T10:11:12.000Z",
      epoch: 7,
      durability: "sync",
      origin: { path: "/o" },
      store: { path: "/s", data: 20 * 4096, free: 60 * 4096 },
    });
    expect(JSON.parse(JSON.stringify(record))).toEqual(record);
  });
});

describe("metrics", () => {
  const text = renderMetrics(volumeRecord(context, info));

  it("are lines of the Prometheus text format", () => {
    const sample = /^csnap_[a-z_]+\{(?:[a-z_]+="(?:[^"\\]|\\["\\n])*",?)+\} -?[0-9.]+$/;
    const lines = text.trimEnd().split("\n");
    for (const line of lines.filter((one) => !one.startsWith("#"))) expect(line).toMatch(sample);
    expect(text.endsWith("\n")).toBe(true);
  });

  it("name each family once, with help and type before its samples", () => {
    const helps = [...text.matchAll(/^# HELP (\S+) .+\n# TYPE \1 (?:gauge|counter)\n\1\{/gm)].map(
      ([, name]) => name,
    );
    expect(new Set(helps).size).toBe(helps.length);
    expect(helps.length).toBe(text.match(/^# TYPE/gm)?.length);
  });

  it("carry the figures and escape labels", () => {
    expect(text).toContain('csnap_store_bytes{volume="a\\"b\\\\c",use="free"} 245760\n');
    expect(text).toContain('csnap_copy_outs_total{volume="a\\"b\\\\c"} 16\n');
  });

  it("tell how the term began, and when it ends where it ends in time", () => {
    const server = {
      pid: 1,
      version: "0",
      started: "2024-08-05T10:11:12.000Z",
      listeners: [],
      metrics: null,
      clients: [],
    };
    const of = (grant_remaining_ms: number | null, start_ms: number | null, clean: boolean) =>
      renderMetrics(
        volumeRecord(
          { ...context, volume: "v", server: { ...server, grant_remaining_ms, start_ms } },
          { ...info, clean, gateRefusals: 4 },
        ),
      );
    const taken = of(2750, 812, false);
    expect(taken).toContain('csnap_takeover{volume="v"} 1\n');
    expect(taken).toContain('csnap_start_seconds{volume="v"} 0.812\n');
    expect(taken).toContain('csnap_grant_remaining_seconds{volume="v"} 2.75\n');
    expect(taken).toContain('csnap_acks_refused_total{volume="v"} 4\n');
    expect(of(0, null, true)).toContain('csnap_grant_remaining_seconds{volume="v"} 0\n');
    const local = of(null, null, true);
    expect(local).toContain('csnap_takeover{volume="v"} 0\n');
    expect(local).not.toMatch(/csnap_grant_remaining|csnap_start_seconds/);
  });
});
