// Opens the golden images of test/fixtures/golden (why and how: the README there) with the addon, looking
// only, and compares what it finds with what was there when they were made.
import { mkdtempSync, openSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gunzipSync } from "node:zlib";
import { afterAll, describe, expect, it } from "vitest";
import { native } from "../../src/native.js";

const golden = join(import.meta.dirname, "../fixtures/golden");
const scratch = mkdtempSync(join(tmpdir(), "csnap-golden-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const names = readdirSync(golden)
  .filter((file) => file.endsWith(".store.gz"))
  .map((file) => file.replace(".store.gz", ""));

/** Everything of the dump that a later csnap must read the same way. */
async function look(name: string): Promise<unknown> {
  for (const part of ["origin", "store"])
    writeFileSync(
      join(scratch, `${name}.${part}`),
      gunzipSync(readFileSync(join(golden, `${name}.${part}.gz`))),
    );
  const volume = await native.openVolume({
    originPath: join(scratch, `${name}.origin`),
    storePath: join(scratch, `${name}.store`),
    durability: "flush",
    lookOnly: true,
    acceptOrigin: false,
    acceptLoss: false,
  });
  try {
    const report = await volume.check({ data: true });
    const dump = join(scratch, `${name}.dump`);
    await volume.dump(openSync(dump, "w"));
    const lines = readFileSync(dump, "utf8").trim().split("\n");
    return {
      check: { clean: report.clean, problems: report.problems, chunksVerified: report.chunksVerified },
      snapshots: (await volume.snapshots()).map(({ name, state, priority, pinned, labels, uniqueBytes }) => ({
        name,
        state,
        priority,
        pinned,
        labels,
        uniqueBytes,
      })),
      dump: lines.map((line) => JSON.parse(line) as unknown),
    };
  } finally {
    await volume.close();
  }
}

describe("golden images", () => {
  it("are there", () => expect(names).toEqual(["clean", "crashed"]));

  it.each(names)("%s reads as it did when it was made", async (name) => {
    const found = await look(name);
    const file = join(golden, `${name}.json`);
    if (process.env.UPDATE_GOLDEN) writeFileSync(file, `${JSON.stringify(found, null, 1)}\n`);
    expect(found).toEqual(JSON.parse(readFileSync(file, "utf8")));
  });
});
