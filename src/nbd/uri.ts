/**
 * Prints NBD URIs, as `csnap serve` announces them and clients (libnbd, qemu, nbd-client) read them.
 *
 * 1. Whatever bytes a socket path or export name has, the URI parses back to the same.
 */
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
