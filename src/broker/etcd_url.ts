// `etcd://host:port,host:port?OPTION=VALUE&…`: where the cluster is, and how to talk to it.
//
// EU1 Beyond loopback without TLS is refused unless `insecure=1` says that it is wanted: who may
//     write there decides who serves.
import { readFileSync } from "node:fs";
import { codeOf, systemText, usageError } from "../volume/errors.js";
import { defaultTiming, type LeaseTiming, timingOf } from "./lease.js";

export interface Endpoint {
  readonly host: string;
  readonly port: number;
}

export interface EtcdOptions {
  readonly endpoints: readonly Endpoint[];
  /** of all keys, without a slash at its end */
  readonly prefix: string;
  readonly user: { readonly name: string; readonly password: string } | undefined;
  readonly tls: { readonly ca?: string; readonly cert?: string; readonly key?: string } | undefined;
  /** of the grants that are claimed here; others' are as long as their records say */
  readonly timing: LeaseTiming;
}

const defaultPort = 2379;
const defaultPrefix = "/csnap/default";
const optionNames = ["prefix", "tls", "ca", "cert", "key", "user", "password-file", "insecure", "grant"];
const example = "etcd://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379?ca=/etc/csnap/etcd-ca.pem";

/** USAGE in one line. */
export function parseEtcdUrl(url: string): EtcdOptions {
  const match = /^etcd:\/\/([^/?#]+)\/?(?:\?(.*))?$/.exec(url);
  if (!match?.[1]) throw wrong(url, `is not like ${example}`);
  const query = new URLSearchParams(match[2] ?? "");
  for (const name of query.keys())
    if (!optionNames.includes(name))
      throw wrong(url, `has option '${name}': it is one of ${optionNames.join(", ")}`);
  const endpoints = match[1].split(",").map((text) => parseEndpoint(url, text));
  const tls = parseTls(url, query);
  const isPlain = tls === undefined && query.get("insecure") !== "1";
  const far = endpoints.find(({ host }) => !isLoopback(host));
  if (isPlain && far)
    throw wrong(
      url,
      `would talk to ${far.host} without TLS: add tls=1 or ca=FILE, or insecure=1 if that is wanted`,
    );
  const prefix = parsePrefix(url, query.get("prefix"));
  const timing = parseGrant(url, query.get("grant"));
  return { endpoints, prefix, user: parseUser(url, query), tls, timing };
}

function parseEndpoint(url: string, text: string): Endpoint {
  const match = /^(?:\[([0-9a-fA-F:]+)\]|([A-Za-z0-9._-]+))(?::(\d{1,5}))?$/.exec(text);
  const host = match?.[1] ?? match?.[2];
  const port = Number(match?.[3] ?? defaultPort);
  if (host === undefined || port < 1 || port > 65535)
    throw wrong(url, `has endpoint '${text}': it is HOST:PORT`);
  return { host, port };
}

function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || /^127\./.test(host);
}

function parsePrefix(url: string, text: string | null): string {
  const prefix = text ?? defaultPrefix;
  if (!/^(\/[A-Za-z0-9._-]+)+$/.test(prefix))
    throw wrong(url, `has prefix '${prefix}': it is like ${defaultPrefix}`);
  return prefix;
}

/** Shorter than 2 s a busy host would lose it for nothing; past 30 s a lost one is missed for too long. */
function parseGrant(url: string, text: string | null): LeaseTiming {
  if (text === null) return defaultTiming;
  const seconds = /^\d{1,2}(\.\d)?$/.test(text) ? Number(text) : 0;
  if (seconds < 2 || seconds > 30) throw wrong(url, `has grant '${text}': it is 2 to 30, in seconds`);
  return timingOf(seconds * 1000);
}

function parseTls(url: string, query: URLSearchParams): EtcdOptions["tls"] {
  const [ca, cert, key] = ["ca", "cert", "key"].map((name) => readNamed(url, query, name));
  if ((cert === undefined) !== (key === undefined)) throw wrong(url, "needs both cert and key, or neither");
  if (ca === undefined && cert === undefined && query.get("tls") !== "1") return undefined;
  return { ...(ca !== undefined && { ca }), ...(cert !== undefined && key !== undefined && { cert, key }) };
}

function parseUser(url: string, query: URLSearchParams): EtcdOptions["user"] {
  const name = query.get("user");
  const password = readNamed(url, query, "password-file")?.replace(/\r?\n$/, "");
  if (name === null && password === undefined) return undefined;
  if (name === null || password === undefined)
    throw wrong(url, "needs both user and password-file, or neither");
  return { name, password };
}

function readNamed(url: string, query: URLSearchParams, name: string): string | undefined {
  const path = query.get(name);
  if (path === null) return undefined;
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    throw wrong(url, `names a file that can't be read (${codeOf(error)}: ${systemText(error)})`);
  }
}

function wrong(url: string, how: string): Error {
  return usageError(`broker URL '${url}' ${how}`);
}
