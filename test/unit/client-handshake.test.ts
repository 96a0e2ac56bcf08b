/** The client's half of the handshake alone: what it sends, what it believes, what it refuses. */
import { describe, expect, it } from "vitest";
import { type ClientAction, ClientHandshake } from "../../src/nbd/client-handshake.js";
import { GREETING, infoData, option, u16, u32, u64 } from "../support/nbd-wire.js";
import { seededRandom, testSeed } from "../support/random.js";

const GO = 7;
const ACK = 1;
const INFO = 3;
const SIZE = 12_345_678_848n;

function reply(type: number, payload: Buffer = Buffer.alloc(0), length = payload.length, opt = GO): Buffer {
  return Buffer.concat([u64(0x0003e889045565a9n), u32(opt), u32(type), u32(length), payload]);
}

const exportInfo = reply(INFO, Buffer.concat([u16(0), u64(SIZE), u16(0x16d)]));
const blockSize = reply(INFO, Buffer.concat([u16(3), u32(1), u32(4096), u32(1 << 20)]));
const description = reply(INFO, Buffer.concat([u16(2), Buffer.from("csnap volume=u durability=d epoch=7")]));
const whole = Buffer.concat([GREETING, exportInfo, blockSize, description, reply(ACK)]);

/** All actions, and what was sent; a server answers only after it was asked. */
function run(bytes: Buffer, step = bytes.length): { actions: ClientAction[]; sent: Buffer } {
  const machine = new ClientHandshake("go", "disk1");
  const actions: ClientAction[] = [];
  const pieces = [bytes.subarray(0, GREETING.length), bytes.subarray(GREETING.length)];
  for (const piece of pieces) {
    for (let at = 0; at < piece.length; at += step)
      actions.push(...machine.receive(piece.subarray(at, at + step)));
  }
  const sent = actions.flatMap((action) => (action.kind === "send" ? [action.bytes] : []));
  return { actions: actions.filter(({ kind }) => kind !== "send"), sent: Buffer.concat(sent) };
}

describe("the client's handshake", () => {
  it("asks for the export, its block sizes and description, and for nothing else", () => {
    expect(run(whole).sent).toEqual(Buffer.concat([u32(3), option(GO, infoData("disk1", 3, 2))]));
  });

  it("takes no flag that the server does not offer", () => {
    const greeting = Buffer.concat([Buffer.from("NBDMAGICIHAVEOPT"), u16(1)]);
    expect(run(Buffer.concat([greeting, whole.subarray(18)])).sent.readUInt32BE(0)).toBe(1);
  });

  it.each([1, 2, 3, 7, 19, 1000])("agrees on the same, in pieces of %d bytes", (step) => {
    expect(run(whole, step).actions).toEqual([
      {
        kind: "agreed",
        offer: {
          sizeBytes: Number(SIZE),
          transmissionFlags: 0x16d,
          description: "csnap volume=u durability=d epoch=7",
          minBlockBytes: 1,
          maxPayloadBytes: 1 << 20,
        },
      },
    ]);
  });

  it("passes on what the server refuses, in its words", () => {
    const refusal = Buffer.concat([GREETING, reply(0x80000002, Buffer.from("held by another"))]);
    expect(run(refusal).actions).toEqual([{ kind: "refused", error: "POLICY", text: "held by another" }]);
    const unknown = Buffer.concat([GREETING, reply(0x800000ff)]);
    expect(run(unknown).actions).toEqual([{ kind: "refused", error: "UNKNOWN_ERROR", text: "" }]);
  });

  it.each([
    ["no NBD server", Buffer.from("HTTP/1.1 400 Bad R")],
    ["oldstyle", Buffer.concat([Buffer.from("NBDMAGIC"), u64(0x00420281861253n), u16(0)])],
    ["no fixed newstyle", Buffer.concat([Buffer.from("NBDMAGICIHAVEOPT"), u16(2)])],
    ["a wrong reply magic", Buffer.concat([GREETING, Buffer.alloc(20)])],
    ["a reply to another option", Buffer.concat([GREETING, reply(ACK, Buffer.alloc(0), 0, 6)])],
    ["a reply of 4 GiB", Buffer.concat([GREETING, reply(INFO, Buffer.alloc(0), 0xffffffff)])],
    ["an ACK without a size", Buffer.concat([GREETING, reply(ACK)])],
    [
      "a size beyond 2^53",
      Buffer.concat([GREETING, reply(INFO, Buffer.concat([u16(0), u64(1n << 53n), u16(1)]))]),
    ],
    ["a short description of the export", Buffer.concat([GREETING, reply(INFO, u16(0)), reply(ACK)])],
    [
      "block sizes of another length",
      Buffer.concat([GREETING, reply(INFO, Buffer.concat([u16(3), u32(1)]))]),
    ],
    ["a reply of an unknown kind", Buffer.concat([GREETING, reply(99)])],
    ["replies before the first request", Buffer.concat([whole, Buffer.alloc(1)])],
  ])("refuses %s", (_what, bytes) => {
    const { actions } = run(bytes);
    expect(actions).toHaveLength(1);
    expect(actions[0]?.kind).toBe("broken");
  });

  it("ends in one verdict whatever bytes come, however they are cut", () => {
    const seed = testSeed(0xc11e);
    const random = seededRandom(seed);
    const below = (bound: number) => Math.floor(random() * bound);
    for (let round = 0; round < 20_000; round++) {
      const bytes = Buffer.from(whole);
      for (let changes = below(4); changes > 0; changes--) bytes[below(bytes.length)] = below(256);
      const cut = bytes.subarray(0, 18 + below(bytes.length - 17));
      const { actions } = run(cut, 1 + below(40));
      expect(actions.length, `CSNAP_SEED=${seed}, round ${round}`).toBeLessThanOrEqual(1);
    }
  });
});
