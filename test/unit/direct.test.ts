// openVolume({ direct }): what reaches the addon reaches both descriptors, and a volume goes from
// buffered to direct and back.
import { readdirSync, readFileSync, readlinkSync, realpathSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import tmp from "tmp";
import { beforeEach, expect, it } from "vitest";
import { type NativeVolume, native } from "../../src/native.js";
import { isNativeError } from "../../src/volume/errors.js";

const O_DIRECT = process.arch === "arm64" || process.arch === "arm" ? 0o200000 : 0o40000;

let paths: { originPath: string; storePath: string };

beforeEach(async () => {
  const directory = realpathSync(tmp.dirSync({ prefix: "csnap-test-", unsafeCleanup: true }).name);
  paths = { originPath: join(directory, "origin"), storePath: join(directory, "store") };
  writeFileSync(paths.originPath, Buffer.alloc(1 << 20));
  await native.createStore({
    ...paths,
    volumeName: "vol",
    storeBytes: 16 << 20,
    chunkBytes: 16384,
    onFull: "drop-snapshots",
    force: false,
  });
});

function open(direct?: boolean): Promise<NativeVolume> {
  return native.openVolume({
    ...paths,
    durability: "sync",
    lookOnly: false,
    acceptOrigin: false,
    acceptLoss: false,
    ...(direct === undefined ? {} : { direct }),
  });
}

/** Whether each open descriptor of `path` is O_DIRECT, those that are last. */
function directness(path: string): boolean[] {
  const found: boolean[] = [];
  for (const fd of readdirSync("/proc/self/fd")) {
    try {
      if (readlinkSync(`/proc/self/fd/${fd}`) !== path) continue;
    } catch {
      continue; // closed since it was listed
    }
    const flags = /^flags:\s*([0-7]+)/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, "utf8"))?.[1];
    found.push((Number.parseInt(flags ?? "0", 8) & O_DIRECT) !== 0);
  }
  return found.sort();
}

it("opens origin and store with O_DIRECT only where asked, and both ways see one volume", async (context) => {
  const names: string[] = [];
  for (const direct of [undefined, true, false]) {
    let volume: NativeVolume;
    try {
      volume = await open(direct);
    } catch (error) {
      if (isNativeError(error) && error.code === "NOT_SUPPORTED") context.skip(error.message);
      throw error;
    }
    expect(directness(paths.originPath)).toEqual([direct === true]);
    // Copies pass the page cache by on a descriptor of their own, where the store has none.
    const [first, ...copies] = directness(paths.storePath);
    expect(first).toBe(direct === true);
    expect(copies).toEqual(direct === true ? [] : copies.map(() => true));
    names.push(`from-${direct}`);
    await volume.createSnapshot({ name: `from-${direct}`, pinned: false, priority: 0, labels: {} });
    expect((await volume.snapshots()).map(({ name }) => name)).toEqual(names);
    expect((await volume.check({ data: true })).problems).toEqual([]);
    await volume.close();
  }
});

it("sees in a look without a lock what a direct server has written", async (context) => {
  const before = await native.readStore(paths.storePath);
  let volume: NativeVolume;
  try {
    volume = await open(true);
  } catch (error) {
    if (isNativeError(error) && error.code === "NOT_SUPPORTED") context.skip(error.message);
    throw error;
  }
  expect((await native.readStore(paths.storePath)).epoch).toBe(before.epoch + 1n);
  await volume.close();
  expect((await native.readStore(paths.storePath)).clean).toBe(true);
});
