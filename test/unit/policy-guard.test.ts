// How the server answers 'low-water': with its choice, never with one that was overtaken.
import { describe, expect, it } from "vitest";
import type { NativeSnapshot, NativeVolumeInfo } from "../../src/native.js";
import { StoreGuard } from "../../src/server/store_guard.js";

function snapshot(uuid: string, priority: number): NativeSnapshot {
  return {
    uuid,
    name: uuid,
    state: "live",
    generation: 1n,
    createdNs: 0n,
    sizeBytes: 0,
    priority,
    pinned: false,
    suspect: false,
    useCount: 0,
    labels: {},
    uniqueBytes: 0,
    sharedBytes: 0,
    estimated: false,
  };
}

/** The core's side of the question, with the moment of its answer in the test's hand. */
function core(onFull: "drop-snapshots" | "refuse-writes") {
  const asked: { resolve: (snapshots: NativeSnapshot[]) => void; reject: (error: Error) => void }[] = [];
  const decided: string[] = [];
  return {
    asked,
    decided,
    native: {
      info: () => ({ onFull }) as NativeVolumeInfo,
      snapshots: () =>
        new Promise<NativeSnapshot[]>((resolve, reject) => {
          asked.push({ resolve, reject });
        }),
      decideDrop: (uuid: string) => {
        decided.push(uuid);
      },
    },
  };
}

describe("StoreGuard", () => {
  it("names the snapshot that goes, and says so", async () => {
    const { native, asked, decided } = core("drop-snapshots");
    const log: string[] = [];
    const answer = new StoreGuard(native, (line) => log.push(line)).lowWater();
    asked[0]?.resolve([snapshot("a", 50), snapshot("b", 10)]);
    await answer;
    expect(decided).toEqual(["b"]);
    expect(log).toEqual(["the store runs low: @b (priority 10) goes next"]);
  });

  it("leaves it to the core where nothing may go, and where it can't look", async () => {
    const refusing = core("refuse-writes");
    const answer = new StoreGuard(refusing.native, () => {}).lowWater();
    refusing.asked[0]?.resolve([snapshot("a", 50)]);
    await answer;
    expect(refusing.decided).toEqual([""]);

    const failing = core("drop-snapshots");
    const failed = new StoreGuard(failing.native, () => {}).lowWater();
    failing.asked[0]?.reject(new Error("closed"));
    await failed;
    expect(failing.decided).toEqual([""]);
  });

  it("is silent once the core has dropped one itself, and answers the next question", async () => {
    const { native, asked, decided } = core("drop-snapshots");
    const guard = new StoreGuard(native, () => {});
    const late = guard.lowWater();
    guard.overtaken();
    asked[0]?.resolve([snapshot("b", 90)]);
    await late;
    expect(decided).toEqual([]);
    const next = guard.lowWater();
    asked[1]?.resolve([snapshot("b", 90)]);
    await next;
    expect(decided).toEqual(["b"]);
  });
});
