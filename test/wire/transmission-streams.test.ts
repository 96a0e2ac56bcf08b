/**
 * Many requests at once on the real server: order, disconnects, slow and vanishing clients, stops. `check N` is the
 * NBD conformance list's number. Syncs that a test holds back make requests wait for as long as it wants.
 */
import { createHash } from "node:crypto";
import { release } from "node:os";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Sandbox } from "../support/csnap.js";
import { ConnectionLost, type NbdClient } from "../support/nbd-client.js";
import { type Answer, Command } from "../support/nbd-requests.js";
import { SyncGate } from "../support/server-gate.js";
import { expectBytes, KIB, MIB, pattern, ServedVolume } from "../support/server-volume.js";

const { READ, WRITE, FLUSH, DISC, TRIM, WRITE_ZEROES } = Command;

let volume: ServedVolume;
const content = pattern(1, 64 * MIB);
// A large read is sent from the page cache, without memory for it, unless it begins with zeros.
for (let offset = 0; offset < content.length; offset += MIB) content.fill(0, offset, offset + 4 * KIB);
const at = (offset: number, length: number) => content.subarray(offset, offset + length);

beforeAll(async () => {
  volume = await ServedVolume.start({ storeSize: "128M" });
  const client = await volume.open();
  for (let offset = 0; offset < content.length; offset += 16 * MIB)
    await client.write(offset, at(offset, 16 * MIB));
  await client.disconnect();
});
afterAll(() => volume?.close());

const [major = 0, minor = 0] = release().split(".").map(Number);
/** Whether the kernel tells what is cached: from Linux 6.5 on. */
const knowsCached = major > 6 || (major === 6 && minor >= 5);

const clientsLeft = async () => (await volume.status()).server?.clients.length;

/** Until no connection is left; the server notices the end of a client by itself. */
async function allGone(): Promise<void> {
  await expect.poll(clientsLeft, { timeout: 20_000, interval: 20 }).toBe(0);
}

describe.each(["unix", "tcp"] as const)("over %s", (transport) => {
  const open = (options = {}) => volume.open(options, volume[transport]);

  it("check 38: two requests in flight with one cookie are both answered", async () => {
    for (const structured of [false, true]) {
      const client = await open({ structured });
      const read = { command: READ, length: 4096, cookie: 0xffff_ffff_ffff_fffen };
      client.send({ ...read, offset: 0 }, { ...read, offset: 0 });
      for (const answer of [await client.next(), await client.next()]) expectBytes(answer.data, at(0, 4096));
      await client.disconnect();
    }
  });

  it("check 39: a disconnect right behind reads: they are answered, then the end", async () => {
    const client = await open();
    const reads = Array.from({ length: 40 }, (_, i) => ({
      command: READ,
      offset: i * MIB,
      length: 256 * KIB,
    }));
    const cookies = client.send(...reads, { command: DISC });
    const answers = await Promise.all(cookies.slice(0, -1).map((cookie) => client.answer(cookie)));
    answers.forEach(({ data }, i) => {
      expectBytes(data, at(i * MIB, 256 * KIB));
    });
    expect(await client.rest()).toHaveLength(0);
    expect(client.ended).toBe("end");
  });

  it("check 40: a half close behind reads: they are answered, then the end", async () => {
    const client = await open();
    const cookies = client.send(
      { command: READ, offset: 3, length: 8 * MIB },
      { command: READ, offset: 9 * MIB, length: 512 },
    );
    client.socket.end();
    const [large, small] = await Promise.all(cookies.map((cookie) => client.answer(cookie)));
    expectBytes((large as Answer).data, at(3, 8 * MIB));
    expectBytes((small as Answer).data, at(9 * MIB, 512));
    expect(await client.rest()).toHaveLength(0);
    expect(client.ended).toBe("end");
  });

  it("a thousand requests in one piece are all answered, each with its own data", async () => {
    const client = await open({ structured: true });
    const requests = Array.from({ length: 1000 }, (_, i) => ({
      command: i % 50 === 49 ? FLUSH : READ,
      offset: i % 50 === 49 ? 0 : (i * 7919 * 13) % (60 * MIB),
      length: i % 50 === 49 ? 0 : 1 + ((i * 37) % 9000),
    }));
    const answers = await Promise.all(client.send(...requests).map((cookie) => client.answer(cookie)));
    answers.forEach(({ data, error }, i) => {
      expect(error).toBe(0);
      const { command, offset, length } = requests[i] ?? { command: READ, offset: 0, length: 0 };
      if (command === READ) expectBytes(data, at(offset, length));
    });
    await client.disconnect();
  });

  it("check 44: a client that does not read costs bounded memory, and nobody else anything", async () => {
    await allGone();
    const growth = volume.startPeak();
    const slow = await open();
    const reads = Array.from({ length: 400 }, (_, i) => ({
      command: READ,
      offset: (i % 60) * MIB,
      length: MIB,
    }));
    const cookies = slow.send(...reads);
    const other = await open();
    for (let i = 0; i < 100; i++) expectBytes(await other.read(i * 4096, 4096), at(i * 4096, 4096));
    // The server takes no more of the slow one's requests once 64 MiB of answers wait for it.
    await expect
      .poll(async () => (await volume.status()).server?.clients.map(({ in_flight }) => in_flight), {
        timeout: 20_000,
      })
      .toSatisfy((counts: number[]) => Math.max(...counts) >= 60 && Math.max(...counts) <= 65);
    expect(growth()).toBeLessThan(96 * MIB);
    for (let i = 0; i < cookies.length; i++) {
      const { cookie, data } = await slow.next();
      expectBytes(data, at((cookies.indexOf(cookie) % 60) * MIB, MIB));
    }
    await Promise.all([slow.disconnect(), other.disconnect()]);
  });

  it("check 44: large reads of what is cached cost a client that does not read no memory", async () => {
    await allGone();
    const growth = volume.startPeak();
    const slow = await open({ structured: true });
    const start = (i: number) => (i % 60) * MIB + 4 * KIB;
    const cookies = slow.send(
      ...Array.from({ length: 400 }, (_, i) => ({ command: READ, offset: start(i), length: MIB })),
    );
    const other = await open();
    for (let i = 0; i < 100; i++) expectBytes(await other.read(i * 4096, 4096), at(i * 4096, 4096));
    // Their number is bounded; where they are copied, their memory.
    await expect
      .poll(async () => (await volume.status()).server?.clients.map(({ in_flight }) => in_flight), {
        timeout: 20_000,
      })
      .toSatisfy((counts: number[]) => Math.max(...counts) >= 60 && Math.max(...counts) <= 256);
    expect(growth()).toBeLessThan((knowsCached ? 16 : 96) * MIB);
    for (let i = 0; i < cookies.length; i++) {
      const { cookie, data } = await slow.next();
      expectBytes(data, at(start(cookies.indexOf(cookie)), MIB));
    }
    await Promise.all([slow.disconnect(), other.disconnect()]);
  });

  it("check 47: clients that vanish in the middle of replies leave nothing behind", async () => {
    await allGone();
    const before = volume.descriptors();
    for (let i = 0; i < 10; i++) {
      const client = await open({ structured: i % 2 === 0 });
      client.send({ command: WRITE, offset: 63 * MIB, data: at(63 * MIB, 100 * KIB) });
      const offset = i % 4 < 2 ? 0 : 4 * KIB;
      client.send(...Array.from({ length: 8 }, () => ({ command: READ, offset, length: 8 * MIB })));
      await client.take(1000);
      client.reset();
    }
    await allGone();
    expect(volume.descriptors()).toBeLessThanOrEqual(before);
    const client = await open();
    expectBytes(await client.read(62 * MIB, 2 * MIB), at(62 * MIB, 2 * MIB));
    await client.disconnect();
  });
});

it("check 51: of overlapping writes, each block holds one or the other", async () => {
  const clients = await Promise.all([volume.open(), volume.open({}, volume.tcp), volume.open()]);
  const start = 40 * MIB;
  const length = 256 * KIB;
  for (let round = 0; round < 8; round++) {
    // A snapshot makes the first write to each chunk wait for its copy.
    if (round % 3 === 1) await volume.snapshot(`overlap${round}`);
    const value = (client: number, request: number) => 1 + client * 16 + request;
    await Promise.all(
      clients.map(async (client, c) => {
        const cookies = client.send(
          ...Array.from({ length: 12 }, (_, r) => ({
            command: WRITE,
            offset: start + ((c * 5 + r * 3) % 8) * 4096,
            data: Buffer.alloc(length - 8 * 4096, value(c, r)),
          })),
        );
        for (const cookie of cookies) expect((await client.answer(cookie)).error).toBe(0);
      }),
    );
    const data = await (clients[0] as NbdClient).read(start, length);
    for (let block = 8; block < length / 4096 - 8; block++) {
      const bytes = data.subarray(block * 4096, (block + 1) * 4096);
      expectBytes(bytes, Buffer.alloc(4096, bytes[0]));
      expect(bytes[0]).toBeGreaterThan(0);
      expect(bytes[0]).toBeLessThan(16 * 3 + 1);
    }
  }
  await Promise.all(clients.map((client) => client.disconnect()));
});

it("check 54: a snapshot's bytes never change while the origin is written", async () => {
  const writer = await volume.open();
  const expected = await writer.read(32 * MIB, 16 * MIB);
  await volume.snapshot("still");
  const reader = await volume.open({ export: "vol@still", structured: true }, volume.tcp);
  const sha = (bytes: Buffer) => createHash("sha256").update(bytes).digest("hex");
  let writing = true;
  const writes = (async () => {
    for (let i = 0; i < 120; i++) {
      const offset = 32 * MIB + ((i * 104729) % (16 * MIB - 64 * KIB));
      const kind = [WRITE, WRITE, WRITE_ZEROES, TRIM][i % 4] ?? WRITE;
      const length = 512 + ((i * 7) % 60_000);
      if (kind === WRITE) await writer.write(offset, pattern(i, length));
      else await writer.must({ command: kind, offset, length });
    }
    writing = false;
  })();
  let hashes = 0;
  for (let last = false; !last; hashes++) {
    last = !writing;
    const parts = await Promise.all(
      Array.from({ length: 16 }, (_, i) => reader.read(32 * MIB + i * MIB, MIB)),
    );
    expect(sha(Buffer.concat(parts))).toBe(sha(expected));
  }
  await writes;
  expect(hashes).toBeGreaterThan(1);
  expect(sha(await writer.read(32 * MIB, 16 * MIB))).not.toBe(sha(expected));
});

describe("with syncs held back", () => {
  let gate: SyncGate;
  let slow: ServedVolume;

  async function start(): Promise<void> {
    const sandbox = new Sandbox();
    gate = await SyncGate.open(sandbox.directory);
    slow = await ServedVolume.start({ env: gate.env, size: "16M" }, sandbox);
    const client = await slow.open();
    await client.write(0, at(0, 16 * MIB));
    await slow.snapshot("first");
    await client.disconnect();
  }
  beforeAll(start);
  afterAll(async () => {
    gate?.close();
    await slow?.close();
  });

  it("check 50: nothing waits behind a first write that waits for its copy", async () => {
    const client = await slow.open({ structured: true });
    gate.hold(".store");
    // A whole chunk: a smaller write would be staged, and wait for nothing.
    const [parked] = client.send({ command: WRITE, offset: 0, data: pattern(50, 16 * KIB) });
    await gate.held();
    // Neither a client that comes now nor a look at the status waits for the store's sync.
    const other = await slow.open({ export: "vol@first" });
    expect((await slow.status()).failure).toBe(null);
    let done = false;
    const written = client.answer(parked as bigint).then((answer) => {
      done = true;
      return answer;
    });
    const cookies = client.send(
      ...Array.from({ length: 64 }, (_, i) => ({ command: READ, offset: i * 16 * KIB, length: 16 * KIB })),
    );
    for (const [i, cookie] of cookies.entries())
      expectBytes((await client.answer(cookie)).data, at(i * 16 * KIB, 16 * KIB));
    expectBytes(await other.read(0, MIB), at(0, MIB));
    const third = await slow.open({}, slow.tcp);
    await third.write(15 * MIB + 4096, Buffer.alloc(0));
    expectBytes(await third.read(5 * MIB, MIB), at(5 * MIB, MIB));
    await third.disconnect();
    expect(done).toBe(false);
    gate.release();
    expect((await written).error).toBe(0);
    expectBytes(await client.read(0, 16 * KIB), pattern(50, 16 * KIB));
    expectBytes(await other.read(0, MIB), at(0, MIB));
    await Promise.all([client.disconnect(), other.disconnect()]);
  });

  it("check 47: a write of a client that vanishes is finished", async () => {
    const client = await slow.open({}, slow.tcp);
    const other = await slow.open();
    gate.hold(".store");
    client.send({ command: WRITE, offset: MIB, data: pattern(51, 16 * KIB) });
    await gate.held();
    client.reset();
    expectBytes(await other.read(MIB, 4096), at(MIB, 4096));
    gate.release();
    await expect
      .poll(async () => (await slow.status()).server?.clients.length, { timeout: 20_000, interval: 20 })
      .toBe(1);
    expectBytes(await other.read(MIB, 16 * KIB), pattern(51, 16 * KIB));
    await other.disconnect();
  });

  it("checks 48 and 49: FLUSH and FUA are answered after a sync, a plain write before", async () => {
    const client = await slow.open();
    const other = await slow.open({}, slow.tcp);
    // Whole chunks are copied and written in place; what is staged needs no sync of the origin.
    await client.write(2 * MIB, pattern(52, 16 * KIB));
    for (const [asker, request] of [
      [other, { command: FLUSH }],
      [client, { command: WRITE, offset: 2 * MIB, data: pattern(53, 4096), flags: 1 }],
      [client, { command: WRITE_ZEROES, offset: 2 * MIB, length: 4096, flags: 1 }],
    ] as const) {
      await client.write(2 * MIB + 4096, pattern(54, 512));
      gate.hold(".img");
      let done = false;
      const answer = asker.call(request).then((got) => {
        done = true;
        return got;
      });
      expect(await gate.held()).toMatch(/vol\.img$/);
      await client.write(2 * MIB + 8192, pattern(55, 512));
      expect(done).toBe(false);
      gate.release();
      expect((await answer).error).toBe(0);
    }
    await Promise.all([client.disconnect(), other.disconnect()]);
  });

  it("check 55: SIGTERM finishes what is under way and answers no error", async () => {
    const clients = await Promise.all([slow.open(), slow.open({ structured: true }, slow.tcp)]);
    const idle = await slow.open();
    gate.hold(".store");
    const parked = clients.map((client, i) => ({
      client,
      cookies: client.send(
        { command: WRITE, offset: (4 + i) * MIB, data: pattern(60 + i, 64 * KIB) },
        { command: READ, offset: 8 * MIB, length: 4096 },
      ),
    }));
    for (const { client, cookies } of parked)
      expectBytes((await client.answer(cookies[1] as bigint)).data, at(8 * MIB, 4096));
    await gate.held();
    const stopped = slow.server.stop();
    // Its connection ends first: the drain is under way while the two writes still wait.
    expect(await idle.rest()).toHaveLength(0);
    gate.release();
    for (const { client, cookies } of parked) {
      expect((await client.answer(cookies[0] as bigint)).error).toBe(0);
      expect(await client.rest()).toHaveLength(0);
      expect(client.ended).toBe("end");
      client.destroy();
    }
    idle.destroy();
    expect(await stopped).toBe(0);
    await slow.restart();
    const again = await slow.open();
    expect((await slow.status()).found_clean).toBe(true);
    for (const i of [0, 1]) expectBytes(await again.read((4 + i) * MIB, 64 * KIB), pattern(60 + i, 64 * KIB));
    await again.disconnect();
  });

  it("check 55: requests that come while it drains are dropped with the connection, never refused", async () => {
    const client = await slow.open();
    let stopped: Promise<number | null> | undefined;
    const lost = (async () => {
      for (let i = 0; ; i++) {
        if (i === 20) stopped = slow.server.stop();
        const answer = await client.call({ command: READ, offset: (i % 16) * MIB, length: 128 * KIB });
        expect(answer.error).toBe(0);
      }
    })();
    await expect(lost).rejects.toBeInstanceOf(ConnectionLost);
    client.destroy();
    expect(await stopped).toBe(0);
    await slow.restart();
  });

  it("checks 48 and 49: what was acknowledged is there after kill -9", async () => {
    const writer = await slow.open();
    const flusher = await slow.open({}, slow.tcp);
    const expected = await writer.read(0, 16 * MIB);
    const write = async (offset: number, data: Buffer, flags = 0) => {
      await writer.write(offset, data, flags);
      data.copy(expected, offset);
    };
    for (let i = 0; i < 24; i++) await write(((i * 7) % 15) * MIB + i * 512, pattern(i + 70, 3000 + i * 100));
    await flusher.flush();
    await slow.snapshot("killed");
    const frozen = Buffer.from(expected);
    for (let i = 0; i < 24; i++) await write(((i * 5) % 15) * MIB + i * 700, pattern(i + 170, 5000), i % 2);
    await slow.server.kill();
    await expect(writer.read(0, 512)).rejects.toBeInstanceOf(ConnectionLost);
    await slow.restart();
    const origin = await slow.open({}, slow.tcp);
    const snapshot = await slow.open({ export: "vol@killed" });
    expectBytes(await origin.read(0, 16 * MIB), expected);
    expectBytes(await snapshot.read(0, 16 * MIB), frozen);
    await Promise.all([origin.disconnect(), snapshot.disconnect()]);
    expect(await slow.server.stop()).toBe(0);
    await slow.sandbox.must("check", "vol", "--data");
    await slow.restart();
  });
});
