/**
 * The real listener: raw bytes over real sockets, limits, and the hand-over of a connection to other hands. What
 * each option answers is proven in test/unit/handshake.test.ts; `check N` is the NBD conformance list's number.
 */
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import { lstatSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { afterEach, beforeAll, describe, expect, it } from "vitest";
import type { ListenerAddress } from "../../src/nbd/uri.js";
import { fixedDirectory } from "../support/exports.js";
import { loadFdTools } from "../support/fd-tools.js";
import { type Listener, NAMES, recorder, run, startListener } from "../support/listener.js";
import { ask, FLAGS, option, u16, u32, u64 } from "../support/nbd-wire.js";
import { RawClient } from "../support/raw-client.js";

let listener: Listener;
let native: ReturnType<typeof loadFdTools>;

beforeAll(() => {
  native = loadFdTools();
});
afterEach(async () => {
  await listener?.close();
});

const both = (): ListenerAddress[] => [listener.unix, listener.tcp];
const request = (type: number, cookie: bigint, length: number, magic = 0x25609513): Buffer =>
  Buffer.concat([u32(magic), u16(0), u16(type), u64(cookie), u64(0n), u32(length)]);

describe("raw bytes over unix and TCP", () => {
  it("check 1, 5, 6, 9, 12, 15, 16, 17: a conversation of refusals stays in sync", async () => {
    listener = await startListener();
    for (const address of both()) {
      const client = await RawClient.start(address);
      const talk = async (bytes: Buffer) => {
        client.send(bytes);
        return (await client.answer()).at(-1);
      };
      expect(await talk(option(77, Buffer.alloc(100)))).toBe("77 UNSUP");
      expect(await talk(option(3, Buffer.from("x")))).toBe("3 INVALID");
      expect(await talk(option(7, Buffer.concat([u32(99), Buffer.from("vol"), u16(0)])))).toBe("7 INVALID");
      expect(await talk(ask.info("nothing"))).toBe("6 UNKNOWN");
      expect(await talk(option(11))).toBe("11 UNSUP");
      expect(await talk(ask.setMeta("vol", "base:allocation"))).toBe("10 INVALID");
      expect(await talk(ask.list())).toBe("3 ACK");
      expect(await talk(ask.startTls())).toBe("5 POLICY");
      expect(await talk(ask.abort())).toBe("2 ACK");
      expect((await client.rest()).length).toBe(0);
      expect(client.ended).toBe("end");
    }
  });

  it.each([
    ["check 2: an unknown client flag", () => [u32(4)]],
    ["check 4: a bad option magic", () => [FLAGS, Buffer.alloc(16)]],
    ["check 7: an option of 4 GiB", () => [FLAGS, option(7, Buffer.alloc(0), 0xffffffff)]],
    ["check 13: EXPORT_NAME of an unknown export", () => [FLAGS, ask.exportName("nothing")]],
  ])("%s closes without an answer", async (_what, bytes) => {
    listener = await startListener();
    for (const address of both()) {
      const client = await RawClient.connect(address);
      await client.take(18);
      client.send(...bytes());
      expect((await client.rest()).length).toBe(0);
    }
    expect(listener.server.counters.handshakesFailed).toBe(2);
    expect(listener.server.unfinishedHandshakes).toBe(0);
  });

  it("check 8: 1 MiB of garbage behind GO, sent slowly and at once, is consumed", async () => {
    listener = await startListener();
    for (const address of both()) {
      const client = await RawClient.start(address);
      client.send(option(7, randomBytes(1024 * 1024)), ask.abort());
      expect(await client.answer()).toEqual(["7 TOO_BIG"]);
      expect(await client.answer()).toEqual(["2 ACK"]);
    }
  });

  it("check 18: 1000 options close after 64", async () => {
    listener = await startListener();
    const client = await RawClient.start(listener.unix);
    for (let count = 0; count < 64; count++) {
      client.send(ask.structuredReply());
      expect(await client.answer()).toEqual(["8 ACK"]);
    }
    client.send(ask.structuredReply());
    expect((await client.rest()).length).toBe(0);
  });

  it("a list far larger than the socket's buffer arrives whole, many times over", async () => {
    const names = Array.from({ length: 5000 }, (_, index) => `vol@snapshot-${index}`);
    listener = await startListener({ directory: fixedDirectory(names) });
    const client = await RawClient.start(listener.tcp);
    client.stream.pause();
    for (let round = 0; round < 10; round++) client.send(ask.list());
    client.stream.resume();
    for (let round = 0; round < 10; round++) expect((await client.answer()).length).toBe(5001);
    client.destroy();
  });
});

describe("limits and bad days", () => {
  it("check 45: a handshake that does not end is closed, whatever trickles in", async () => {
    listener = await startListener({ limits: { timeoutMs: 300 } });
    const silent = await RawClient.connect(listener.tcp);
    const half = await RawClient.start(listener.unix);
    half.send(ask.go("vol").subarray(0, 20));
    await Promise.all([silent.rest(), half.rest()]);
    expect(listener.log).toEqual([
      "127.0.0.1: closed, no handshake within 300 ms",
      "unix client: closed, no handshake within 300 ms",
    ]);
  });

  it("check 46: idle connects are bounded per address, and others are served meanwhile", async () => {
    listener = await startListener();
    const clients = await Promise.all(Array.from({ length: 300 }, () => RawClient.connect(listener.tcp)));
    // Those turned away end at once; the others are greeted.
    const greeted = await Promise.all(clients.map((client) => client.take(18).catch(() => undefined)));
    expect(greeted.filter((bytes) => bytes !== undefined).length).toBe(64);
    expect(listener.server.counters.turnedAway).toBe(236);
    const local = await RawClient.start(listener.unix);
    local.send(ask.list());
    expect((await local.answer()).at(-1)).toBe("3 ACK");
    for (const client of clients) client.destroy();
    local.destroy();
  });

  it("check 46: the bound over all holds on unix sockets too", async () => {
    listener = await startListener({ limits: { unfinishedMax: 10 } });
    const clients = await Promise.all(Array.from({ length: 30 }, () => RawClient.connect(listener.unix)));
    const greeted = await Promise.all(clients.map((client) => client.take(18).catch(() => undefined)));
    expect(greeted.filter((bytes) => bytes !== undefined).length).toBe(10);
    for (const client of clients) client.destroy();
  });

  it("check 47: clients that reset in every state do not disturb the server", async () => {
    listener = await startListener();
    const states = [[], [FLAGS], [FLAGS, ask.list()], [FLAGS, ask.go("vol").subarray(0, 18)], [u32(99)]];
    for (const state of [...states, ...states]) {
      const client = await RawClient.connect(listener.tcp);
      client.send(...state, Buffer.alloc(0));
      client.socket.resetAndDestroy();
    }
    const after = await RawClient.start(listener.tcp);
    after.send(ask.abort());
    expect(await after.answer()).toEqual(["2 ACK"]);
    await after.rest();
  });

  it("a client that closes its half behind its last option still gets the answer", async () => {
    listener = await startListener();
    const socket = connect({ path: listener.unix.path, allowHalfOpen: true });
    const client = new RawClient(socket);
    await client.take(18);
    client.send(FLAGS, ask.list());
    socket.end();
    expect((await client.answer()).at(-1)).toBe("3 ACK");
    await client.rest();
  });

  it("stopping ends unfinished handshakes and removes the socket's file", async () => {
    listener = await startListener();
    const client = await RawClient.start(listener.unix);
    client.send(ask.list());
    await client.answer();
    await listener.server.stopAccepting();
    await client.rest();
    expect(() => lstatSync(listener.unix.path)).toThrow("ENOENT");
    expect(listener.log).toEqual(["unix client: closed, the server is stopping"]);
  });
});

describe("listening", () => {
  const anotherOn = async (address: ListenerAddress) => {
    const { NbdServer } = await import("../../src/nbd/server.js");
    const server = new NbdServer({ directory: fixedDirectory(NAMES), startTransmission: () => {} });
    const uri = await server.listen(address);
    return { server, uri };
  };

  it("a unix socket has mode 0660", async () => {
    listener = await startListener();
    expect(lstatSync(listener.unix.path).mode & 0o777).toBe(0o660);
  });

  it("a stale socket is replaced, a served one and a plain file are not", async () => {
    listener = await startListener();
    const path = join(listener.directory, "stale.sock");
    const script = `require("net").createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, 9))`;
    await run(process.execPath, "-e", script);
    expect(lstatSync(path).isSocket()).toBe(true);
    const { server, uri } = await anotherOn({ transport: "unix", path });
    expect(uri).toBe(`nbd+unix:///?socket=${path}`);
    const client = await RawClient.start({ transport: "unix", path });
    client.destroy();
    await expect(anotherOn({ transport: "unix", path })).rejects.toThrow(
      `cannot listen on '${path}': another process listens there; stop the other server or choose another --socket PATH`,
    );
    await server.close();

    const file = join(listener.directory, "file");
    writeFileSync(file, "precious");
    await expect(anotherOn({ transport: "unix", path: file })).rejects.toThrow("it exists and is no socket");
    const missing = join(listener.directory, "missing", "nbd.sock");
    await expect(anotherOn({ transport: "unix", path: missing })).rejects.toThrow(
      "the directory does not exist",
    );
    const long = `/tmp/${"x".repeat(110)}`;
    await expect(anotherOn({ transport: "unix", path: long })).rejects.toThrow("at most 107 bytes");
  });

  it("a port that is taken is one clear line; IPv6 works", async () => {
    listener = await startListener();
    await expect(anotherOn(listener.tcp)).rejects.toThrow(
      `cannot listen on 127.0.0.1:${listener.tcp.port}: the address is in use; stop the other server or choose another address`,
    );
    const { server, uri } = await anotherOn({ transport: "tcp", host: "::1", port: 0 });
    expect(uri).toMatch(/^nbd:\/\/\[::1\]:[0-9]+\/$/);
    const client = await RawClient.start({ transport: "tcp", host: "::1", port: Number(new URL(uri).port) });
    client.send(ask.abort());
    expect(await client.answer()).toEqual(["2 ACK"]);
    await client.rest();
    await server.close();
  });
});

describe("hand-over to native transmission", () => {
  it("leaves the connection open: another process serves it after ours has closed its descriptor", async () => {
    listener = await startListener();
    for (const address of both()) {
      const client = await RawClient.start(address);
      client.send(ask.go("vol"));
      expect(await client.answer()).toEqual(["7 INFO", "7 ACK"]);
      for (let round = 0n; round < 3n; round++) {
        client.send(request(0, round, 5));
        const expected = Buffer.concat([u32(0x67446698), u32(0), u64(round), Buffer.alloc(5)]);
        expect(await client.take(21)).toEqual(expected);
      }
      expect(client.ended).toBeUndefined();
      client.send(request(2, 0n, 0));
      expect((await client.rest()).length).toBe(0);
    }
    expect(listener.server.counters.handedOver).toBe(2);
    expect(listener.server.unfinishedHandshakes).toBe(0);
  });

  it("hands over after EXPORT_NAME too, and requests sent along with GO are answered", async () => {
    listener = await startListener();
    for (const address of both()) {
      const old = await RawClient.start(address);
      old.send(ask.exportName("vol"), request(0, 77n, 3));
      const answer = await old.take(10 + 16 + 3);
      expect(answer.subarray(10)).toEqual(
        Buffer.concat([u32(0x67446698), u32(0), u64(77n), Buffer.alloc(3)]),
      );
      const client = await RawClient.start(address);
      client.send(ask.go("vol"), request(0, 1n, 0), request(0, 2n, 0), request(2, 3n, 0));
      await client.answer();
      const rest = await client.rest();
      expect(rest).toEqual(
        Buffer.concat([1n, 2n].flatMap((cookie) => [u32(0x67446698), u32(0), u64(cookie)])),
      );
      old.destroy();
    }
  });

  it("neither sends a FIN nor loses or repeats a byte, however much is sent behind GO", async () => {
    const { startTransmission, next } = recorder(native);
    listener = await startListener({ startTransmission });
    for (let round = 0; round < 60; round++) {
      const address = both()[round % 2] ?? listener.unix;
      const client = await RawClient.start(address);
      const stream = randomBytes(1 + Math.floor(2 ** (round / 3)));
      const early = Math.floor((stream.length * (round % 5)) / 4);
      client.send(ask.go("vol"), stream.subarray(0, early));
      await client.answer();
      client.send(stream.subarray(early));
      const { start, socket } = await next();
      const received: Buffer[] = [start.initialBytes];
      let bytes = start.initialBytes.length;
      socket.on("data", (chunk: Buffer) => {
        received.push(chunk);
        bytes += chunk.length;
      });
      while (bytes < stream.length) await once(socket, "data");
      expect(sha(Buffer.concat(received)), `round ${round}`).toBe(sha(stream));
      // Long after the hand-over the client has seen no end, and both directions work.
      socket.write("still here");
      expect((await client.take(10)).toString()).toBe("still here");
      expect(client.ended).toBeUndefined();
      socket.end();
      await client.rest();
      client.destroy();
    }
  });

  it("a transmission that cannot start closes the client and nothing else", async () => {
    listener = await startListener({
      startTransmission: () => {
        throw new Error("no memory");
      },
    });
    const client = await RawClient.start(listener.unix);
    client.send(ask.go("vol"));
    await client.answer();
    await client.rest();
    expect(listener.log).toEqual(["unix client: closed, transmission failed: no memory"]);
  });

  it("check 57: an admission decides late and may refuse; the client can go on", async () => {
    const { startTransmission, next } = recorder(native);
    let release = () => {};
    const decided = new Promise<void>((resolve) => {
      release = resolve;
    });
    let asked = 0;
    listener = await startListener({
      startTransmission,
      admit: async ({ info }) => {
        await decided;
        asked++;
        return asked === 1
          ? { refused: "POLICY", text: "held by another attachment" }
          : { ...info, readOnly: true };
      },
    });
    const client = await RawClient.start(listener.tcp);
    client.send(ask.go("vol"));
    release();
    expect(await client.answer()).toEqual(["7 POLICY"]);
    client.send(ask.go("vol"));
    expect(await client.answer()).toEqual(["7 INFO", "7 ACK"]);
    const { start, socket } = await next();
    expect(start.info.readOnly).toBe(true);
    expect(start.negotiated.transmissionFlags & 2).toBe(2);
    socket.destroy();
    client.destroy();
  });
});

describe("ordinary clients", () => {
  it("nbdinfo lists exports with description, sizes and contexts", async () => {
    listener = await startListener();
    for (const uri of [`nbd+unix:///?socket=${listener.unix.path}`, `nbd://127.0.0.1:${listener.tcp.port}`]) {
      const { stdout, stderr, status } = await run("nbdinfo", "--list", "--json", "--no-content", uri);
      expect(stderr).toBe("");
      expect(status).toBe(0);
      const { exports } = JSON.parse(stdout);
      expect(exports.map((found: Record<string, unknown>) => found["export-name"])).toEqual(NAMES);
      expect(exports[0]).toMatchObject({
        description: expect.stringMatching(/^csnap volume=.* durability=.* epoch=7$/),
        is_read_only: false,
        can_multi_conn: true,
        can_fua: true,
        can_df: true,
        block_size_minimum: 1,
        block_size_preferred: 16384,
        block_size_maximum: 33554432,
        contexts: ["base:allocation"],
        "export-size": 5368713216,
      });
      expect(exports[1]).toMatchObject({ is_read_only: true, can_flush: true, can_trim: false });
    }
  });

  it("nbdinfo reads through the hand-over, --map included", async () => {
    listener = await startListener();
    const uri = `nbd+unix:///vol@monday?socket=${listener.unix.path}`;
    const info = await run("nbdinfo", "--json", uri);
    expect(info.stderr).toBe("");
    expect(JSON.parse(info.stdout).exports[0]["export-name"]).toBe("vol@monday");
    const map = await run("nbdinfo", "--map", `nbd://127.0.0.1:${listener.tcp.port}/vol`);
    expect(map.stdout).toMatch(/hole,zero/);
  });

  it("qemu-nbd walks a list of a hundred exports", async () => {
    const names = Array.from({ length: 100 }, (_, index) => `vol@s${index}`);
    listener = await startListener({ directory: fixedDirectory(names) });
    const { stdout, status } = await run("qemu-nbd", "--list", "-k", listener.unix.path);
    expect(status).toBe(0);
    expect(stdout).toContain("exports available: 100");
    expect(stdout.match(/base:allocation/g)?.length).toBe(100);
  });

  it("nbd-client lists, qemu-img reads", async () => {
    listener = await startListener();
    const list = await run("nbd-client", "-l", "127.0.0.1", String(listener.tcp.port));
    expect(list.stdout).toContain("vol@tuesday");
    const uri = `nbd://127.0.0.1:${listener.tcp.port}/vol`;
    const image = await run("qemu-img", "info", "--output=json", "-f", "raw", uri);
    expect(JSON.parse(image.stdout)["virtual-size"]).toBe(5368713216);
  });

  it("socket activation: nbdinfo starts the server and finds it on descriptor 3", async () => {
    listener = await startListener();
    const script = new URL("../support/activated-server.mjs", import.meta.url).pathname;
    const { stdout, stderr } = await run(
      "nbdinfo",
      "--list",
      "--no-content",
      "--json",
      "[",
      process.execPath,
      script,
      "]",
    );
    expect(stderr).toMatch(/^ready nbd\+unix:\/\/\/\?socket=\/tmp\/.*\na child has descriptor 3: no\n$/);
    expect(JSON.parse(stdout).exports.length).toBe(3);
  });
});

function sha(bytes: Buffer): string {
  return createHash("sha256").update(bytes).digest("hex");
}
