/**
 * The handshake machine alone: every option, every error, every limit, and the same bytes cut everywhere.
 * `check N` names the check of the NBD conformance list.
 */
import { describe, expect, it } from "vitest";
import { baseAllocation, type MetaContextProvider } from "../../src/nbd/contexts.js";
import type { ClientInfo, ExportDirectory, Identity, Refusal } from "../../src/nbd/exports.js";
import { type Action, type Admitted, Handshake, type TlsMode } from "../../src/nbd/handshake.js";
import { DESCRIPTION, exportNamed, fixedDirectory, SIZE_BYTES } from "../support/exports.js";
import {
  ask,
  decodeInfo,
  FLAGS,
  GREETING,
  infoData,
  metaData,
  option,
  readReplies,
  string32,
  u16,
  u32,
  u64,
} from "../support/nbd-wire.js";

const LOCAL: ClientInfo = { transport: "unix", address: "", local: true, tls: false };
const NAMES = ["vol", "vol@monday", "vol@tuesday"];
const RW_FLAGS = 0b1101_0110_1101; // all but READ_ONLY, ROTATIONAL, DF, RESIZE
const RO_FLAGS = 0b0101_0000_1111;
const DF = 1 << 7;

const changedSince: MetaContextProvider = {
  namespace: "x-csnap",
  list: () => ["x-csnap:changed-since:monday", "x-csnap:changed-since:tuesday"],
  has: (_info, leaf) => ["changed-since:monday", "changed-since:tuesday"].includes(leaf),
};

interface Setup {
  directory?: ExportDirectory;
  tlsMode?: TlsMode;
  metaContexts?: readonly MetaContextProvider[];
  /** Answer of the admit hook; default: admits. */
  admit?: Refusal;
  identity?: Identity;
  /** Whether STARTTLS is carried through. */
  tls?: boolean;
}

interface Outcome {
  output: Buffer;
  replies: ReturnType<typeof readReplies>;
  closed: string | undefined;
  admitted: Admitted | undefined;
  /** Where the machine asked for what. */
  stops: string[];
}

/** Feeds a machine in pieces of `step` bytes and performs what it asks for. */
function converse(pieces: readonly Buffer[], setup: Setup = {}, step = Number.POSITIVE_INFINITY): Outcome {
  const machine = new Handshake({
    directory: setup.directory ?? fixedDirectory(NAMES),
    client: LOCAL,
    tlsMode: setup.tlsMode ?? "none",
    metaContexts: setup.metaContexts ?? [baseAllocation],
  });
  const output: Buffer[] = [];
  const stops: string[] = [];
  let closed: string | undefined;
  let admitted: Admitted | undefined;
  const perform = (actions: Action[]): void => {
    for (const [index, action] of actions.entries()) {
      if (action.kind === "send") output.push(action.bytes);
      else {
        expect(index).toBe(actions.length - 1);
        if (action.kind !== "drain") stops.push(action.kind);
      }
      if (action.kind === "close") closed = action.reason;
      if (action.kind === "drain") perform(machine.drained());
      if (action.kind === "startTls" && setup.tls !== false) perform(machine.tlsEstablished(setup.identity));
      if (action.kind === "admit") {
        if (setup.admit !== undefined) perform(machine.refused(setup.admit));
        else {
          admitted = machine.admitted(action.admission.info);
          output.push(admitted.reply);
        }
      }
    }
  };
  perform(machine.start());
  for (const piece of pieces) {
    for (let at = 0; at < piece.length; at += step) {
      if (admitted === undefined) perform(machine.receive(piece.subarray(at, at + step)));
    }
  }
  const bytes = Buffer.concat(output);
  expect(bytes.subarray(0, GREETING.length)).toEqual(GREETING);
  const sent = bytes.subarray(GREETING.length);
  // EXPORT_NAME is answered without a reply header; its tests look at `output`.
  const bare = admitted !== undefined && !admitted.reply.subarray(0, 8).equals(u64(0x3e889045565a9n));
  const replies = readReplies(bare ? sent.subarray(0, sent.length - (admitted?.reply.length ?? 0)) : sent);
  return { output: sent, replies, closed, admitted, stops };
}

function types(outcome: Outcome): string[] {
  return outcome.replies.map((reply) => `${reply.option} ${reply.type}`);
}

function talk(...pieces: Buffer[]): Outcome {
  return converse([FLAGS, ...pieces]);
}

describe("greeting and client flags", () => {
  it("check 1: greets with NBDMAGIC IHAVEOPT and flags 3", () => {
    const outcome = converse([]);
    expect(outcome.closed).toBeUndefined();
    expect(GREETING.toString("hex")).toBe("4e42444d4147494349484156454f50540003");
  });

  it.each([4, 7, 0x80000003, 0xffffffff])("check 2: closes on unknown client flags %d", (flags) => {
    const outcome = converse([u32(flags), ask.list()]);
    expect(outcome.closed).toBe("unknown client flags");
    expect(outcome.output.length).toBe(0);
  });

  it("check 3: without FIXED_NEWSTYLE only EXPORT_NAME and ABORT are served", () => {
    expect(types(converse([u32(0), ask.list(), ask.go("vol"), ask.abort()]))).toEqual([
      "3 INVALID",
      "7 INVALID",
      "2 ACK",
    ]);
    expect(converse([u32(0), ask.exportName("vol")]).admitted).toBeDefined();
  });
});

describe("framing and limits", () => {
  it("check 4: closes on a bad option magic", () => {
    const outcome = talk(Buffer.concat([Buffer.from("IHAVEOPX"), u32(3), u32(0)]));
    expect(outcome.closed).toBe("bad option magic");
    expect(outcome.output.length).toBe(0);
  });

  it("check 5: an unknown option with data is UNSUP and the next option works", () => {
    const outcome = talk(option(77, Buffer.alloc(300, 0xee)), ask.list());
    expect(types(outcome)).toEqual(["77 UNSUP", "3 SERVER", "3 SERVER", "3 SERVER", "3 ACK"]);
  });

  it("check 5: PEEK_EXPORT is UNSUP", () => {
    expect(types(talk(option(4, Buffer.from("vol")), ask.list())).slice(0, 2)).toEqual([
      "4 UNSUP",
      "3 SERVER",
    ]);
  });

  it.each([0xffffffff, 1024 * 1024 + 1])("check 7: option length %d closes at once", (length) => {
    for (const number of [1, 2, 3, 5, 7, 77]) {
      const outcome = talk(option(number, Buffer.alloc(0), length));
      expect(outcome.closed).toBe(`option ${number} announces ${length} bytes of data`);
      expect(outcome.output.length).toBe(0);
    }
  });

  it("check 8: 1 MiB of garbage behind GO is consumed and refused, and the next option works", () => {
    const outcome = talk(option(7, Buffer.alloc(1024 * 1024, 0xa5)), ask.abort());
    expect(types(outcome)).toEqual(["7 TOO_BIG", "2 ACK"]);
  });

  it("check 8: every option is refused by its own error when its data is far too long", () => {
    const long = Buffer.alloc(64 * 1024 + 1);
    const numbers = [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0, 99];
    const seen = numbers.map((number) => types(talk(option(number, long)))[0]);
    expect(seen).toEqual([
      "2 ACK",
      "3 TOO_BIG",
      "4 UNSUP",
      "5 TOO_BIG",
      "6 TOO_BIG",
      "7 TOO_BIG",
      "8 TOO_BIG",
      "9 TOO_BIG",
      "10 TOO_BIG",
      "11 UNSUP",
      "0 UNSUP",
      "99 UNSUP",
    ]);
    expect(talk(option(1, long)).closed).toBe("the export name is too long");
  });

  it("check 18: the 65th option closes", () => {
    const outcome = talk(...Array.from({ length: 1000 }, () => ask.structuredReply()));
    expect(outcome.replies.length).toBe(64);
    expect(outcome.closed).toBe("more than 64 options");
  });

  it("check 18: a client that walks a long list may ask for each export listed", () => {
    const names = Array.from({ length: 300 }, (_, index) => `vol@s${index}`);
    const walk = names.flatMap((name) => [ask.info(name), ask.listMeta(name), ask.listMeta(name, "qemu:")]);
    const outcome = converse([FLAGS, ask.list(), ...walk, ask.abort()], { directory: fixedDirectory(names) });
    expect(outcome.closed).toBe("the client aborted");
    expect(outcome.replies.filter((reply) => reply.type === "ACK").length).toBe(1 + 900 + 1);
    const flood = converse([FLAGS, ask.list(), ...Array.from({ length: 5000 }, () => ask.list())], {
      directory: fixedDirectory(names),
    });
    expect(flood.closed).toBe("more than 1264 options");
  });

  it("waits for its replies to leave before it produces more than 256 KiB and one option", () => {
    const names = Array.from({ length: 1000 }, (_, index) => `vol@${"x".repeat(100)}${index}`);
    const machine = new Handshake({
      directory: fixedDirectory(names),
      client: LOCAL,
      tlsMode: "none",
      metaContexts: [],
    });
    machine.start();
    const sentBytes = (actions: Action[]) =>
      actions.reduce((sum, action) => sum + (action.kind === "send" ? action.bytes.length : 0), 0);
    const one = sentBytes(machine.receive(Buffer.concat([FLAGS, ask.list()])));
    let actions = machine.receive(Buffer.concat(Array.from({ length: 50 }, () => ask.list())));
    let rounds = 0;
    for (; actions.at(-1)?.kind === "drain"; actions = machine.drained()) {
      expect(sentBytes(actions)).toBeLessThan(256 * 1024 + one);
      expect(machine.receive(ask.list())).toEqual([]);
      rounds++;
    }
    expect(rounds).toBeGreaterThan(10);
  });
});

describe("LIST and ABORT", () => {
  it("lists names with their descriptions", () => {
    const outcome = talk(ask.list());
    expect(types(outcome)).toEqual(["3 SERVER", "3 SERVER", "3 SERVER", "3 ACK"]);
    expect(outcome.replies[1]?.payload).toEqual(
      Buffer.concat([string32("vol@monday"), Buffer.from(DESCRIPTION)]),
    );
    expect(DESCRIPTION).toBe(
      "csnap volume=6f1c4d8e-0d2b-4a55-9a3e-3f6d0f2b7a11 durability=1f00aa5577cc3311 epoch=7",
    );
  });

  it("check 6: LIST with data is INVALID", () => {
    expect(types(talk(option(3, Buffer.from("x")), ask.abort()))).toEqual(["3 INVALID", "2 ACK"]);
  });

  it("check 17: ABORT is acknowledged and closes; its data and what follows are ignored", () => {
    const outcome = talk(option(2, Buffer.from("whatever")), ask.list());
    expect(types(outcome)).toEqual(["2 ACK"]);
    expect(outcome.closed).toBe("the client aborted");
  });
});

describe("INFO and GO", () => {
  it("answers EXPORT always and the others where asked for, once", () => {
    const infos = (outcome: Outcome) =>
      outcome.replies.filter((reply) => reply.type === "INFO").map((reply) => decodeInfo(reply.payload));
    expect(infos(talk(ask.info("vol")))).toEqual([{ size: BigInt(SIZE_BYTES), flags: RW_FLAGS }]);
    expect(infos(talk(ask.info("vol", 3, 2, 1, 0, 3, 99)))).toEqual([
      { size: BigInt(SIZE_BYTES), flags: RW_FLAGS },
      { blocks: [1, 16384, 33554432] },
      { description: DESCRIPTION },
      { name: "vol" },
    ]);
  });

  it("INFO then GO give the same answers; GO hands over what was negotiated", () => {
    const outcome = talk(ask.structuredReply(), ask.info("vol", 1, 2, 3), ask.go("vol", 1, 2, 3));
    const go = outcome.replies.filter((reply) => reply.option === 7);
    const info = outcome.replies.filter((reply) => reply.option === 6);
    expect(go.map(({ type, payload }) => ({ type, payload }))).toEqual(
      info.map(({ type, payload }) => ({ type, payload })),
    );
    expect(outcome.admitted?.negotiated).toEqual({
      structuredReplies: true,
      transmissionFlags: RW_FLAGS | DF,
      metaContexts: [],
    });
  });

  it("a snapshot is read-only, offers FLUSH, FUA and MULTI_CONN, and DF only with structured replies", () => {
    expect(talk(ask.go("vol@monday")).admitted?.negotiated.transmissionFlags).toBe(RO_FLAGS);
    expect(talk(ask.structuredReply(), ask.go("vol@monday")).admitted?.negotiated.transmissionFlags).toBe(
      RO_FLAGS | DF,
    );
  });

  it("the empty name is the origin", () => {
    const outcome = talk(ask.info("", 1));
    expect(decodeInfo(outcome.replies[1]?.payload ?? Buffer.alloc(0))).toEqual({ name: "vol" });
  });

  it("hands over what the client sent behind GO", () => {
    const outcome = talk(Buffer.concat([ask.go("vol"), Buffer.from("request bytes")]));
    expect(outcome.admitted?.initialBytes.toString()).toBe("request bytes");
    expect(types(outcome)).toEqual(["7 INFO", "7 ACK"]);
  });

  it.each([4096, 16384, 65536, 1048576])("preferred block size for chunks of %d", (chunkBytes) => {
    const directory = { list: () => [], resolve: () => exportNamed("vol", chunkBytes) };
    const outcome = converse([FLAGS, ask.info("vol", 3)], { directory });
    expect(decodeInfo(outcome.replies[1]?.payload ?? Buffer.alloc(0))).toEqual({
      blocks: [1, Math.min(chunkBytes, 65536), 33554432],
    });
  });

  it("check 9: a name longer than the data is INVALID, in sync", () => {
    const data = Buffer.concat([u32(1000), Buffer.from("vol"), u16(0)]);
    expect(types(talk(option(7, data), ask.abort()))).toEqual(["7 INVALID", "2 ACK"]);
    expect(types(talk(option(6, Buffer.alloc(5)), ask.abort()))).toEqual(["6 INVALID", "2 ACK"]);
    expect(types(talk(option(7, Buffer.concat([u32(0xffffffff), u16(0)])), ask.abort()))).toEqual([
      "7 INVALID",
      "2 ACK",
    ]);
  });

  it("check 10: trailing junk behind GO's data is INVALID", () => {
    const junk = Buffer.concat([infoData("vol", 3), Buffer.from("junk")]);
    expect(types(talk(option(7, junk), ask.abort()))).toEqual(["7 INVALID", "2 ACK"]);
    const short = Buffer.concat([string32("vol"), u16(2), u16(3)]);
    expect(types(talk(option(7, short), ask.abort()))).toEqual(["7 INVALID", "2 ACK"]);
  });

  it("check 11: a name of 5000 bytes is TOO_BIG, one of 4096 only unknown", () => {
    expect(types(talk(ask.go("n".repeat(5000)), ask.abort()))).toEqual(["7 TOO_BIG", "2 ACK"]);
    const unknown = talk(ask.go("n".repeat(4096)), ask.abort());
    expect(types(unknown)).toEqual(["7 UNKNOWN", "2 ACK"]);
    expect(unknown.replies[0]?.payload.length).toBeLessThan(4096);
    expect(talk(ask.exportName("n".repeat(5000))).closed).toBe("the export name is longer than 4096 bytes");
  });

  it("a name with NUL or broken UTF-8 is INVALID", () => {
    expect(types(talk(ask.info("vo\0l"), option(6, infoData(Buffer.from([0xff, 0xfe])))))).toEqual([
      "6 INVALID",
      "6 INVALID",
    ]);
  });

  it("check 12: an unknown export is UNKNOWN", () => {
    const outcome = talk(ask.info("nothing"), ask.go("nothing"), ask.abort());
    expect(types(outcome)).toEqual(["6 UNKNOWN", "7 UNKNOWN", "2 ACK"]);
    expect(outcome.replies[0]?.payload.toString()).toBe("no export named 'nothing'");
  });

  it("an admission that is refused leaves the client free to go on", () => {
    const admit: Refusal = { refused: "SHUTDOWN", text: "the server is stopping" };
    const outcome = converse([FLAGS, Buffer.concat([ask.go("vol"), ask.info("vol"), ask.abort()])], {
      admit,
    });
    expect(types(outcome)).toEqual(["7 SHUTDOWN", "6 INFO", "6 ACK", "2 ACK"]);
    expect(converse([FLAGS, ask.exportName("vol")], { admit }).closed).toBe("the server is stopping");
  });

  it("a directory may refuse with any error", () => {
    const errors = ["POLICY", "PLATFORM", "UNKNOWN", "SHUTDOWN", "BLOCK_SIZE_REQD"] as const;
    for (const refused of errors) {
      const directory = { list: () => [], resolve: () => ({ refused, text: "because" }) };
      expect(types(converse([FLAGS, ask.go("vol")], { directory }))).toEqual([`7 ${refused}`]);
    }
  });
});

describe("attachments", () => {
  const UUID = "0b8f7c1e-53a1-4d4e-9c55-0a2f6f1f8d33";

  it("names and attempts reach the directory apart", () => {
    const seen: unknown[] = [];
    const directory: ExportDirectory = {
      list: () => [],
      resolve: ({ name, attachment, purpose }) => {
        seen.push({ name, attachment, purpose });
        return exportNamed("vol");
      },
    };
    converse([FLAGS, ask.info(`vol?attachment=${UUID}.12`), ask.go(`?attachment=${UUID}.13&ro`)], {
      directory,
    });
    expect(seen).toEqual([
      {
        name: "vol",
        attachment: { uuid: UUID, attempt: 12, readOnly: false, isHeld: false },
        purpose: "look",
      },
      { name: "", attachment: { uuid: UUID, attempt: 13, readOnly: true, isHeld: false }, purpose: "use" },
    ]);
  });

  it("a directory's refusal of an old attempt is passed on", () => {
    expect(types(talk(ask.go(`vol?attachment=${UUID}.2`)))).toEqual(["7 POLICY"]);
    expect(talk(ask.go(`vol?attachment=${UUID}.3`)).admitted).toBeDefined();
  });

  it.each([
    "vol?",
    "vol?attachment=",
    `vol?attachment=${UUID}`,
    `vol?attachment=${UUID}.`,
    `vol?attachment=${UUID}.-1`,
    `vol?attachment=${UUID}.01`,
    `vol?attachment=${UUID}.9999999999999999`,
    `vol?attachment=${UUID.toUpperCase()}.1`,
    `vol?other=${UUID}.1`,
    `vol?attachment=${UUID}.1?`,
    `vol?attachment=${UUID}.1&rw`,
    `vol?attachment=${UUID}.1&ro&ro`,
    `vol?attachment=${UUID}&ro`,
  ])("refuses %s as INVALID", (name) => {
    expect(types(talk(ask.info(name)))).toEqual(["6 INVALID"]);
  });
});

describe("EXPORT_NAME", () => {
  it("answers size and flags, with 124 zeros unless NO_ZEROES was agreed", () => {
    const head = Buffer.concat([u64(BigInt(SIZE_BYTES)), u16(RW_FLAGS)]);
    expect(talk(ask.exportName("vol")).output).toEqual(head);
    const padded = converse([u32(1), ask.exportName("")]);
    expect(padded.output).toEqual(Buffer.concat([head, Buffer.alloc(124)]));
    expect(padded.admitted).toBeDefined();
  });

  it("check 13: an unknown export closes without an answer", () => {
    const outcome = talk(ask.exportName("nothing"), ask.list());
    expect(outcome.output.length).toBe(0);
    expect(outcome.closed).toBe("no export named 'nothing'");
  });
});

describe("structured replies and extended headers", () => {
  it("check 15: EXTENDED_HEADERS is UNSUP", () => {
    expect(types(talk(option(11), ask.structuredReply()))).toEqual(["11 UNSUP", "8 ACK"]);
  });

  it("STRUCTURED_REPLY with data is INVALID and negotiates nothing", () => {
    const outcome = talk(option(8, Buffer.from("x")), ask.go("vol"));
    expect(types(outcome).slice(0, 1)).toEqual(["8 INVALID"]);
    expect(outcome.admitted?.negotiated.structuredReplies).toBe(false);
  });
});

describe("meta contexts", () => {
  const contexts = (outcome: Outcome) =>
    outcome.replies
      .filter((reply) => reply.type === "META_CONTEXT")
      .map((reply) => [reply.payload.readUInt32BE(0), reply.payload.toString("utf8", 4)]);
  const setup: Setup = { metaContexts: [baseAllocation, changedSince] };

  it("LIST: everything without a query, wildcards by namespace, exact names, nothing twice", () => {
    const list = (...queries: string[]) =>
      contexts(converse([FLAGS, ask.listMeta("vol", ...queries)], setup));
    const all = ["base:allocation", "x-csnap:changed-since:monday", "x-csnap:changed-since:tuesday"];
    expect(list()).toEqual(all.map((name) => [0, name]));
    expect(list("base:", "base:allocation", "base:")).toEqual([[0, "base:allocation"]]);
    expect(list("x-csnap:changed-since:tuesday")).toEqual([[0, "x-csnap:changed-since:tuesday"]]);
    expect(list("qemu:", "qemu:dirty-bitmap:x", "nocolon", "", "base:other")).toEqual([]);
  });

  it("SET: exact names with unique ids, in effect at GO", () => {
    const set = ask.setMeta("vol", "x-csnap:changed-since:monday", "base:allocation", "qemu:x");
    const outcome = converse([FLAGS, ask.structuredReply(), set, ask.go("vol")], setup);
    expect(contexts(outcome)).toEqual([
      [1, "x-csnap:changed-since:monday"],
      [2, "base:allocation"],
    ]);
    expect(outcome.admitted?.negotiated.metaContexts).toEqual([
      { id: 1, name: "x-csnap:changed-since:monday" },
      { id: 2, name: "base:allocation" },
    ]);
  });

  it("SET: `base:` is a wildcard for LIST only", () => {
    const outcome = converse([FLAGS, ask.structuredReply(), ask.setMeta("vol", "base:")], setup);
    expect(types(outcome)).toEqual(["8 ACK", "10 ACK"]);
  });

  it("check 16: SET before STRUCTURED_REPLY is INVALID", () => {
    expect(types(talk(ask.setMeta("vol", "base:allocation"), ask.abort()))).toEqual(["10 INVALID", "2 ACK"]);
  });

  it.each([
    ["a later SET", ask.setMeta("vol")],
    ["a SET that fails", ask.setMeta("nothing", "base:allocation")],
    ["a malformed SET", option(10, Buffer.from("junk"))],
    ["an oversized SET", option(10, Buffer.alloc(70000))],
  ])("%s replaces what was set before", (_what, second) => {
    const outcome = talk(ask.structuredReply(), ask.setMeta("vol", "base:allocation"), second, ask.go("vol"));
    expect(outcome.admitted?.negotiated.metaContexts).toEqual([]);
  });

  it("contexts set for one export do not reach another", () => {
    const outcome = talk(ask.structuredReply(), ask.setMeta("vol", "base:allocation"), ask.go("vol@monday"));
    expect(outcome.admitted?.negotiated.metaContexts).toEqual([]);
  });

  it("malformed and unknown", () => {
    const broken = [
      Buffer.from("junk"),
      Buffer.concat([metaData("vol", "base:allocation"), Buffer.from([0])]),
      Buffer.concat([string32("vol"), u32(0xffffffff)]),
      Buffer.concat([string32("vol"), u32(1), u32(0xffffffff)]),
      Buffer.concat([u32(0xffffffff), u32(0)]),
      metaData("vol", "base:\0"),
    ];
    for (const number of [9, 10]) {
      const seen = types(
        talk(ask.structuredReply(), ...broken.map((data) => option(number, data)), ask.abort()),
      );
      expect(seen.slice(1)).toEqual([...broken.map(() => `${number} INVALID`), "2 ACK"]);
    }
    expect(types(talk(ask.listMeta("nothing")))).toEqual(["9 UNKNOWN"]);
    expect(types(talk(ask.listMeta("vol", "q".repeat(4097))))).toEqual(["9 TOO_BIG"]);
  });
});

describe("STARTTLS", () => {
  const tlsOnly: Setup = { directory: fixedDirectory(NAMES, ["vol@tuesday"]) };

  it("check 14: without TLS it is POLICY, and TLS_REQD is never sent", () => {
    const outcome = converse([FLAGS, ask.startTls(), ask.go("vol@tuesday"), ask.abort()], tlsOnly);
    expect(types(outcome)).toEqual(["5 POLICY", "7 POLICY", "2 ACK"]);
  });

  it("required: everything else is TLS_REQD before it, EXPORT_NAME closes", () => {
    const setup: Setup = { tlsMode: "require" };
    const before = [
      ask.list(),
      ask.info("vol"),
      ask.go("vol"),
      ask.structuredReply(),
      option(99),
      option(11),
    ];
    const late = [option(3, Buffer.alloc(70000)), ask.setMeta("vol"), ask.listMeta("vol"), option(7)];
    const seen = types(converse([FLAGS, ...before, ...late, ask.abort()], setup));
    expect(seen.slice(0, -1).every((type) => type.endsWith(" TLS_REQD"))).toBe(true);
    expect(seen.length).toBe(11);
    expect(seen.at(-1)).toBe("2 ACK");
    expect(converse([FLAGS, ask.exportName("vol")], setup)).toMatchObject({
      closed: "EXPORT_NAME without TLS",
    });
    const after = converse([FLAGS, ask.startTls(), ask.go("vol")], setup);
    expect(types(after)).toEqual(["5 ACK", "7 INFO", "7 ACK"]);
  });

  it("allowed: TLS_REQD only for exports that need it, and they are not listed", () => {
    const setup: Setup = { ...tlsOnly, tlsMode: "allow" };
    const plain = converse([FLAGS, ask.list(), ask.go("vol@tuesday"), ask.go("vol")], setup);
    expect(types(plain)).toEqual(["3 SERVER", "3 SERVER", "3 ACK", "7 TLS_REQD", "7 INFO", "7 ACK"]);
    const secure = converse([FLAGS, ask.startTls(), ask.list(), ask.go("vol@tuesday")], setup);
    expect(types(secure)).toEqual(["5 ACK", "3 SERVER", "3 SERVER", "3 SERVER", "3 ACK", "7 INFO", "7 ACK"]);
  });

  it("a second time and with data it is INVALID", () => {
    const setup: Setup = { tlsMode: "allow" };
    const outcome = converse([FLAGS, option(5, Buffer.from("x")), ask.startTls(), ask.startTls()], setup);
    expect(types(outcome)).toEqual(["5 INVALID", "5 ACK", "5 INVALID"]);
  });

  it("resets structured replies and meta contexts", () => {
    const before = [ask.structuredReply(), ask.setMeta("vol", "base:allocation"), ask.startTls()];
    const outcome = converse([FLAGS, ...before, ask.go("vol")], { tlsMode: "allow" });
    expect(outcome.admitted?.negotiated).toEqual({
      structuredReplies: false,
      transmissionFlags: RW_FLAGS,
      metaContexts: [],
    });
    const again = converse([FLAGS, ...before, ask.structuredReply(), ask.go("vol")], { tlsMode: "allow" });
    expect(again.admitted?.negotiated).toMatchObject({ structuredReplies: true, metaContexts: [] });
  });

  it("the identity reaches the directory", () => {
    const seen: ClientInfo[] = [];
    const directory: ExportDirectory = {
      list: (client) => {
        seen.push(client);
        return [];
      },
      resolve: () => exportNamed("vol"),
    };
    const identity: Identity = { kind: "psk", names: ["psk=alice"] };
    converse([FLAGS, ask.list(), ask.startTls(), ask.list()], { directory, tlsMode: "allow", identity });
    expect(seen).toEqual([LOCAL, { ...LOCAL, tls: true, identity }]);
  });

  it("check 58: bytes behind STARTTLS close, also when they come late", () => {
    const together = converse([FLAGS, Buffer.concat([ask.startTls(), Buffer.from("I")])], {
      tlsMode: "allow",
    });
    expect(together).toMatchObject({ closed: "bytes behind STARTTLS", stops: ["close"] });
    expect(together.output.length).toBe(0);
    const late = converse([FLAGS, ask.startTls(), ask.list()], { tlsMode: "allow", tls: false });
    expect(late).toMatchObject({ closed: "bytes behind STARTTLS", stops: ["startTls", "close"] });
    expect(types(late)).toEqual(["5 ACK"]);
  });
});

describe("however the bytes are cut", () => {
  const conversation = [
    FLAGS,
    option(77, Buffer.alloc(5, 1)),
    ask.structuredReply(),
    ask.list(),
    ask.info("vol", 1, 2, 3),
    ask.info("nothing"),
    option(7, Buffer.from("junk")),
    option(3, Buffer.from("x")),
    ask.listMeta("vol"),
    ask.setMeta("vol", "base:allocation"),
    ask.go("vol", 3),
    Buffer.from("the first request"),
  ];
  const whole = Buffer.concat(conversation);

  it("one byte at a time gives the same replies", () => {
    const expected = converse(conversation);
    expect(converse([whole]).output).toEqual(expected.output);
    expect(converse([whole]).admitted?.initialBytes.toString()).toBe("the first request");
    const dripped = converse([whole], {}, 1);
    expect(dripped.output).toEqual(expected.output);
    expect(dripped.admitted?.negotiated).toEqual(expected.admitted?.negotiated);
  });

  it("cut in two at every byte boundary it gives the same replies", () => {
    const expected = converse(conversation).output;
    for (let at = 0; at <= whole.length; at++) {
      const outcome = converse([whole.subarray(0, at), whole.subarray(at)]);
      expect(outcome.output.equals(expected), `cut at ${at}`).toBe(true);
    }
  });

  it("an oversized option in pieces is skipped, not stored", () => {
    const outcome = converse([FLAGS, option(7, Buffer.alloc(1024 * 1024)), ask.abort()], {}, 1000);
    expect(types(outcome)).toEqual(["7 TOO_BIG", "2 ACK"]);
  });
});

describe("random bytes", () => {
  const seed = Number(process.env.CSNAP_SEED ?? Date.now() % 2 ** 31);

  it(`never throw, and replies stay well-formed and bounded (CSNAP_SEED=${seed})`, () => {
    console.log(`CSNAP_SEED=${seed}`);
    const random = mulberry32(seed);
    const below = (bound: number) => Math.floor(random() * bound);
    const noise = (length: number) => Buffer.from(Array.from({ length }, () => below(256)));
    const names = ["", "vol", "vol@monday", "nothing", "vol?attachment=x", "n".repeat(5000)];
    const name = () => names[below(names.length)] ?? "";
    const makers = [
      () => option(below(16), noise(below(40))),
      () => option(below(16), noise(below(40)), below(80)),
      () => noise(below(60)),
      () => ask.info(name(), ...Array.from({ length: below(6) }, () => below(5))),
      () => ask.go(name(), below(5)),
      () =>
        ask.setMeta(
          name(),
          ...Array.from({ length: below(4) }, () => ["base:", "base:allocation"][below(2)] ?? ""),
        ),
      () => ask.listMeta(name(), "base:"),
      () => ask.structuredReply(),
      () => ask.startTls(),
      () => ask.list(),
      () => ask.exportName(name()),
      () => option(below(12), Buffer.alloc(60000 + below(10000))),
    ];
    let closed = 0;
    let admitted = 0;
    for (let round = 0; round < 3000; round++) {
      const bytes = Buffer.concat([
        random() < 0.95 ? u32(below(4)) : noise(4),
        ...Array.from({ length: below(12) }, () => makers[below(makers.length)]?.() ?? FLAGS),
      ]);
      for (let flips = random() < 0.3 ? below(4) : 0; flips > 0; flips--) {
        const at = below(bytes.length);
        bytes[at] = (bytes[at] ?? 0) ^ (1 << below(8));
      }
      const tlsMode = (["none", "allow", "require"] as const)[below(3)] ?? "none";
      const admit: Setup = random() < 0.5 ? { admit: { refused: "POLICY", text: "no" } } : {};
      // Random cuts: `converse` itself checks that each reply is whole and each stop comes last.
      const outcome = converse([bytes], { tlsMode, ...admit }, 1 + below(3000));
      expect(outcome.output.length).toBeLessThan(64 * 1024);
      if (outcome.closed !== undefined) closed++;
      if (outcome.admitted !== undefined) admitted++;
    }
    expect(closed).toBeGreaterThan(100);
    expect(admitted).toBeGreaterThan(100);
  });

  it("endless garbage after the end does not pile up", () => {
    const machine = new Handshake({
      directory: fixedDirectory(NAMES),
      client: LOCAL,
      tlsMode: "none",
      metaContexts: [],
    });
    machine.start();
    expect(machine.receive(u32(255)).at(-1)?.kind).toBe("close");
    const before = process.memoryUsage().arrayBuffers;
    const garbage = Buffer.alloc(65536, 0x49);
    for (let sent = 0; sent < 4096; sent++) expect(machine.receive(garbage)).toEqual([]);
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(16 * 1024 * 1024);
  });

  it("bytes sent while an admission is pending are bounded", () => {
    const machine = new Handshake({
      directory: fixedDirectory(NAMES),
      client: LOCAL,
      tlsMode: "none",
      metaContexts: [],
    });
    machine.start();
    expect(machine.receive(Buffer.concat([FLAGS, ask.go("vol")])).at(-1)?.kind).toBe("admit");
    const actions = Array.from({ length: 20 }, () => machine.receive(Buffer.alloc(65536))).flat();
    expect(actions).toEqual([{ kind: "close", reason: "too much sent ahead of a reply" }]);
  });
});

function mulberry32(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
