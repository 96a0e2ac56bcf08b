// Connects to a server and agrees on an export, for the kernel (GO) or only to look (INFO).
//
// DI1 The descriptor returned is a dup that libuv never reads from again; nothing that the server
//     sent is lost (it sends nothing between GO's last reply and the first request).
// DI2 Every way out but success leaves no socket behind.
import { connect, type Socket } from "node:net";
import type { NativeBinding } from "../native.js";
import { ClientHandshake, type ServerOffer } from "../nbd/client-handshake.js";
import { descriptorOf, stopReading, takeUndelivered } from "../nbd/socket-handle.js";
import { parseNbdUri } from "../nbd/uri.js";
import type { ReplyErrorName } from "../nbd/wire.js";
import { CsnapError, systemText } from "../volume/errors.js";

/** What must be the same whenever a connection of an attachment is installed (F6). */
export interface Identity {
  readonly volumeUuid: string;
  readonly durabilityId: string;
  readonly sizeBytes: number;
  readonly transmissionFlags: number;
}

export interface Agreed {
  readonly identity: Identity;
  readonly epoch: bigint;
  readonly offer: ServerOffer;
}

export interface Dialed extends Agreed {
  /** for the kernel; the caller closes it */
  readonly fd: number;
}

/** The server answered, and its answer is no. */
export class DialRefused extends CsnapError {
  constructor(
    readonly reply: ReplyErrorName | "UNKNOWN_ERROR",
    message: string,
  ) {
    super("ACCESS", message);
    this.name = "DialRefused";
  }
}

export interface DialOptions {
  readonly uri: string;
  readonly exportName: string;
  /** connecting and handshake together */
  readonly limitMs: number;
  readonly signal?: AbortSignal;
}

type DialNative = Pick<NativeBinding, "prepareKernelSocket">;

/** @param silenceMs unacknowledged data for so long ends a TCP connection */
export async function dial(native: DialNative, options: DialOptions, silenceMs: number): Promise<Dialed> {
  return await handshake("go", options, (socket, offer) => {
    stopReading(socket);
    if (takeUndelivered(socket).length > 0)
      throw new CsnapError("PROTOCOL", `${options.uri} sends replies before the first request`);
    const fd = descriptorOf(socket);
    if (fd === undefined) throw new CsnapError("PROTOCOL", `${options.uri} has closed the connection`);
    const agreed = agreedOn(options, offer);
    return { ...agreed, fd: native.prepareKernelSocket(fd, silenceMs) };
  });
}

/** What dial() would find, without taking anything. */
export async function look(options: DialOptions): Promise<Agreed> {
  return await handshake("info", options, (_socket, offer) => agreedOn(options, offer));
}

function agreedOn({ uri, exportName }: DialOptions, offer: ServerOffer): Agreed {
  const match = /^csnap volume=(\S+) durability=(\S+) epoch=(\d+)$/.exec(offer.description);
  if (!match?.[1] || !match[2] || !match[3])
    throw new CsnapError("PROTOCOL", `${uri} serves ${exportName}, but is no csnap server`);
  const identity = {
    volumeUuid: match[1],
    durabilityId: match[2],
    sizeBytes: offer.sizeBytes,
    transmissionFlags: offer.transmissionFlags,
  };
  return { identity, epoch: BigInt(match[3]), offer };
}

function openSocket(uri: string): Socket {
  const { tls, address } = parseNbdUri(uri);
  if (tls)
    throw new CsnapError(
      "NOT_SUPPORTED",
      `${uri} demands TLS, which the kernel's NBD client does not speak: let the server listen without TLS behind WireGuard or IPsec`,
    );
  return address.transport === "unix" ? connect({ path: address.path }) : connect(address);
}

function handshake<T>(
  purpose: "info" | "go",
  options: DialOptions,
  use: (socket: Socket, offer: ServerOffer) => T,
): Promise<T> {
  const { uri, exportName, limitMs, signal } = options;
  /** for a person: without the agent's half */
  const name = exportName.replace(/\?.*/, "");
  return new Promise<T>((resolve, reject) => {
    const socket = openSocket(uri);
    const machine = new ClientHandshake(purpose, exportName);
    let over = false;
    const end = (settle: () => void) => {
      if (over) return;
      over = true;
      clearTimeout(timer);
      signal?.removeEventListener("abort", onAbort);
      settle();
      // libuv closes without shutdown(2): a dup goes on unharmed.
      socket.destroy();
    };
    const fail = (error: Error) => end(() => reject(error));
    const onAbort = () => fail(new CsnapError("SHUTTING_DOWN", `connecting to ${uri} was given up`));
    const timer = setTimeout(
      () => fail(new CsnapError("IO_ERROR", `${uri} has not answered for ${limitMs / 1000} s`)),
      limitMs,
    );
    signal?.addEventListener("abort", onAbort, { once: true });
    if (signal?.aborted) onAbort();
    socket.setNoDelay(true);
    socket.on("error", (error) => fail(new CsnapError("IO_ERROR", `${uri}: ${systemText(error)}`)));
    socket.on("close", () => fail(new CsnapError("IO_ERROR", `${uri} closed the connection`)));
    socket.on("data", (bytes: Buffer) => {
      for (const action of machine.receive(bytes)) {
        if (action.kind === "send") socket.write(action.bytes);
        else if (action.kind === "broken") fail(new CsnapError("PROTOCOL", `${uri}: ${action.reason}`));
        else if (action.kind === "refused")
          fail(new DialRefused(action.error, `${uri} refuses ${name}: ${action.text || action.error}`));
        else
          end(() => {
            try {
              resolve(use(socket, action.offer));
            } catch (error) {
              reject(error as Error);
            }
          });
      }
    });
  });
}
