/**
 * What Node has no public interface for: the file descriptor under a socket, a real stop of reading, and
 * the socket under a TLS socket. connection.ts and tls-worker.ts are the only callers; test/wire proves
 * each with real sockets, so that a Node release that changes them is noticed.
 *
 * 1. After `stopReading` no byte moves from the kernel into JavaScript until the stream is resumed.
 * 2. `socket.destroy()` closes this process's descriptor only: libuv closes without shutdown(2), so a dup
 *    of it, in another thread or process, goes on unharmed.
 */
import type { Socket } from "node:net";
import type { TLSSocket } from "node:tls";

interface StreamHandle {
  readonly fd: number;
  reading: boolean;
  readStop(): number;
}

function handleOf(socket: Socket): StreamHandle | undefined {
  const handle: unknown = Reflect.get(socket, "_handle");
  return isStreamHandle(handle) ? handle : undefined;
}

function isStreamHandle(handle: unknown): handle is StreamHandle {
  return (
    typeof handle === "object" &&
    handle !== null &&
    typeof Reflect.get(handle, "fd") === "number" &&
    typeof Reflect.get(handle, "readStop") === "function"
  );
}

/** The descriptor, or undefined once the socket is closed. It stays the socket's: dup it to keep it. */
export function descriptorOf(socket: Socket): number | undefined {
  const fd = handleOf(socket)?.fd ?? -1;
  return fd >= 0 ? fd : undefined;
}

/** Pauses the stream and the handle beneath; `socket.resume()` starts both again. */
export function stopReading(socket: Socket): void {
  socket.pause();
  const handle = handleOf(socket);
  if (handle === undefined) return;
  // `pause` alone would go on reading ahead up to the stream's high-water mark.
  handle.readStop();
  handle.reading = false;
}

/** Bytes that the stream has read but not delivered; call after `stopReading`. */
export function takeUndelivered(socket: Socket): Buffer {
  const bytes: unknown = socket.readableLength > 0 ? socket.read() : null;
  return Buffer.isBuffer(bytes) ? bytes : Buffer.alloc(0);
}

/** The socket that a TLS socket was built on. */
export function socketUnder(secure: TLSSocket): Socket | undefined {
  const parent: unknown = Reflect.get(secure, "_parent");
  return typeof parent === "object" && parent !== null ? (parent as Socket) : undefined;
}
