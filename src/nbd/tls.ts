/**
 * TLS credentials and identities: what `--tls-cert`, `--tls-key`, `--tls-ca` and `--tls-psk` name, checked and
 * loaded, and who a client has proven to be. serve loads; tls-worker.ts uses.
 *
 * 1. TLS 1.2 and up. Sessions are never resumed: each connection proves its identity itself.
 * 2. An identity is what the finished handshake rests on, not what the client offered: a pre-shared key
 *    counts only if it was used, a certificate only if the authority of --tls-ca vouches for it.
 * 3. Keys are read once, when the server starts; errors name the file and the line, never a key.
 */
import { constants } from "node:crypto";
import { readFileSync } from "node:fs";
import { createSecureContext, type TLSSocket, type TlsOptions } from "node:tls";
import type { Identity } from "./exports.js";

export interface TlsFiles {
  readonly cert?: string | undefined;
  readonly key?: string | undefined;
  readonly ca?: string | undefined;
  readonly psk?: string | undefined;
}

/** Plain data, so that it can be given to a worker thread. */
export interface TlsCredentials {
  readonly cert?: string | undefined;
  readonly key?: string | undefined;
  readonly ca?: string | undefined;
  /** User → key in hex. */
  readonly psk: ReadonlyMap<string, string>;
}

/** Unusable credentials; the message is for the user. */
export class TlsConfigError extends Error {}

/**
 * In TLS 1.3 a pre-shared key of the GnuTLS kind is bound to SHA-256: those suites come first, or a server that
 * also has a certificate would pick SHA-384 and could not use the key. In TLS 1.2 the key exchange is part of
 * the suite; those without forward secrecy are left out.
 */
const PSK_SUITES = [
  "TLS_AES_128_GCM_SHA256",
  "TLS_CHACHA20_POLY1305_SHA256",
  "TLS_AES_256_GCM_SHA384",
  "ECDHE-PSK-CHACHA20-POLY1305",
  "DHE-PSK-AES256-GCM-SHA384",
  "DHE-PSK-AES128-GCM-SHA256",
];
const CERT_SUITES = ["ECDHE+AESGCM", "ECDHE+CHACHA20", "DHE+AESGCM"];

export function loadTlsCredentials(files: TlsFiles): TlsCredentials {
  const { cert, key, ca, psk } = files;
  if ((cert === undefined) !== (key === undefined)) {
    throw new TlsConfigError("--tls-cert and --tls-key belong together; give both");
  }
  if (ca !== undefined && cert === undefined) {
    throw new TlsConfigError(
      "--tls-ca checks clients of a server with a certificate; give --tls-cert and --tls-key",
    );
  }
  if (cert === undefined && psk === undefined) {
    throw new TlsConfigError("TLS needs --tls-cert and --tls-key, or --tls-psk");
  }
  const credentials: TlsCredentials = {
    cert: cert && readText(cert, "--tls-cert"),
    key: key && readText(key, "--tls-key"),
    ca: ca && readText(ca, "--tls-ca"),
    psk: psk === undefined ? new Map() : parsePskFile(readText(psk, "--tls-psk"), psk),
  };
  try {
    createSecureContext(secureContextOptions(credentials));
  } catch (error) {
    const cause = error instanceof Error ? error.message : String(error);
    const files = [cert, key, ca].filter((file) => file !== undefined).join(", ");
    throw new TlsConfigError(
      `cannot use the TLS credentials ${files}: ${cause}; check that they are PEM files that belong together`,
    );
  }
  return credentials;
}

function readText(path: string, flag: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    const cause = error instanceof Error ? error.message : String(error);
    throw new TlsConfigError(`cannot read ${flag} '${path}': ${cause}`);
  }
}

/** The file of psktool, nbdkit and qemu: a line `USER:HEXKEY` per user; blank lines and `#` comments are skipped. */
export function parsePskFile(text: string, path: string): Map<string, string> {
  const users = new Map<string, string>();
  for (const [index, line] of text.split(/\r?\n/).entries()) {
    if (line.trim() === "" || line.startsWith("#")) continue;
    const match = /^(.+):((?:[0-9A-Fa-f]{2})+)$/.exec(line.trim());
    const wrong = (why: string) => new TlsConfigError(`--tls-psk '${path}' line ${index + 1}: ${why}`);
    if (match?.[1] === undefined || match[2] === undefined) throw wrong("write USER:HEXKEY, as psktool does");
    if (Buffer.byteLength(match[1]) > 128) throw wrong("a user name has at most 128 bytes");
    if (users.has(match[1])) throw wrong(`the user '${match[1]}' is there twice`);
    users.set(match[1], match[2]);
  }
  if (users.size === 0) throw new TlsConfigError(`--tls-psk '${path}' holds no key; make one with psktool`);
  return users;
}

function secureContextOptions(credentials: TlsCredentials) {
  const suites = [...(credentials.psk.size > 0 ? PSK_SUITES : []), ...CERT_SUITES];
  if (credentials.psk.size === 0) suites.unshift("TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256");
  return {
    cert: credentials.cert,
    key: credentials.key,
    ca: credentials.ca,
    ciphers: suites.join(":"),
    dhparam: "auto",
    honorCipherOrder: true,
    minVersion: "TLSv1.2" as const,
    secureOptions: constants.SSL_OP_NO_TICKET | constants.SSL_OP_NO_RENEGOTIATION,
  };
}

/** Options of a TLS server; `keyOffered` hears which user's key OpenSSL was given for which connection. */
export function tlsServerOptions(
  credentials: TlsCredentials,
  keyOffered: (socket: TLSSocket, user: string) => void,
): TlsOptions {
  const { psk, ca } = credentials;
  const options: TlsOptions = {
    ...secureContextOptions(credentials),
    requestCert: ca !== undefined,
    rejectUnauthorized: ca !== undefined,
  };
  if (psk.size === 0) return options;
  return {
    ...options,
    pskCallback: (socket: TLSSocket, user: string) => {
      const key = psk.get(user);
      if (key === undefined) return null;
      keyOffered(socket, user);
      return Buffer.from(key, "hex");
    },
  };
}

/** Who the client of a finished handshake is; undefined if it proved nothing. */
export function identityOf(socket: TLSSocket, offeredUser: string | undefined): Identity | undefined {
  if (offeredUser !== undefined && usedPresharedKey(socket)) {
    return { kind: "psk", names: [`psk=${offeredUser}`] };
  }
  if (!socket.authorized) return undefined;
  const certificate = socket.getPeerX509Certificate();
  if (certificate === undefined) return undefined;
  const names = [...commonNames(certificate.subject), ...alternativeNames(certificate.subjectAltName ?? "")];
  return { kind: "certificate", names };
}

/**
 * In TLS 1.3 a client can offer a key and then be served by certificate instead, its proof never looked at.
 * There a used key shows as a resumed session under SHA-256, and real resumption is off.
 */
function usedPresharedKey(socket: TLSSocket): boolean {
  const suite = socket.getCipher().name;
  if (socket.getProtocol() !== "TLSv1.3") return /PSK/.test(suite);
  return socket.isSessionReused() && suite.endsWith("_SHA256");
}

function commonNames(subject: string | undefined): string[] {
  // One `KEY=VALUE` per line; a line break within a value is escaped.
  return (subject ?? "")
    .split("\n")
    .flatMap((line) => (line.startsWith("CN=") ? [`cn=${line.slice(3)}`] : []));
}

const ALTERNATIVE_KINDS: Record<string, string> = {
  DNS: "dns",
  email: "email",
  URI: "uri",
  "IP Address": "ip",
};

/** `DNS:host1, IP Address:192.0.2.7`; Node quotes a value as JSON if it could be mistaken for more. */
export function alternativeNames(text: string): string[] {
  const names: string[] = [];
  for (const match of text.matchAll(/(?:^|, )([A-Za-z ]+):("(?:[^"\\]|\\.)*"|[^,"]*)(?=, |$)/gy)) {
    const kind = ALTERNATIVE_KINDS[match[1] ?? ""];
    const value = match[2] ?? "";
    if (kind === undefined || value === "") continue;
    names.push(`${kind}=${value.startsWith('"') ? String(JSON.parse(value)) : value}`);
  }
  return names;
}
