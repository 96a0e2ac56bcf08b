/**
 * `--allow` rules: which clients see which exports, read-only or read-write. serve parses them, then puts
 * `restrict` around the volume's export directory; the handshake knows nothing of rules.
 *
 *     RULE     = CLIENT "=" EXPORT[":" MODE] *("," EXPORT[":" MODE])
 *     CLIENT   = KIND "=" NAME     a proven name; `*` in NAME stands for any run of characters
 *              | "local"           any client on a unix socket
 *              | "anyone"          any client at all
 *     KIND     = "cn" | "dns" | "email" | "uri" | "ip"     names of the client's certificate
 *              | "psk"                                     the user of a TLS pre-shared key
 *     EXPORT   = name, `*` stands for any run of characters, the `@` of snapshots included
 *     MODE     = "ro" | "rw"       also for exports before it that have none; nothing at all means ro
 *
 *     cn=host1=vol,vol@*:ro        host1 reads the origin and every snapshot
 *     cn=host1=vol:rw,vol@*:ro     host1 writes the origin and reads every snapshot
 *     psk=alice=*:rw               alice may do everything
 *
 * 1. Rules add up; rw wins over ro. With at least one rule, what no rule allows does not exist.
 * 2. Without rules everyone may do everything who is local or has proven an identity; others only where the
 *    administrator has opened the server to the network (`--plain`).
 * 3. Whatever a rule says, an export that is read-only stays so.
 */
import type { ClientInfo, ExportDirectory, ExportInfo } from "./exports.js";
import { isRefusal, unknownExport } from "./exports.js";

export type AccessMode = "none" | "ro" | "rw";

export type ClientPattern =
  | { readonly kind: "local" }
  | { readonly kind: "anyone" }
  | { readonly kind: "name"; readonly name: RegExp };

export interface AccessRule {
  /** As the administrator wrote it. */
  readonly text: string;
  readonly client: ClientPattern;
  readonly exports: readonly { readonly name: RegExp; readonly mode: "ro" | "rw" }[];
}

export interface AccessPolicy {
  readonly rules: readonly AccessRule[];
  /** Without rules: are clients allowed that are neither local nor identified? */
  readonly openToNetwork: boolean;
}

const KINDS = ["cn", "dns", "email", "uri", "ip", "psk"];

/** Throws a RangeError whose message is the line for the user. */
export function parseAccessRule(text: string): AccessRule {
  const split = text.lastIndexOf("=");
  const clientText = split < 0 ? "" : text.slice(0, split);
  const wrong = (why: string) =>
    new RangeError(
      `--allow '${text}': ${why}; write CLIENT=EXPORT[,EXPORT…][:ro|:rw], for example cn=host1=vol:rw`,
    );
  if (clientText === "") throw wrong("it names no client");
  return {
    text,
    client: parseClient(clientText, wrong),
    exports: parseExports(text.slice(split + 1), wrong),
  };
}

function parseClient(text: string, wrong: (why: string) => RangeError): ClientPattern {
  if (text === "local" || text === "anyone") return { kind: text };
  const split = text.indexOf("=");
  const kind = split < 0 ? text : text.slice(0, split);
  if (!KINDS.includes(kind))
    throw wrong(`'${kind}' is no kind of client (${KINDS.join(", ")}, local, anyone)`);
  if (split < 0 || split === text.length - 1) throw wrong(`'${kind}' needs a name`);
  return { kind: "name", name: glob(text) };
}

function parseExports(text: string, wrong: (why: string) => RangeError): AccessRule["exports"] {
  // From the back, so that a mode reaches the exports before it.
  let mode: "ro" | "rw" = "ro";
  const exports = text
    .split(",")
    .reverse()
    .map((item) => {
      const match = /^(.+):(ro|rw)$/.exec(item);
      if (match?.[2] === "ro" || match?.[2] === "rw") mode = match[2];
      const name = match?.[1] ?? item;
      if (!/^[A-Za-z0-9._:@*-]+$/.test(name)) throw wrong(`'${name}' is no export name`);
      return { name: glob(name), mode };
    });
  return exports.reverse();
}

function glob(pattern: string): RegExp {
  const escaped = pattern.split("*").map((part) => part.replace(/[\\^$.|?+()[\]{}]/g, "\\$&"));
  return new RegExp(`^${escaped.join(".*")}$`, "su");
}

/** What this client may do with the export of this canonical name. */
export function accessMode(policy: AccessPolicy, client: ClientInfo, exportName: string): AccessMode {
  if (policy.rules.length === 0) {
    const trusted = client.local || client.identity !== undefined || policy.openToNetwork;
    return trusted ? "rw" : "none";
  }
  let mode: AccessMode = "none";
  for (const rule of policy.rules) {
    if (!isMeant(rule, client)) continue;
    for (const allowed of rule.exports) {
      if (!allowed.name.test(exportName)) continue;
      if (allowed.mode === "rw") return "rw";
      mode = "ro";
    }
  }
  return mode;
}

function isMeant(rule: AccessRule, client: ClientInfo): boolean {
  const { client: meant } = rule;
  if (meant.kind === "anyone") return true;
  if (meant.kind === "local") return client.transport === "unix";
  return client.identity?.names.some((name) => meant.name.test(name)) ?? false;
}

/** The directory as the policy lets each client see it. */
export function restrict(directory: ExportDirectory, policy: AccessPolicy): ExportDirectory {
  const seen = (client: ClientInfo, info: ExportInfo): ExportInfo | undefined => {
    const mode = accessMode(policy, client, info.name);
    if (mode === "none") return undefined;
    return mode === "ro" && !info.readOnly ? { ...info, readOnly: true } : info;
  };
  return {
    list: (client) => directory.list(client).flatMap((info) => seen(client, info) ?? []),
    resolve: (request) => {
      const info = directory.resolve(request);
      // Why an export is refused is only for those who may see it.
      if (isRefusal(info)) {
        const hidden = accessMode(policy, request.client, request.name) === "none";
        return hidden && info.refused !== "TLS_REQD" ? unknownExport(request.name) : info;
      }
      return seen(request.client, info) ?? unknownExport(request.name);
    },
  };
}
