/**
 * TLS on the real listener, with the clients people have (libnbd and qemu on GnuTLS) and with Node's own TLS where a
 * client must misbehave. `check N` is the NBD conformance list's number.
 */
import { randomBytes } from "node:crypto";
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import type { Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Readable } from "node:stream";
import { type ConnectionOptions, connect as connectTls, type TLSSocket } from "node:tls";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { parseAccessRule, restrict } from "../../src/nbd/access.js";
import type { TransmissionStart } from "../../src/nbd/connection.js";
import type { NbdServerOptions } from "../../src/nbd/server.js";
import { alternativeNames, loadTlsCredentials, parsePskFile, type TlsFiles } from "../../src/nbd/tls.js";
import type { ListenerAddress } from "../../src/nbd/uri.js";
import { type Certificates, makeCertificates } from "../support/certificates.js";
import { fixedDirectory } from "../support/exports.js";
import { loadFdTools } from "../support/fd-tools.js";
import { type Listener, NAMES, recorder, run, startListener } from "../support/listener.js";
import { ask, option } from "../support/nbd-wire.js";
import { RawClient } from "../support/raw-client.js";

let certificates: Certificates;
let native: ReturnType<typeof loadFdTools>;
let listener: Listener | undefined;

beforeAll(() => {
  native = loadFdTools();
  certificates = makeCertificates(mkdtempSync(join(tmpdir(), "csnap-tls-")));
});
afterEach(async () => {
  await listener?.close();
  listener = undefined;
});
afterAll(() => {
  rmSync(certificates.directory, { recursive: true });
});

const file = (name: string) => join(certificates.directory, name);
const pem = (name: string) => readFileSync(file(name));
const certFiles = () => ({ cert: file("server-cert.pem"), key: file("server-key.pem") });
const mutual = (): TlsFiles => ({ ...certFiles(), ca: file("ca-cert.pem") });
const psk = (): TlsFiles => ({ psk: certificates.psk });

async function start(
  files: TlsFiles,
  required: boolean,
  more: Partial<NbdServerOptions> = {},
): Promise<Listener> {
  const tls = { credentials: loadTlsCredentials(files), required, native };
  listener = await startListener({ tls, ...more });
  return listener;
}

/** STARTTLS as a raw client, then TLS by Node; resolves when TLS stands. */
async function startTls(address: ListenerAddress, options: ConnectionOptions): Promise<RawClient> {
  const plain = await RawClient.start(address);
  plain.send(ask.startTls());
  expect(await plain.answer()).toEqual(["5 ACK"]);
  const secure = connectTls({
    socket: plain.release() as Socket,
    ca: pem("ca-cert.pem"),
    servername: "localhost",
    ...options,
  });
  const client = new RawClient(secure);
  await new Promise<void>((resolve, reject) => {
    secure
      .once("secureConnect", resolve)
      .once("error", reject)
      .once("close", () => reject(new Error("closed")));
  });
  return client;
}

const clientCertificate = () => ({ cert: pem("client-cert.pem"), key: pem("client-key.pem") });
const alicesKey = (): ConnectionOptions => ({
  pskCallback: () => ({ identity: "alice", psk: Buffer.from(certificates.pskKeyHex, "hex") }),
  checkServerIdentity: () => undefined,
});

/** A directory for libnbd: tls-certificates=DIR. */
function clientDirectory(name: string): string {
  const directory = file(`${name}-dir`);
  mkdirSync(directory, { recursive: true });
  copyFileSync(file("ca-cert.pem"), join(directory, "ca-cert.pem"));
  copyFileSync(file(`${name}-cert.pem`), join(directory, "client-cert.pem"));
  copyFileSync(file(`${name}-key.pem`), join(directory, "client-key.pem"));
  return directory;
}

describe("pre-shared keys with libnbd and qemu", () => {
  it("nbdinfo over unix and TCP, reading through the tunnel", async () => {
    const { unix, tcp } = await start(psk(), true);
    const keys = `tls-psk-file=${certificates.psk}`;
    const uris = [
      `nbds+unix://alice@/vol?socket=${unix.path}&${keys}`,
      `nbds://alice@127.0.0.1:${tcp.port}/vol?${keys}`,
    ];
    for (const uri of uris) {
      const { stdout, stderr } = await run("nbdinfo", "--json", uri);
      expect(stderr).toBe("");
      expect(JSON.parse(stdout)).toMatchObject({ TLS: true, structured: true });
      const map = await run("nbdinfo", "--map", uri);
      expect(map.stdout).toMatch(/hole,zero/);
    }
  });

  it("a wrong user, a wrong key and no TLS are refused", async () => {
    const { unix, logged } = await start(psk(), true);
    const wrong = file("wrong.psk");
    writeFileSync(wrong, `alice:${"00".repeat(32)}\nmallory:${"11".repeat(32)}\n`);
    for (const user of ["alice", "mallory"]) {
      const uri = `nbds+unix://${user}@/?socket=${unix.path}&tls-psk-file=${wrong}`;
      expect((await run("nbdinfo", "--list", "--no-content", uri)).status).toBe(1);
    }
    const plain = await run("nbdinfo", "--list", "--no-content", `nbd+unix:///?socket=${unix.path}`);
    expect(plain.status).toBe(1);
    await logged(/TLS failed/, 2);
  });

  it("qemu-img reads with a key", async () => {
    const { unix } = await start(psk(), true);
    const directory = mkdtempSync(join(certificates.directory, "qemu-"));
    writeFileSync(join(directory, "keys.psk"), `alice:${certificates.pskKeyHex}\n`);
    const { stdout, stderr } = await run(
      ...(["qemu-img", "info", "--output=json"] as const),
      ...["--object", `tls-creds-psk,id=tls0,dir=${directory},username=alice,endpoint=client`],
      ...["--image-opts", `driver=nbd,path=${unix.path},export=vol,tls-creds=tls0`],
    );
    expect(stderr).toBe("");
    expect(JSON.parse(stdout)["virtual-size"]).toBe(5368713216);
  });

  it.each(["ECDHE-PSK-CHACHA20-POLY1305", "DHE-PSK-AES256-GCM-SHA384", "TLS_AES_128_GCM_SHA256"])(
    "%s, on a server that has a certificate too",
    async (ciphers) => {
      const seen: TransmissionStart[] = [];
      const startTransmission = (begun: TransmissionStart) => seen.push(begun);
      const { tcp } = await start({ ...certFiles(), ...psk() }, false, { startTransmission });
      const maxVersion = ciphers.startsWith("TLS_") ? "TLSv1.3" : "TLSv1.2";
      const secure = await startTls(tcp, { ...alicesKey(), ciphers, maxVersion });
      secure.send(ask.go("vol"));
      await secure.rest();
      expect(seen[0]?.client.identity).toEqual({ kind: "psk", names: ["psk=alice"] });
    },
  );

  it("libnbd limited to TLS 1.2", async () => {
    const { unix } = await start(psk(), true);
    const uri = `nbds+unix://alice@/?socket=${unix.path}&tls-psk-file=${certificates.psk}`;
    const limit = (versions: string[]) => {
      const path = file("gnutls.conf");
      writeFileSync(
        path,
        `[overrides]\n${versions.map((version) => `disabled-version = ${version}\n`).join("")}`,
      );
      return [
        "env",
        `GNUTLS_SYSTEM_PRIORITY_FILE=${path}`,
        "nbdinfo",
        "--list",
        "--no-content",
        uri,
      ] as const;
    };
    expect(await run(...limit(["tls1.3"]))).toMatchObject({ status: 0, stderr: "" });
    // The control: the limit has an effect at all.
    expect((await run(...limit(["tls1.3", "tls1.2"]))).status).toBe(1);
  });

  it("a key that was offered but not used proves nothing", async () => {
    // SHA-384 only: TLS 1.3 cannot use a key bound to SHA-256 and falls back to the server's certificate.
    const seen: TransmissionStart[] = [];
    const { tcp } = await start({ ...certFiles(), ...psk() }, false, {
      startTransmission: (begun) => seen.push(begun),
    });
    const secure = await startTls(tcp, { ...alicesKey(), ciphers: "TLS_AES_256_GCM_SHA384" });
    expect((secure.stream as TLSSocket).isSessionReused()).toBe(false);
    secure.send(ask.go("vol"));
    await secure.rest();
    expect(seen.length).toBe(1);
    expect(seen[0]?.client).toMatchObject({ tls: true, identity: undefined });
  });
});

describe("certificates", () => {
  it("nbdinfo and qemu-img with client certificates", async () => {
    const { tcp } = await start(mutual(), true);
    const directory = clientDirectory("client");
    const uri = `nbds://localhost:${tcp.port}/vol?tls-certificates=${directory}`;
    const { stdout, stderr } = await run("nbdinfo", "--json", "--no-content", uri);
    expect(stderr).toBe("");
    expect(JSON.parse(stdout)).toMatchObject({ TLS: true });
    const qemu = await run(
      ...(["qemu-img", "info", "--output=json"] as const),
      ...["--object", `tls-creds-x509,id=tls0,dir=${directory},endpoint=client`],
      ...["--image-opts", `driver=nbd,host=localhost,port=${tcp.port},export=vol,tls-creds=tls0`],
    );
    expect(JSON.parse(qemu.stdout)["virtual-size"]).toBe(5368713216);
  });

  it("a client without a certificate or with a stranger's is refused", async () => {
    const { tcp, logged, server } = await start(mutual(), true);
    const foreign = `nbds://localhost:${tcp.port}/?tls-certificates=${clientDirectory("foreign")}`;
    expect((await run("nbdinfo", "--list", "--no-content", foreign)).status).toBe(1);
    // In TLS 1.3 a client believes in its handshake before the server has seen its certificate.
    const nobody = await startTls(tcp, {}).catch(() => undefined);
    await nobody?.rest();
    const stranger = { cert: pem("foreign-cert.pem"), key: pem("foreign-key.pem") };
    await (await startTls(tcp, stranger).catch(() => undefined))?.rest();
    await logged(/TLS failed/, 3);
    expect(server.counters.handedOver).toBe(0);
  });

  it("the certificate's names reach the directory before any option does", async () => {
    const seen: TransmissionStart[] = [];
    const { tcp } = await start(mutual(), true, { startTransmission: (begun) => seen.push(begun) });
    const client = await startTls(tcp, clientCertificate());
    client.send(ask.go("vol"));
    await client.rest();
    expect(seen[0]?.client.identity).toEqual({
      kind: "certificate",
      names: ["cn=host1", "dns=host1.lan", "email=root@host1.lan", "uri=spiffe://lan/host1", "ip=192.0.2.7"],
    });
  });

  it.each(["TLSv1.2", "TLSv1.3"] as const)("%s sessions are never resumed", async (maxVersion) => {
    const { tcp } = await start(mutual(), true);
    const first = await startTls(tcp, { ...clientCertificate(), maxVersion });
    const secure = first.stream as TLSSocket;
    let session = secure.getSession();
    secure.on("session", (newer) => {
      session = newer;
    });
    first.send(ask.abort());
    await first.rest();
    expect(session).toBeInstanceOf(Buffer);
    // Several times, since another worker would not know the session anyway.
    for (let round = 0; round < 6; round++) {
      const again = await startTls(tcp, { ...clientCertificate(), maxVersion, ...(session && { session }) });
      expect((again.stream as TLSSocket).isSessionReused()).toBe(false);
      again.send(ask.abort());
      await again.rest();
    }
  });

  it("rules map names to exports", async () => {
    const rules = [parseAccessRule("cn=host1=vol,vol@monday:ro")];
    const directory = restrict(fixedDirectory(NAMES), { rules, openToNetwork: false });
    const { tcp } = await start({ ...mutual(), ...psk() }, false, { directory });
    const host1 = await startTls(tcp, clientCertificate());
    host1.send(ask.list(), ask.info("vol"));
    expect(await host1.answer()).toEqual(["3 SERVER", "3 SERVER", "3 ACK"]);
    expect((await host1.reply()).payload.readUInt16BE(10) & 2).toBe(2);
    host1.destroy();
    const alice = await startTls(tcp, { ...alicesKey(), ciphers: "TLS_AES_128_GCM_SHA256" });
    alice.send(ask.list(), ask.go("vol"));
    expect(await alice.answer()).toEqual(["3 ACK"]);
    expect(await alice.answer()).toEqual(["7 UNKNOWN"]);
    alice.destroy();
  });
});

describe("STARTTLS on the wire", () => {
  it("check 58: bytes pipelined behind STARTTLS close, unanswered", async () => {
    const { tcp, unix, log } = await start(psk(), false);
    for (const address of [tcp, unix]) {
      const client = await RawClient.start(address);
      client.send(Buffer.concat([ask.startTls(), ask.list()]));
      expect((await client.rest()).length).toBe(0);
    }
    expect(log.filter((line) => line.endsWith("bytes behind STARTTLS")).length).toBe(2);
  });

  it("check 58: plaintext after the ACK is no TLS: closed, never processed", async () => {
    const { tcp, logged } = await start(psk(), false);
    const client = await RawClient.start(tcp);
    client.send(ask.startTls());
    expect(await client.answer()).toEqual(["5 ACK"]);
    client.send(ask.list(), ask.go("vol"));
    // A TLS alert (type 21) at most, nothing of the protocol.
    const rest = await client.rest();
    expect(rest.length === 0 || rest[0] === 21).toBe(true);
    expect(rest.includes("vol")).toBe(false);
    await logged(/TLS failed/);
  });

  it("required: TLS_REQD before it; allowed: plain clients are served; reset by it; a second time INVALID", async () => {
    const strict = await start(mutual(), true);
    const plain = await RawClient.start(strict.tcp);
    plain.send(ask.list(), option(99), ask.go("vol"));
    expect(await plain.answer()).toEqual(["3 TLS_REQD"]);
    expect(await plain.answer()).toEqual(["99 TLS_REQD"]);
    expect(await plain.answer()).toEqual(["7 TLS_REQD"]);
    plain.send(ask.exportName("vol"));
    expect((await plain.rest()).length).toBe(0);
    await strict.close();

    const seen: TransmissionStart[] = [];
    const directory = fixedDirectory(NAMES, ["vol@tuesday"]);
    const { tcp } = await start(mutual(), false, {
      directory,
      startTransmission: (begun) => seen.push(begun),
    });
    const open = await RawClient.start(tcp);
    open.send(ask.go("vol@tuesday"), ask.structuredReply(), ask.startTls());
    expect(await open.answer()).toEqual(["7 TLS_REQD"]);
    expect(await open.answer()).toEqual(["8 ACK"]);
    expect(await open.answer()).toEqual(["5 ACK"]);
    const secure = connectTls({
      socket: open.release() as Socket,
      ca: pem("ca-cert.pem"),
      servername: "localhost",
      ...clientCertificate(),
    });
    const client = new RawClient(secure);
    client.send(ask.startTls(), ask.go("vol@tuesday"));
    expect(await client.answer()).toEqual(["5 INVALID"]);
    expect(await client.answer()).toEqual(["7 INFO", "7 ACK"]);
    await client.rest();
    expect(seen[0]?.negotiated.structuredReplies).toBe(false);
  });

  it("check 45: a TLS handshake that does not end is closed", async () => {
    const { unix, log } = await start(psk(), true, { limits: { timeoutMs: 300 } });
    const client = await RawClient.start(unix);
    client.send(ask.startTls());
    await client.answer();
    await client.rest();
    expect(log).toEqual(["unix client: closed, no handshake within 300 ms"]);
  });
});

describe("the tunnel", () => {
  it("carries large streams both ways at once, and each end's close to the other", async () => {
    const { startTransmission, next } = recorder(native);
    const { tcp, unix } = await start(mutual(), true, { startTransmission });
    for (const address of [tcp, unix]) {
      const client = await startTls(address, clientCertificate());
      const early = randomBytes(100_000);
      client.send(ask.go("vol"), early);
      await client.answer();
      const { start: begun, socket } = await next();
      const up = randomBytes(16 * 1024 * 1024);
      const down = randomBytes(16 * 1024 * 1024);
      client.release();
      client.stream.write(up);
      socket.write(down);
      const expectedUp = Buffer.concat([early, up]);
      const [gotUp, gotDown] = await Promise.all([
        collect(socket, expectedUp.length - begun.initialBytes.length),
        collect(client.stream, down.length),
      ]);
      expect(Buffer.concat([begun.initialBytes, gotUp]).equals(expectedUp)).toBe(true);
      expect(gotDown.equals(down)).toBe(true);
      // The client's end reaches the server's side, which may still answer, then close.
      const serverSawEnd = new Promise((resolve) => socket.once("end", resolve));
      client.stream.end();
      await serverSawEnd;
      const clientGotRest = collect(client.stream, 4);
      socket.end("rest");
      expect((await clientGotRest).toString()).toBe("rest");
      await client.rest();
    }
  });

  it("a client that dies is noticed by transmission; closing waits for the last bytes", async () => {
    const { startTransmission, next } = recorder(native);
    const { unix, server } = await start(mutual(), true, { startTransmission });
    const dying = await startTls(unix, clientCertificate());
    dying.send(ask.go("vol"));
    await dying.answer();
    const first = await next();
    first.socket.resume();
    const ended = new Promise((resolve) => first.socket.once("end", resolve));
    dying.destroy();
    await ended;
    first.socket.destroy();

    const slow = await startTls(unix, clientCertificate());
    slow.send(ask.go("vol"));
    await slow.answer();
    const second = await next();
    slow.release();
    slow.stream.pause();
    const answer = randomBytes(4 * 1024 * 1024);
    second.socket.end(answer);
    const closed = server.close(20_000);
    const got = await collect(slow.stream, answer.length);
    expect(got.equals(answer)).toBe(true);
    slow.stream.end();
    await closed;
  });
});

describe("credentials", () => {
  it.each([
    [{}, "TLS needs --tls-cert and --tls-key, or --tls-psk"],
    [{ cert: "x" }, "--tls-cert and --tls-key belong together"],
    [{ ca: "x", psk: "y" }, "--tls-ca checks clients of a server with a certificate"],
    [{ psk: "/nonexistent/keys" }, "cannot read --tls-psk '/nonexistent/keys'"],
  ])("%j: %s", (files, message) => {
    expect(() => loadTlsCredentials(files)).toThrow(message);
  });

  it("a key that is not the certificate's, and a file that is no PEM", () => {
    const mixed = { cert: file("server-cert.pem"), key: file("client-key.pem") };
    expect(() => loadTlsCredentials(mixed)).toThrow(/cannot use the TLS credentials .*server-cert.pem/);
    const junk = { cert: file("server.ext"), key: file("server-key.pem") };
    expect(() => loadTlsCredentials(junk)).toThrow("cannot use the TLS credentials");
  });

  it("PSK files: comments, colons in names; every mistake names its line, no key is shown", () => {
    expect(parsePskFile("# x\n\na:b:0011\r\n", "f")).toEqual(new Map([["a:b", "0011"]]));
    expect(() => parsePskFile("a:00\nb:001\n", "f")).toThrow("--tls-psk 'f' line 2: write USER:HEXKEY");
    expect(() => parsePskFile("a:00\na:11\n", "f")).toThrow("line 2: the user 'a' is there twice");
    expect(() => parsePskFile("", "f")).toThrow("holds no key");
  });

  it("alternative names cannot be smuggled in by a comma", () => {
    expect(alternativeNames('DNS:"evil\\u002c DNS:admin", IP Address:192.0.2.7')).toEqual([
      "dns=evil, DNS:admin",
      "ip=192.0.2.7",
    ]);
    expect(alternativeNames("DirName:x, DNS:a")).toEqual(["dns=a"]);
    expect(alternativeNames("")).toEqual([]);
  });
});

/** Exactly `count` bytes. */
function collect(stream: Readable, count: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let have = 0;
    const onData = (chunk: Buffer) => {
      chunks.push(chunk);
      have += chunk.length;
      if (have < count) return;
      stream.off("data", onData);
      resolve(Buffer.concat(chunks));
    };
    stream.on("data", onData);
    stream.once("close", () => reject(new Error(`closed after ${have} of ${count} bytes`)));
    stream.resume();
    if (count === 0) resolve(Buffer.alloc(0));
  });
}
