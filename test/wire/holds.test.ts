/**
 * The read-write hold of an attachment (design §3) as clients, the agent and the administrator meet it: raw clients,
 * nbdinfo, the control API and commands on the real server. `check 57` is the NBD conformance list's number.
 */
import { spawn } from "node:child_process";
import { randomInt, randomUUID } from "node:crypto";
import { request } from "node:http";
import { hostname } from "node:os";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { EventRecord } from "../../src/control/events.js";
import type { HoldRecord, VolumeRecord } from "../../src/volume/model.js";
import { collect, Sandbox } from "../support/csnap.js";
import { addressOf, ConnectionLost, type NbdClient } from "../support/nbd-client.js";
import { Command } from "../support/nbd-requests.js";
import { ask, decodeInfo } from "../support/nbd-wire.js";
import { RawClient } from "../support/raw-client.js";
import { SyncGate } from "../support/server-gate.js";
import { expectBytes, pattern, ServedVolume } from "../support/server-volume.js";

const READ_ONLY = 2;
const EPERM = 1;

let volume: ServedVolume;
let gate: SyncGate | undefined;
beforeEach(async () => {
  volume = await ServedVolume.start({ size: "16M" });
});
afterEach(async () => {
  gate?.close();
  gate = undefined;
  await volume?.close();
});

const isReadOnly = ({ flags }: { readonly flags: number }) => (flags & READ_ONLY) !== 0;
const form = (uuid: string, attempt: number, mode = "") => `vol?attachment=${uuid}.${attempt}${mode}`;
const attach = (uuid: string, attempt = 1, mode = "") => volume.open({ export: form(uuid, attempt, mode) });
/** The line with which GO is refused. */
async function refused(name: string): Promise<string> {
  const outcome = await volume.open({ export: name }).then(
    () => "let in",
    (error: Error) => error.message,
  );
  expect(outcome).toMatch(/^option 7 was answered POLICY: /);
  return outcome.replace(/^option 7 was answered POLICY: /, "");
}

/** What INFO says: the transmission flags, or the refusal's line. */
async function info(name: string): Promise<number | string> {
  const address = addressOf(volume.unix);
  if (!("path" in address)) throw new Error("not a unix socket");
  const client = await RawClient.start({ transport: "unix", path: address.path });
  try {
    client.send(ask.info(name));
    let flags = -1;
    for (;;) {
      const { type, payload } = await client.reply();
      if (type === "ACK") return flags;
      if (type !== "INFO") return `${type}: ${payload}`;
      const decoded = decodeInfo(payload);
      if (typeof decoded.flags === "number") flags = decoded.flags;
    }
  } finally {
    client.destroy();
  }
}

interface Ended {
  readonly ended: HoldRecord | null;
}

function endHold(query: string): Promise<{ status: number; body: Ended & { message?: string } }> {
  const socketPath = volume.sandbox.path("run/vol.control");
  return new Promise((resolve, reject) => {
    const call = request(
      { socketPath, method: "DELETE", path: `/v1/hold${query}`, agent: false },
      (response) => {
        let text = "";
        response.setEncoding("utf8").on("data", (part: string) => {
          text += part;
        });
        response.on("end", () =>
          resolve({
            status: response.statusCode ?? 0,
            body: JSON.parse(text) as Ended & { message?: string },
          }),
        );
      },
    );
    call.on("error", reject);
    call.end();
  });
}

const holder = async () => (await volume.status()).hold?.attachment;
const lost = async (client: NbdClient) => expect(client.read(0, 512)).rejects.toThrow(ConnectionLost);
const denied = async (client: NbdClient) => {
  const [cookie] = client.send({ command: Command.WRITE, offset: 0, data: Buffer.alloc(512, 1) });
  expect((await client.answer(cookie as bigint)).error).toBe(EPERM);
};

describe("a reconnect", () => {
  it("keeps its hold, and is refused once it was ended, over a restart of the server too", async () => {
    const uuid = randomUUID();
    (await attach(uuid)).destroy();
    (await attach(uuid, 2, "&held")).destroy();
    expect(await holder()).toBe(uuid);
    expect((await endHold("?force=1")).status).toBe(200);
    await volume.server.stop();
    await volume.restart();
    expect(await refused(form(uuid, 3, "&held"))).toMatch(/hold on vol was ended.*attach anew$/);
    expect(await holder()).toBeUndefined();
    expect(await info(form(uuid, 4, "&held"))).toMatch(/^POLICY/);
    // Anew, under a new name, as anybody.
    (await attach(randomUUID())).destroy();
  });
});

describe("a hold", () => {
  it("check 57: is one attachment's; a second is told who has it, since when and what to do", async () => {
    const [first, second] = [randomUUID(), randomUUID()];
    const before = Date.now();
    const client = await attach(first);
    expect(isReadOnly(client)).toBe(false);
    await client.write(0, pattern(1, 4096));
    const { hold } = await volume.status();
    expect(hold).toMatchObject({ attachment: first, host: hostname() });
    expect(Date.parse(hold?.since ?? "")).toBeGreaterThanOrEqual(before - 1);
    const line = await refused(form(second, 1));
    for (const part of [first, hostname(), hold?.since ?? "?", "csnap detach --force vol"])
      expect(line).toContain(part);
    expect(line).not.toContain("\n");
    expect(await info(form(second, 1))).toBe(`POLICY: ${line}`);
    // More connections of the holder belong to it.
    const more = await attach(first);
    await more.write(4096, pattern(2, 4096));
    expectBytes(await client.read(4096, 4096), pattern(2, 4096));
  });

  it("leaves the origin to others for reading only: GO, INFO, EXPORT_NAME, nbdinfo", async () => {
    const plain = await volume.open();
    expect(isReadOnly(plain)).toBe(false);
    await plain.disconnect();
    await expect.poll(async () => (await volume.status()).server?.clients.length).toBe(0);
    const held = await attach(randomUUID());
    for (const options of [{}, { export: "vol" }, { byExportName: true }, { structured: true }]) {
      const other = await volume.open(options);
      expect(isReadOnly(other)).toBe(true);
      await other.read(0, 4096);
      await denied(other);
      await other.disconnect();
    }
    expect(isReadOnly({ flags: Number(await info("vol")) })).toBe(true);
    const tool = await collect(
      spawn("nbdinfo", ["--is", "read-only", volume.unix], { stdio: ["ignore", "pipe", "pipe"] }),
    );
    expect(tool).toMatchObject({ status: 0 });
    // Looking for reading only needs no hold, of the origin and of snapshots.
    await volume.snapshot("one");
    const reader = await attach(randomUUID(), 1, "&ro");
    expect(isReadOnly(reader)).toBe(true);
    await denied(reader);
    const snapshot = await volume.open({ export: `vol@one?attachment=${randomUUID()}.1` });
    expect(isReadOnly(snapshot)).toBe(true);
    await held.write(0, pattern(3, 4096));
    expectBytes(await reader.read(0, 4096), pattern(3, 4096));
  });

  it("is refused while a plain client can write, and plain ones may be several", async () => {
    const plain = [await volume.open(), await volume.open()];
    for (const client of plain) await client.write(0, pattern(4, 512));
    const uuid = randomUUID();
    const line = await refused(form(uuid, 1));
    expect(line).toMatch(/^vol is open read-write by client #\d+ \(unix socket\): disconnect it first/);
    expect(await info(form(uuid, 1))).toBe(`POLICY: ${line}`);
    expect(await holder()).toBeUndefined();
    const reader = await attach(uuid, 1, "&ro");
    await reader.read(0, 512);
    for (const client of plain) await client.disconnect();
    await expect.poll(async () => (await volume.status()).server?.clients.length).toBe(1);
    const client = await attach(uuid, 2);
    expect(isReadOnly(client)).toBe(false);
    await lost(reader);
  });

  it("stays through a greater try, a restart and kill -9, without a connection", async () => {
    const uuid = randomUUID();
    const first = await attach(uuid, 1);
    const taken = (await volume.status()).hold;
    const second = await attach(uuid, 2);
    await lost(first);
    expect((await volume.status()).hold).toEqual(taken);
    // INFO counts as no try: the present one goes on, and so does its greater successor.
    expect(await info(form(uuid, 9))).toBe(second.flags);
    expect(await info(form(uuid, 1))).toMatch(/^POLICY: attempt 2 of this attachment has taken over/);
    await second.write(0, pattern(5, 4096));
    expect(await volume.server.stop()).toBe(0);
    expect((await volume.status()).hold).toEqual(taken);
    const dumped = await volume.sandbox.must("dump", "vol");
    expect(dumped).toContain(`{"type":"hold","attachment":"${uuid}","host":"${hostname()}"`);
    for (const kill of [false, true]) {
      await volume.restart();
      expect((await volume.status()).hold).toEqual(taken);
      expect(isReadOnly(await volume.open())).toBe(true);
      expect(await refused(form(randomUUID(), 1))).toContain(uuid);
      const client = await attach(uuid, 3);
      await client.write(0, pattern(6, 4096));
      if (kill) await volume.server.kill();
      else expect(await volume.server.stop()).toBe(0);
    }
    await volume.restart();
    expect((await volume.status()).hold).toEqual(taken);
    expect(await volume.sandbox.must("status", "vol")).toMatch(
      new RegExp(`held by +${hostname()} since .*, attachment ${uuid}`),
    );
    expect(await volume.sandbox.json("check", "vol")).toMatchObject({ clean: true });
  });

  it("is on stable storage before GO is answered", async () => {
    const sandbox = new Sandbox();
    gate = await SyncGate.open(sandbox.directory);
    await volume.close();
    volume = await ServedVolume.start({ size: "16M", env: gate.env }, sandbox);
    const uuid = randomUUID();
    gate.hold(".store");
    let answered = false;
    const client = attach(uuid).then((opened) => {
      answered = true;
      return opened;
    });
    await gate.held();
    // Meanwhile others are treated as if it were taken.
    expect(isReadOnly({ flags: Number(await info("vol")) })).toBe(true);
    expect(isReadOnly(await volume.open())).toBe(true);
    expect(await info(form(randomUUID(), 1))).toMatch(/^POLICY: vol is being attached read-write by/);
    expect(answered).toBe(false);
    gate.release();
    expect(isReadOnly(await client)).toBe(false);
    await volume.server.kill();
    await volume.restart();
    expect(await holder()).toBe(uuid);
  });
});

describe("two attachments at once", () => {
  const seed = Number(process.env.CSNAP_SEED ?? randomInt(2 ** 31));

  it(`exactly one wins, plain clients among them never write beside it (seed ${seed})`, async () => {
    for (let round = 0; round < 20; round++) {
      const uuids = [randomUUID(), randomUUID(), randomUUID()];
      // The seed says where plain clients come in between.
      const plainAt = (seed >>> (round % 24)) % 4;
      const asked = uuids.map((uuid) => form(uuid, 1));
      asked.splice(plainAt, 0, "vol");
      const outcomes = await Promise.allSettled(asked.map((name) => volume.open({ export: name })));
      const clients = outcomes.flatMap((outcome) => (outcome.status === "fulfilled" ? [outcome.value] : []));
      // One that lost the race at its very start is cut before it may write.
      const writing: NbdClient[] = [];
      for (const client of clients) {
        if (isReadOnly(client)) continue;
        const written = await client.write(0, pattern(round, 512)).then(
          () => true,
          (error: unknown) => {
            expect(error).toBeInstanceOf(ConnectionLost);
            return false;
          },
        );
        if (written) writing.push(client);
      }
      const attachment = await holder();
      const writers = (await volume.status()).server?.clients.filter((client) => !client.read_only) ?? [];
      expect(writing).toHaveLength(1);
      expect(writers).toHaveLength(1);
      if (attachment !== undefined) {
        expect(uuids).toContain(attachment);
        expect(writers[0]?.attachment).toBe(`${attachment}.1`);
      } else expect(writers[0]?.attachment).toBe(null);
      for (const client of clients) client.destroy();
      if (attachment !== undefined)
        expect((await endHold(`?attachment=${attachment}`)).body.ended?.attachment).toBe(attachment);
      await expect.poll(async () => (await volume.status()).server?.clients.length).toBe(0);
    }
  });
});

describe("the end of a hold", () => {
  const events = async (): Promise<EventRecord[]> => {
    const socketPath = volume.sandbox.path("run/vol.control");
    return new Promise((resolve, reject) => {
      const call = request({ socketPath, path: "/v1/events?since=0", agent: false }, (response) => {
        let text = "";
        response.setEncoding("utf8").on("data", (part: string) => {
          text += part;
          const seen = [...text.matchAll(/^data: (.*)$/gm)].map(
            ([, line]) => JSON.parse(line ?? "") as EventRecord,
          );
          if (!seen.some(({ kind }) => kind === "hold-ended")) return;
          response.destroy();
          resolve(seen.filter(({ kind }) => kind.startsWith("hold-")));
        });
      });
      call.on("error", reject);
      call.end();
    });
  };

  it("by its agent: connections end first, others may write, the events say so", async () => {
    const uuid = randomUUID();
    const client = await attach(uuid, 4);
    await client.write(0, pattern(1, 4096));
    expect(await endHold(`?attachment=${randomUUID()}`)).toEqual({ status: 200, body: { ended: null } });
    expect(await holder()).toBe(uuid);
    const { status, body } = await endHold(`?attachment=${uuid}`);
    expect([status, body.ended?.attachment, body.ended?.host]).toEqual([200, uuid, hostname()]);
    await lost(client);
    expect((await volume.status()).server?.clients).toEqual([]);
    expect(await holder()).toBeUndefined();
    expect(await endHold(`?attachment=${uuid}`)).toEqual({ status: 200, body: { ended: null } });
    expect((await events()).map(({ kind, message }) => [kind, message.includes(uuid)])).toEqual([
      ["hold-taken", true],
      ["hold-ended", true],
    ]);
    // A late connection of the same try does not bring the hold back; a greater one is a new wish.
    expect(await refused(form(uuid, 4))).toContain("detached");
    const plain = await volume.open();
    await plain.write(0, pattern(2, 512));
    await plain.disconnect();
    await expect.poll(async () => (await volume.status()).server?.clients.length).toBe(0);
    await attach(uuid, 5);
    expect(await holder()).toBe(uuid);
    await volume.server.kill();
    await volume.restart();
    expect(await holder()).toBe(uuid);
  });

  it("is durable: it survives kill -9", async () => {
    const uuid = randomUUID();
    await attach(uuid);
    await endHold(`?attachment=${uuid}`);
    await volume.server.kill();
    await volume.restart();
    expect(await holder()).toBeUndefined();
    expect(isReadOnly(await volume.open())).toBe(false);
  });

  it("F5: comes after the writes that were issued, and nobody else writes before", async () => {
    const sandbox = new Sandbox();
    gate = await SyncGate.open(sandbox.directory);
    await volume.close();
    volume = await ServedVolume.start({ size: "16M", env: gate.env }, sandbox);
    const uuid = randomUUID();
    const client = await attach(uuid);
    // FUA: under way until the origin's sync is let go.
    gate.hold(".img");
    client.send({ command: Command.WRITE, offset: 0, data: pattern(7, 4096), flags: 1 });
    await gate.held();
    let over = false;
    const ended = endHold(`?attachment=${uuid}`).then((answer) => {
      over = true;
      return answer;
    });
    await expect.poll(() => info(form(uuid, 1))).toMatch(/^POLICY: this attachment was detached/);
    const other = await volume.open();
    expect(isReadOnly(other)).toBe(true);
    expect(over).toBe(false);
    gate.release();
    expect((await ended).body.ended?.attachment).toBe(uuid);
    expectBytes(await other.read(0, 4096), pattern(7, 4096));
    expect(isReadOnly(await volume.open())).toBe(false);
  });

  it("by force, served: the attachment does not come back to what others wrote since", async () => {
    const uuid = randomUUID();
    const client = await attach(uuid);
    expect(await volume.sandbox.must("detach", "--force", "vol")).toMatch(
      new RegExp(`^the hold of attachment ${uuid} on vol is ended: held by ${hostname()} since `),
    );
    await lost(client);
    for (const attempt of [1, 2, 77]) expect(await refused(form(uuid, attempt))).toMatch(/ended by force/);
    expect(await info(form(uuid, 78))).toMatch(/^POLICY: this attachment was ended by force/);
    const next = await attach(randomUUID());
    expect(isReadOnly(next)).toBe(false);
    const records = await volume.sandbox.json<{ ended: HoldRecord }>("detach", "--force", "vol");
    expect(records.ended.host).toBe(hostname());
    expect(await volume.sandbox.csnap("detach", "--force", "vol")).toMatchObject({
      status: 1,
      stderr: "csnap: vol is held by no attachment: nothing to end (`csnap status vol` shows a hold)\n",
    });
  });

  it("by force, on the store alone", async () => {
    const uuid = randomUUID();
    await attach(uuid);
    await volume.server.kill();
    const before = await volume.status();
    expect(before.hold?.attachment).toBe(uuid);
    await volume.sandbox.must("detach", "--force", "vol");
    const after = await volume.status();
    expect([after.hold, after.epoch > before.epoch]).toEqual([null, true]);
    await volume.restart();
    expect(isReadOnly(await volume.open())).toBe(false);
  });

  it("is refused where it is not clear whose is meant", async () => {
    for (const [query, text] of [
      ["", "give attachment=UUID, force=1 or both"],
      ["?attachment=x", "'attachment' must be a uuid"],
      ["?force=0", "'force' must be 1"],
      ["?attachmnt=x", "unknown key 'attachmnt'"],
    ] as const) {
      const { status, body } = await endHold(query);
      expect([status, body.message]).toEqual([400, expect.stringContaining(text)]);
    }
    // Without --force it is a device of this host, whose agent does not run.
    for (const args of [["vol"], ["--force", "vol@one"]]) {
      const { status, stderr } = await volume.sandbox.csnap("detach", ...args);
      expect([status, stderr]).toEqual([1, expect.stringContaining("no agent runs on this host")]);
    }
    const record = await volume.sandbox.json<VolumeRecord>("status", "vol");
    expect(record.hold).toBe(null);
  });
});
