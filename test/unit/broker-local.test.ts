// The broker's local backend: the contract, and what is its own: files, their damage, stale writers.

import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { open as openFile, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import tmp from "tmp";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { FileRecords } from "../../src/broker/file_records.js";
import { openBroker } from "../../src/broker/open.js";
import { isAlive, ownIdentity } from "../../src/broker/process_identity.js";
import { newRecord, type ServiceRecord, type Versioned } from "../../src/broker/record.js";
import { type Backend, BrokerChild, spec, UUID } from "../support/broker-backend.js";
import { brokerConformance, claimOptions, random, seed } from "./broker.conformance.js";

/** The newest record's file. */
async function newestFile(stateDir: string, service: string): Promise<string> {
  const directory = join(stateDir, "broker", service);
  const names = (await readdir(directory)).filter((name) => name.startsWith("r.")).sort();
  return join(directory, names.at(-1) ?? "");
}

async function localBackend(): Promise<Backend> {
  const stateDir = tmp.dirSync({ prefix: "csnap-broker-" }).name;
  return {
    open: () => openBroker("local:", { stateDir }),
    childArguments: ["local:", stateDir],
    // A pipe that nobody writes holds whoever opens it for reading.
    hang: async (service) => {
      const file = await newestFile(stateDir, service);
      const revision = Number(file.slice(-16)) + 1;
      const pipe = `${file.slice(0, -16)}${String(revision).padStart(16, "0")}`;
      execFileSync("mkfifo", [`${pipe}.new`]);
      await rename(`${pipe}.new`, pipe);
      return async () => {
        // No newcomer can meet the pipe; the one that waits at it is let go, and reads anew.
        await rename(pipe, `${pipe}.gone`);
        await letGo(`${pipe}.gone`);
      };
    },
    // In one step: the grant writes its record again as soon as it misses it.
    vanish: async (service) => {
      await rename(join(stateDir, "broker", service), join(stateDir, "vanished"));
      await rm(join(stateDir, "vanished"), { recursive: true });
    },
    close: () => rm(stateDir, { recursive: true, force: true }),
  };
}

/** The reader at the pipe gets what is no record: it reports that, and looks again. */
async function letGo(pipe: string): Promise<void> {
  const writer = await openFile(pipe, "r+");
  await writer.write("no record");
  await writer.close();
}

brokerConformance("local", localBackend);

describe("broker URLs", () => {
  it.each(["zk://host:2379", "consul:", "local:/elsewhere", "nonsense"])(
    "'%s' is refused, naming what is known",
    (url) => {
      expect(() => openBroker(url, { stateDir: "/nowhere" })).toThrow(/^broker URL '.*local: \(this host's/);
    },
  );
});

describe("records", () => {
  let stateDir: string;
  let store: FileRecords;

  beforeEach(() => {
    stateDir = tmp.dirSync({ prefix: "csnap-broker-" }).name;
    store = new FileRecords(join(stateDir, "broker"));
  });
  afterEach(() => rm(stateDir, { recursive: true, force: true }));

  const numbered = (epoch: bigint): ServiceRecord => ({
    ...newRecord(spec("disk1"), "2026-01-01T00:00:00.000Z"),
    epoch,
  });
  const must = async (swap: Promise<Versioned | undefined>): Promise<Versioned> => {
    const made = await swap;
    if (!made) throw new Error("the swap was lost");
    return made;
  };

  it("come back as they were written", async () => {
    const made = await must(store.swap("disk1", undefined, numbered(2n ** 63n)));
    expect(await store.read("disk1")).toMatchObject(made);
    expect(made.revision).toBe(1);
    expect(await store.read("disk2")).toBeUndefined();
  });

  it("are not replaced by a writer that slept, however many changes it missed", async () => {
    let last = await must(store.swap("disk1", undefined, numbered(0n)));
    const read: (Versioned | undefined)[] = [undefined, last];
    for (let epoch = 1n; epoch <= 120n; epoch++) {
      last = await must(store.swap("disk1", last, numbered(epoch)));
      read.push(last);
    }
    read.pop();
    // Those whose successor was removed find their name free again.
    const names = await readdir(join(stateDir, "broker", "disk1"));
    expect(names.length).toBeLessThan(40);
    for (const base of read) {
      expect(
        await store.swap("disk1", base, numbered(999n)),
        `from revision ${base?.revision}`,
      ).toBeUndefined();
      expect((await store.read("disk1"))?.token).toBe(last.token);
    }
    const next = await must(store.swap("disk1", last, numbered(121n)));
    expect((await store.read("disk1"))?.token).toBe(next.token);
  });

  it(`of many writers at once: each change that counts is built on the one before (CSNAP_SEED=${seed})`, async () => {
    const next = random(seed);
    let granted = 0;
    const writer = async (): Promise<void> => {
      const own = new FileRecords(join(stateDir, "broker"));
      for (let done = 0; done < 40; ) {
        const base = await own.read("disk1");
        if (next() < 0.3) await new Promise((resolve) => setImmediate(resolve));
        if (!(await own.swap("disk1", base, numbered((base?.record.epoch ?? 0n) + 1n)))) continue;
        granted++;
        done++;
      }
    };
    await Promise.all(Array.from({ length: 6 }, writer));
    expect(granted).toBe(240);
    const last = await store.read("disk1");
    expect(last?.record.epoch).toBe(240n);
    expect(last?.revision).toBe(240);
  });

  it.each([
    [
      "a byte changed",
      (text: string) => text.replace(UUID, UUID.replace("1", "2")),
      "does not match its checksum",
    ],
    ["cut short", (text: string) => text.slice(0, text.length / 2), "does not match its checksum"],
    ["empty", () => "", "no broker record"],
    ["something else", () => randomBytes(400).toString("base64"), "no broker record"],
    [
      "of a later version",
      (text: string) => text.replace("csnap-broker 1", "csnap-broker 2"),
      "upgrade csnap",
    ],
  ])(
    "that are damaged (%s) give one line with the remedy, and the remedy helps",
    async (_how, damage, words) => {
      const broker = openBroker("local:", { stateDir });
      const former = new BrokerChild(["local:", stateDir]);
      await (await former.up()).must("claim", { service: "disk1", ...claimOptions(), storeEpoch: "4" });
      await former.kill();
      const file = await newestFile(stateDir, "disk1");
      await writeFile(file, damage(await readFile(file, "utf8")));
      const error = await broker.claim("disk1", claimOptions()).then(
        () => expect.fail("a damaged record was taken"),
        (found: Error) => found,
      );
      expect(error.message).toContain(words);
      expect(error.message).toContain(file);
      expect(error.message).not.toContain("\n");
      await rm(file);
      const again = await broker.claim("disk1", claimOptions({ storeEpoch: 5n }));
      expect(again.epoch).toBe(6n);
      await again.release();
      await broker.close();
    },
  );

  it("hold a holder of another boot, or whose pid is another's now, for gone", async () => {
    const self = ownIdentity();
    expect(await isAlive(self)).toBe(true);
    expect(await isAlive({ ...self, boot_id: "another" })).toBe(false);
    expect(await isAlive({ ...self, start_time: "1" })).toBe(false);
    expect(await isAlive({ ...self, pid: 2 ** 22 + 1, start_time: "1" })).toBe(false);
  });
});
