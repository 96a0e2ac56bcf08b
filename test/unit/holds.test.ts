// Clients and holds on a real volume of the addon, without sockets or a server: the races between
// admission, the start of transmission and the end of a hold, step by step.
import { closeSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import tmp from "tmp";
import { afterEach, beforeEach, expect, it } from "vitest";
import { type NativeVolume, native } from "../../src/native.js";
import { type ClientInfo, type ExportInfo, isRefusal, type Refusal } from "../../src/nbd/exports.js";
import { Clients } from "../../src/server/clients.js";
import { VolumeExports } from "../../src/server/exports.js";
import { Holds } from "../../src/server/holds.js";

const U1 = "6f1c4d8e-0d2b-4a55-9a3e-3f6d0f2b7a11";
const U2 = "6f1c4d8e-0d2b-4a55-9a3e-3f6d0f2b7a12";
const LOCAL: ClientInfo = { transport: "unix", address: "", local: true, tls: false };

let volume: NativeVolume;
let clients: Clients;
let holds: Holds;
let exports: VolumeExports;
let events: string[];
const open: number[] = [];

beforeEach(async () => {
  const directory = tmp.dirSync({ prefix: "csnap-test-", unsafeCleanup: true }).name;
  const [originPath, storePath] = [join(directory, "origin"), join(directory, "store")];
  writeFileSync(originPath, Buffer.alloc(1 << 20));
  await native.createStore({
    volumeName: "vol",
    originPath,
    storePath,
    storeBytes: 16 << 20,
    chunkBytes: 16384,
    onFull: "drop-snapshots",
    force: false,
  });
  volume = await native.openVolume({
    originPath,
    storePath,
    durability: "flush",
    lookOnly: false,
    acceptOrigin: false,
    acceptLoss: false,
    onEvent: ({ kind, connection }) => {
      if (kind === "connection-closed") clients.ended(connection ?? -1);
    },
  });
  events = [];
  holds = new Holds({
    volume: "vol",
    native: volume,
    otherWriter: (attachment) => clients.writerBeside(attachment),
    emit: (kind) => events.push(kind),
  });
  clients = new Clients(volume, holds);
  exports = new VolumeExports("vol", volume, (info, request) => clients.offer(info, request));
});
afterEach(async () => {
  await clients.closeAll();
  for (const fd of open.splice(0)) closeSync(fd);
  await volume.close();
});

const attachmentOf = (uuid: string, attempt: number) => ({ uuid, attempt, readOnly: false, isHeld: false });

function request(uuid?: string, attempt = 1, client = LOCAL) {
  const attachment = uuid === undefined ? undefined : attachmentOf(uuid, attempt);
  return { name: "vol", attachment, client, purpose: "use" as const };
}

/** GO up to its acknowledgement. */
async function admit(...asked: Parameters<typeof request>): Promise<ExportInfo | Refusal> {
  const wanted = request(...asked);
  const info = exports.resolve(wanted);
  return isRefusal(info) ? info : clients.admit({ request: wanted, info });
}

/** The start of transmission after GO. */
function start(info: ExportInfo | Refusal, uuid?: string, attempt = 1) {
  if (isRefusal(info)) throw new Error(info.text);
  const [ours, theirs] = native.socketPair();
  open.push(ours, theirs);
  const negotiated = { structuredReplies: false, transmissionFlags: 0, metaContexts: [] };
  const attachment = uuid === undefined ? undefined : attachmentOf(uuid, attempt);
  return clients.start({
    fd: ours,
    initialBytes: Buffer.alloc(0),
    negotiated,
    info,
    client: LOCAL,
    attachment,
  });
}

it("a plain client whose handshake ends after a hold was taken may not start to write", async () => {
  const plain = await admit();
  expect(plain).toMatchObject({ readOnly: false });
  const held = await admit(U1);
  expect(held).toMatchObject({ readOnly: false });
  expect(() => start(plain)).toThrow("attached read-write meanwhile");
  expect(clients.count).toBe(0);
  expect(start(held, U1)).toMatchObject({ read_only: false, attachment: `${U1}.1` });
});

it("a plain client whose handshake ends while the hold is on its way may not either", async () => {
  const plain = await admit();
  const held = admit(U1);
  await Promise.resolve();
  for (let turn = 0; turn < 100 && !holds.isExclusive; turn++) await Promise.resolve();
  expect([holds.isExclusive, holds.current]).toEqual([true, null]);
  expect(() => start(plain)).toThrow("attached read-write meanwhile");
  expect(await admit()).toMatchObject({ readOnly: true });
  start(await held, U1);
});

it("of attachments that ask at once, one has the hold", async () => {
  const answers = await Promise.all([admit(U1), admit(U2), admit(U1), admit(U2)]);
  expect(answers.map(isRefusal)).toEqual([false, true, false, true]);
  expect(volume.info().hold).toMatchObject({ attachment: U1 });
  expect(events).toEqual(["hold-taken"]);
});

it("a GO that waits behind a detach of its own try does not bring the hold back", async () => {
  await admit(U1, 3);
  const wanted = request(U1, 3);
  const info = exports.resolve(wanted) as ExportInfo;
  const ended = clients.endHold({ attachment: U1, force: false });
  const late = clients.admit({ request: wanted, info });
  expect((await ended)?.attachment).toBe(U1);
  expect(await late).toMatchObject({ refused: "POLICY", text: "this attachment was detached: attach anew" });
  expect([holds.current, volume.info().hold]).toEqual([null, null]);
  expect(events).toEqual(["hold-taken", "hold-ended"]);
});

it("a connection admitted before the end of its hold does not start after it", async () => {
  for (const force of [false, true]) {
    const uuid = force ? U2 : U1;
    const held = await admit(uuid);
    await clients.endHold({ force });
    expect(() => start(held, uuid)).toThrow(force ? "ended by force" : "was detached");
    // The origin is anybody's again.
    const plain = start(await admit());
    volume.closeConnection(plain.id);
    await clients.allEnded();
  }
  expect(await admit(U2, 9)).toMatchObject({ refused: "POLICY" });
  expect(await admit(U1, 2)).toMatchObject({ readOnly: false });
});

it("a host's name is cut to what the store keeps, whatever a certificate says", async () => {
  const identity = { kind: "certificate" as const, names: [`cn=${"ä".repeat(200)}`] };
  const client = { transport: "tcp" as const, address: "10.0.0.7", local: false, tls: true, identity };
  await admit(U1, 1, client);
  const host = volume.info().hold?.host ?? "";
  expect(host).toMatch(/^10\.0\.0\.7 \(cn=ä+$/);
  expect(Buffer.byteLength(host)).toBeGreaterThan(60);
  expect(Buffer.byteLength(host)).toBeLessThan(64);
});
