/** The agent's records where they can't be written: told in a line, and no device is lost over it. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import tmp from "tmp";
import { afterEach, describe, expect, it } from "vitest";
import { Device, type DeviceHost } from "../../src/agent/device.js";
import { type AttachmentRecord, RecordStore } from "../../src/agent/record.js";
import { native } from "../../src/native.js";

const directory = tmp.dirSync({ prefix: "csnap-record-", unsafeCleanup: true });
afterEach(() => directory.removeCallback());

const record: AttachmentRecord = {
  uuid: "00000000-0000-4000-8000-000000000001",
  volume: "disk1",
  snapshot: null,
  readOnly: false,
  onLost: { mode: "hang" },
  wantedDevice: null,
  since: "2026-01-01T00:00:00.000Z",
  failure: "the export has shrunk",
  ending: false,
  mayHold: false,
  device: null,
  identity: null,
  epoch: "0",
};

describe("a record that can't be written", () => {
  it("is a line in the log, and the attachment goes on", () => {
    // Root writes anywhere but into a directory that is a file.
    writeFileSync(join(directory.name, "attachments"), "");
    const records = new RecordStore(directory.name);
    const lines: string[] = [];
    const host: DeviceHost = {
      native,
      save: (saved) => records.save(saved),
      forget: async () => {},
      keep: () => {},
      tell: () => {},
      owes: () => false,
      log: (line) => lines.push(line),
    };
    const device = new Device(host, record, false, 1, []);
    device.start();
    expect(device.phase).toBe("failed");
    expect(lines).toEqual([
      expect.stringMatching(/^disk1: the agent's record .* can't be written: .*make room/),
    ]);
  });
});
