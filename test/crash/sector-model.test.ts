// The model that judges the kill -9 test must notice what it is there for: every kind of loss, made by hand.
import { describe, expect, it } from "vitest";
import { contentOf, type Operation, SECTOR, SectorModel } from "./sector-model.js";

const SECTORS = 8;

function put(volume: Buffer, operation: Operation): void {
  contentOf(operation).copy(volume, operation.first * SECTOR);
}

function written(model: SectorModel, first: number, count: number, ...volumes: Buffer[]): Operation {
  const operation = model.issue("write", first, count);
  for (const volume of volumes) put(volume, operation);
  model.acknowledge(operation);
  return operation;
}

describe("the sector model", () => {
  const start = () => ({ model: new SectorModel(SECTORS), volume: Buffer.alloc(SECTORS * SECTOR) });

  it("refuses a lost write, and one that came back", () => {
    const { model, volume } = start();
    const first = written(model, 0, 2, volume);
    written(model, 1, 2);
    expect(() => model.settle(volume)).toThrow(`sector 1 holds ${first.value}`);
  });

  it("refuses a write that a later one, acknowledged, was to replace by zeros", () => {
    const { model, volume } = start();
    const write = written(model, 3, 1, volume);
    model.acknowledge(model.issue("zero", 3, 1));
    expect(() => model.settle(volume)).toThrow(`sector 3 holds ${write.value}`);
  });

  it("allows an unacknowledged write sector by sector, and remembers what was found", () => {
    const { model, volume } = start();
    const cut = model.issue("write", 0, 2);
    contentOf(cut).copy(volume, 0, 0, SECTOR);
    model.settle(volume);
    put(volume, cut);
    expect(() => model.settle(volume)).toThrow(`sector 1 holds ${cut.value}`);
  });

  it("allows either of two that overlap in time, and a trim that did nothing", () => {
    const { model, volume } = start();
    const [one, two] = [model.issue("write", 0, 1), model.issue("write", 0, 1)];
    model.acknowledge(one);
    model.acknowledge(two);
    put(volume, one);
    model.acknowledge(model.issue("trim", 0, 1));
    model.settle(volume);
    expect(model.at(0).map(({ value }) => value)).toEqual([one.value]);
  });

  it("refuses torn sectors and sectors of another place", () => {
    const { model, volume } = start();
    const write = written(model, 0, 1, volume);
    const torn = Buffer.from(volume);
    torn.fill(0, 256, SECTOR);
    expect(() => model.settle(torn)).toThrow("what nobody wrote there");
    contentOf(write).copy(volume, SECTOR);
    expect(() => model.settle(volume)).toThrow("sector 1 holds what nobody wrote there");
  });

  it("allows a read to find a sector half written, only by a change that is under way and only of what was there", () => {
    const { model, volume } = start();
    const old = written(model, 0, 2, volume);
    const quiet = model.beginRead(0, 2);
    const torn = Buffer.from(volume);
    const late = model.issue("write", 1, 1);
    contentOf(late).copy(torn, SECTOR, 0, 200);
    const busy = model.beginRead(0, 2);
    model.acknowledge(late);
    const atRest = model.beginRead(0, 2);

    for (const check of [quiet, busy]) check(torn);
    expect(() => atRest(torn)).toThrow("sector 1 holds what nobody wrote there");
    expect(() => model.settle(torn)).toThrow("sector 1 holds what nobody wrote there");
    const foreign = Buffer.from(torn);
    foreign.fill(0, SECTOR + 256, SECTOR + 264);
    expect(() => busy(foreign)).toThrow("sector 1 holds what nobody wrote there");
    const elsewhere = Buffer.from(torn);
    contentOf({ ...old, value: late.value }).copy(elsewhere, 0, 0, 256);
    expect(() => busy(elsewhere)).toThrow("sector 0 holds what nobody wrote there");
  });

  it("refuses a read of what was replaced before it began", () => {
    const { model, volume } = start();
    written(model, 0, 1, volume);
    const old = Buffer.from(volume.subarray(0, SECTOR));
    const early = model.beginRead(0, 1);
    const next = written(model, 0, 1, volume);
    const late = model.beginRead(0, 1);
    early(old);
    late(volume.subarray(0, SECTOR));
    expect(() => late(old)).toThrow(`possible: ${next.value} `);
  });

  it("may show what was overwritten again before the reply", () => {
    const { model, volume } = start();
    const check = model.beginRead(0, 1);
    written(model, 0, 1, volume);
    const between = Buffer.from(volume.subarray(0, SECTOR));
    written(model, 0, 1, volume);
    check(between);
  });
});

describe("a cut", () => {
  const start = () => {
    const model = new SectorModel(SECTORS);
    const snapshot = Buffer.alloc(SECTORS * SECTOR);
    return { model, snapshot };
  };

  it("must hold what was acknowledged before the call", () => {
    const { model, snapshot } = start();
    written(model, 0, 1);
    const cut = model.beginCut();
    expect(() => model.checkCut(cut, snapshot)).toThrow("sector 0 holds 0");
  });

  it("must not hold what was sent after the return", () => {
    const { model, snapshot } = start();
    const cut = model.beginCut();
    model.endCut(cut);
    const late = written(model, 0, 1, snapshot);
    expect(() => model.checkCut(cut, snapshot)).toThrow(`sector 0 holds ${late.value}`);
  });

  it("may hold or leave out what was under way, but not a write without what it depends on", () => {
    const { model, snapshot } = start();
    const cut = model.beginCut();
    written(model, 0, 1);
    model.checkCut(cut, snapshot);
    written(model, 1, 1, snapshot);
    model.endCut(cut);
    expect(() => model.checkCut(cut, snapshot)).toThrow("sector 0 holds 0");
  });
});
