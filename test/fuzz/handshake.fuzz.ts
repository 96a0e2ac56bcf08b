/**
 * Feeds the handshake machine conversations that were broken at random. Run by scripts/fuzz as target
 * `handshake`, for CSNAP_FUZZ_SECONDS with seed CSNAP_SEED; with CSNAP_FUZZ_FILE that one input only.
 *
 * The first byte of an input chooses the TLS mode, the rest is what the client sends. Of every input:
 * 1. The machine never throws, and what it sends parses as replies of known types.
 * 2. The same bytes, cut into random pieces, give the same bytes back and the same end. (Not with TLS
 *    on offer: what may follow STARTTLS depends on how it arrives, which is that rule's point.)
 * 3. What one call returns stays within the machine's bound of output, and whatever makes it wait
 *    comes last.
 * 4. Every byte that the client sent behind GO comes out as initialBytes.
 */
import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { baseAllocation } from "../../src/nbd/contexts.js";
import { type Action, Handshake, type TlsMode } from "../../src/nbd/handshake.js";
import { exportNamed, fixedDirectory } from "../support/exports.js";
import { ask, FLAGS, GREETING, option, readReplies, u32 } from "../support/nbd-wire.js";

const SECONDS = Number(process.env.CSNAP_FUZZ_SECONDS ?? "5");
const SEED = Number(process.env.CSNAP_SEED ?? "1");
const FINDINGS = process.env.CSNAP_FUZZ_FINDINGS ?? "build/fuzz/handshake";
const CORPUS = join(import.meta.dirname, "../fixtures/fuzz/handshake");
const TLS_MODES: readonly TlsMode[] = ["none", "require", "allow"];
/** 256 KiB of waiting replies, and the longest answer to a single option on top. */
const OUTPUT_BYTES_MAX = 256 * 1024 + 64 * 1024;

const NAMES = ["vol", "vol@monday", "vol@tuesday", "x".repeat(128)];
const directory = fixedDirectory(NAMES, ["vol@tuesday"]);

/** splitmix32: equal seeds, equal inputs. */
function randomNumbers(seed: number): (bound: number) => number {
  let state = seed >>> 0;
  return (bound) => {
    state = (state + 0x9e3779b9) >>> 0;
    let mixed = state ^ (state >>> 16);
    mixed = Math.imul(mixed, 0x21f0aaad);
    mixed ^= mixed >>> 15;
    mixed = Math.imul(mixed, 0x735a2d97);
    return ((mixed ^ (mixed >>> 15)) >>> 0) % bound;
  };
}

type Random = ReturnType<typeof randomNumbers>;

function pick<T>(random: Random, from: readonly T[]): T {
  return from[random(from.length)] as T;
}

/** A conversation as a sane client might have it. */
function conversation(random: Random): Buffer {
  const name = () =>
    pick(random, [...NAMES, "", "nowhere", "vol?attachment=6f1c4d8e-0d2b-4a55-9a3e-3f6d0f2b7a11.7"]);
  const query = () => pick(random, ["base:allocation", "base:", "qemu:dirty-bitmap:x", "", ":", "no-colon"]);
  const options: (() => Buffer)[] = [
    ask.list,
    ask.startTls,
    ask.structuredReply,
    ask.abort,
    () => ask.info(name(), random(5), random(5)),
    () => ask.listMeta(name(), ...Array.from({ length: random(4) }, query)),
    () => ask.setMeta(name(), ...Array.from({ length: random(4) }, query)),
    () => option(random(14), Buffer.alloc(random(40), random(256))),
    () => option(pick(random, [3, 99]), Buffer.alloc(pick(random, [65536, 65537, 200_000]))),
  ];
  const asked = Array.from({ length: random(8) }, () => pick(random, options)());
  const last = random(3) === 0 ? ask.exportName(name()) : ask.go(name(), 1, 2, 3);
  const behind = Buffer.alloc(random(60), random(256));
  return Buffer.concat([random(8) === 0 ? u32(random(4)) : FLAGS, ...asked, last, behind]);
}

function mutate(random: Random, bytes: Buffer): Buffer {
  const at = random(bytes.length);
  switch (random(5)) {
    case 0:
      bytes[at] = random(256);
      return bytes;
    case 1:
      if (bytes.length - at >= 4)
        bytes.writeUInt32BE(pick(random, [0, 1, 65535, 65536, 1 << 20, 0x7fffffff]), at);
      return bytes;
    case 2:
      return Buffer.concat([
        bytes.subarray(0, at),
        bytes.subarray(Math.min(bytes.length, at + 1 + random(30))),
      ]);
    case 3:
      return Buffer.concat([
        bytes.subarray(0, at),
        Buffer.alloc(1 + random(30), random(256)),
        bytes.subarray(at),
      ]);
    default:
      return Buffer.concat([bytes.subarray(0, at), conversation(random)]);
  }
}

function makeInput(random: Random): Buffer {
  let bytes = conversation(random);
  for (let changes = random(6); changes > 0 && bytes.length > 0; changes--) bytes = mutate(random, bytes);
  return Buffer.concat([Buffer.from([random(256)]), bytes]);
}

interface Outcome {
  readonly sent: Buffer;
  readonly end: string;
  /** How EXPORT_NAME ends differs: no reply header. */
  readonly last: Buffer;
}

/** What a server that follows the machine would send, with the input in these pieces. */
function converse(tlsMode: TlsMode, pieces: readonly Buffer[]): Outcome {
  const machine = new Handshake({
    directory,
    client: { transport: "tcp", address: "192.0.2.7", local: false, tls: false },
    tlsMode,
    metaContexts: [baseAllocation],
  });
  const sent: Buffer[] = [];
  let end = "waits";
  let last: Buffer = Buffer.alloc(0);
  let over = false;

  function perform(actions: Action[]): void {
    const waits = actions.findIndex((action) => action.kind !== "send");
    if (waits >= 0) expect(waits, "what waits comes last").toBe(actions.length - 1);
    let outputBytes = 0;
    for (const action of actions) {
      if (action.kind === "send") {
        sent.push(action.bytes);
        outputBytes += action.bytes.length;
      }
    }
    expect(outputBytes).toBeLessThan(OUTPUT_BYTES_MAX);
    const action = actions.at(-1);
    if (action?.kind === "drain") perform(machine.drained());
    if (action?.kind === "startTls") perform(machine.tlsEstablished(undefined));
    if (action?.kind === "close") {
      over = true;
      end = `closed: ${action.reason}`;
    }
    if (action?.kind === "admit") {
      const { request, info } = action.admission;
      if (request.name === "vol@monday") {
        perform(machine.refused({ refused: "SHUTDOWN", text: "going down" }));
        return;
      }
      const admitted = machine.admitted(exportNamed(info.name));
      over = true;
      last = admitted.reply;
      end = `admitted ${info.name} ${JSON.stringify(admitted.negotiated)}`;
      behind.push(admitted.initialBytes);
    }
  }

  const behind: Buffer[] = [];
  const greeting = machine.start();
  expect(greeting).toEqual([{ kind: "send", bytes: GREETING }]);
  for (const piece of pieces) {
    if (over && behind.length > 0) behind.push(piece);
    else perform(machine.receive(piece));
  }
  return { sent: Buffer.concat(sent), end: `${end}; behind ${Buffer.concat(behind).toString("hex")}`, last };
}

function cut(random: Random, bytes: Buffer): Buffer[] {
  const pieces: Buffer[] = [];
  for (let at = 0; at < bytes.length; ) {
    const length = pick(random, [1, 2, 7, 1 + random(40), 1 + random(70_000)]);
    pieces.push(bytes.subarray(at, at + length));
    at += length;
  }
  return pieces;
}

function attack(input: Buffer, random: Random): void {
  const tlsMode = TLS_MODES[(input[0] ?? 0) % TLS_MODES.length] ?? "none";
  const bytes = input.subarray(1);
  const whole = converse(tlsMode, [bytes]);
  readReplies(whole.sent);
  const again = converse(tlsMode, cut(random, bytes));
  readReplies(again.sent);
  if (tlsMode === "none") expect(again).toEqual(whole);
  if (whole.end.startsWith("admitted")) {
    const behind = Buffer.from(whole.end.slice(whole.end.lastIndexOf(" ") + 1), "hex");
    expect(bytes.subarray(bytes.length - behind.length).equals(behind), "all bytes behind GO").toBe(true);
  }
}

function attackAndKeep(input: Buffer, random: Random): void {
  try {
    attack(input, random);
  } catch (error) {
    mkdirSync(FINDINGS, { recursive: true });
    const file = join(FINDINGS, `crash-${createHash("sha1").update(input).digest("hex")}`);
    writeFileSync(file, input);
    throw new Error(`input kept in ${file}`, { cause: error });
  }
}

function committed(): Buffer[] {
  const only = process.env.CSNAP_FUZZ_FILE ?? "";
  if (only !== "") return [readFileSync(only)];
  const files = readdirSync(CORPUS, { withFileTypes: true }).filter((entry) => entry.isFile());
  return files.map((entry) => readFileSync(join(CORPUS, entry.name)));
}

it(`survives ${SECONDS} s of broken handshakes`, { timeout: (SECONDS + 60) * 1000 }, () => {
  const random = randomNumbers(SEED);
  let runs = 0;
  for (const input of committed()) {
    attackAndKeep(input, random);
    runs++;
  }
  if ((process.env.CSNAP_FUZZ_FILE ?? "") === "") {
    const end = performance.now() + SECONDS * 1000;
    for (; performance.now() < end; runs++) attackAndKeep(makeInput(random), random);
  }
  expect(runs).toBeGreaterThan(0);
  process.stdout.write(`Done ${runs} runs with seed ${SEED}\n`);
});
