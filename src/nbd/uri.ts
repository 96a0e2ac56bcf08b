/**
 * Prints NBD URIs, as `csnap serve` announces them and clients (libnbd, qemu, nbd-client) read them; reads
 * them back for the agent.
 *
 * 1. Whatever bytes a socket path or export name has, the URI parses back to the same.
 */
import { usageError } from "../volume/errors.js";
import { DEFAULT_PORT } from "./wire.js";

export type ListenerAddress =
  | { readonly transport: "unix"; readonly path: string }
  | { readonly transport: "tcp"; readonly host: string; readonly port: number };

/**
 * `nbd://HOST:PORT/NAME` or `nbd+unix:///NAME?socket=PATH`; `nbds` where TLS is required. An empty name is
 * the volume's origin.
 */
export function nbdUri(address: ListenerAddress, tlsRequired: boolean, exportName = ""): string {
  const scheme = tlsRequired ? "nbds" : "nbd";
  const name = encode(exportName, /[A-Za-z0-9\-._~@:/]/);
  if (address.transport === "unix") {
    return `${scheme}+unix:///${name}?socket=${encode(address.path, /[A-Za-z0-9\-._~/]/)}`;
  }
  const host = address.host.includes(":") ? `[${address.host}]` : address.host;
  return `${scheme}://${host}:${address.port}/${name}`;
}

function encode(text: string, plain: RegExp): string {
  return [...Buffer.from(text)]
    .map((byte) => {
      const char = String.fromCharCode(byte);
      return byte < 0x80 && plain.test(char) ? char : `%${byte.toString(16).toUpperCase().padStart(2, "0")}`;
    })
    .join("");
}

export interface NbdUri {
  readonly tls: boolean;
  readonly address: ListenerAddress;
  /** '' is the volume's origin */
  readonly exportName: string;
}

/** The reverse of nbdUri(). Throws a usage error where the text is not such a URI. */
export function parseNbdUri(text: string): NbdUri {
  const match = /^(nbds?)(\+unix)?:\/\/([^/?]*)(?:\/([^?]*))?(?:\?(.*))?$/.exec(text);
  if (!match) throw usageError(`'${text}' is not an NBD URI: nbd://HOST:PORT or nbd+unix:///?socket=PATH`);
  const tls = match[1] === "nbds";
  const exportName = decode(match[4] ?? "", text);
  if (match[2] !== undefined) {
    const path = /(?:^|&)socket=([^&]+)/.exec(match[5] ?? "")?.[1];
    if (path === undefined) throw usageError(`'${text}' names no socket: nbd+unix:///?socket=PATH`);
    return { tls, address: { transport: "unix", path: decode(path, text) }, exportName };
  }
  const where = /^(?:\[([0-9A-Fa-f:.%]+)\]|([^:[\]@]+))(?::([0-9]{1,5}))?$/.exec(match[3] ?? "");
  const host = where?.[1] ?? where?.[2];
  const port = where?.[3] === undefined ? DEFAULT_PORT : Number(where[3]);
  if (host === undefined || port < 1 || port > 65535)
    throw usageError(`'${text}' is not an NBD URI: nbd://HOST:PORT or nbd+unix:///?socket=PATH`);
  return { tls, address: { transport: "tcp", host, port }, exportName };
}

function decode(part: string, uri: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    throw usageError(`'${uri}': '${part}' is not percent-encoded`);
  }
}
