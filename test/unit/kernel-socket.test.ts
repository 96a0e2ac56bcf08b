// The addon's small calls around a socket for the kernel: its options as another program reads them, the descriptor as
// a service manager receives it. (With a kernel's nbd: test/vm/netlink.test.ts.)
import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, mkdtempSync, openSync, rmSync } from "node:fs";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { afterAll, describe, expect, it } from "vitest";
import { native } from "../../src/native.js";

const directory = mkdtempSync(join(tmpdir(), "csnap-kernel-socket-"));
afterAll(() => rmSync(directory, { recursive: true }));

/** Python with descriptor 3, its output by lines. */
function python(script: string, fd: number | "ignore", ...args: string[]) {
  const child = spawn("/usr/bin/python3", ["-c", script, ...args], {
    stdio: ["ignore", "pipe", "inherit", fd],
  });
  if (child.stdout === null) throw new Error("python3 has no output");
  return createInterface({ input: child.stdout })[Symbol.asyncIterator]();
}

function descriptorOf(socket: Socket): number {
  const { _handle: handle } = socket as unknown as { _handle: { fd: number } };
  return handle.fd;
}

describe("prepareKernelSocket", () => {
  it("gives a TCP socket the kernel's way to notice a vanished host", async () => {
    const server = createServer().listen(0, "127.0.0.1");
    await once(server, "listening");
    const accepted = once(server, "connection") as Promise<[Socket]>;
    const socket = connect((server.address() as AddressInfo).port, "127.0.0.1");
    await once(socket, "connect");
    const [peer] = await accepted;
    const fd = native.prepareKernelSocket(descriptorOf(socket), 12_345);
    const script = `
import os, socket
s = socket.socket(fileno=3)
t = socket.IPPROTO_TCP
print([os.get_blocking(3), s.getsockopt(t, socket.TCP_NODELAY) != 0,
  s.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0,
  s.getsockopt(t, socket.TCP_KEEPIDLE), s.getsockopt(t, socket.TCP_KEEPINTVL), s.getsockopt(t, socket.TCP_KEEPCNT),
  s.getsockopt(t, 18)])`;
    const lines = python(script, fd);
    expect((await lines.next()).value).toBe("[True, True, True, 5, 2, 3, 12345]");

    // The copy outlives the original, and shutting it down ends the link.
    socket.destroy();
    await once(socket, "close");
    const ended = once(peer.resume(), "end");
    native.shutdownSocket(fd);
    await ended;
    native.shutdownSocket(fd);
    native.closeDescriptor(fd);
    expect(() => native.closeDescriptor(fd)).toThrow(`descriptor ${fd} to close: Bad file descriptor`);
    peer.destroy();
    server.close();
  });

  it("refuses what the kernel would not take", () => {
    const [near, far] = native.socketPair();
    const copy = native.prepareKernelSocket(near, 1000);
    for (const fd of [near, far, copy]) native.closeDescriptor(fd);
    const file = openSync("/dev/null", "r");
    expect(() => native.prepareKernelSocket(file, 1000)).toThrow(
      /^descriptor \d+ is neither a TCP nor a unix stream socket; the kernel takes no other$/,
    );
    closeSync(file);
    expect(() => native.prepareKernelSocket(file, 1000)).toThrow(/can't be duplicated: Bad file descriptor/);
    expect(() => native.prepareKernelSocket(-1, 1000)).toThrow(TypeError);
    expect(() => native.prepareKernelSocket(1.5, 1000)).toThrow(TypeError);
  });
});

describe("storeDescriptor", () => {
  it("hands a descriptor to the service manager under a name", async () => {
    const path = join(directory, "notify");
    const script = `
import os, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
print("ready", flush=True)
text, fds, flags, address = socket.recv_fds(s, 4096, 4)
os.write(fds[0], b"through")
print(repr(text), len(fds), flush=True)`;
    const lines = python(script, "ignore", path);
    expect((await lines.next()).value).toBe("ready");
    const [near, far] = native.socketPair();
    expect(native.storeDescriptor(path, "nbd-1", near)).toBe(true);
    expect((await lines.next()).value).toBe("b'FDSTORE=1\\nFDNAME=nbd-1' 1");
    native.closeDescriptor(near);
    native.closeDescriptor(far);
  });

  it("says where it failed, and takes no name that would say more", () => {
    expect(native.storeDescriptor(join(directory, "nobody"), "nbd-1", 0)).toBe(false);
    expect(native.storeDescriptor("", "nbd-1", 0)).toBe(false);
    expect(native.storeDescriptor(join(directory, "notify"), "a\nREADY=1", 0)).toBe(false);
  });
});

describe("netlink calls", () => {
  it("refuse what is no argument before they ask the kernel", () => {
    const connectWith = (options: object) => () => native.nbdConnect(options as never);
    expect(connectWith({})).toThrow("sizeBytes must be a whole number");
    expect(() => native.nbdConnect(undefined as never)).toThrow("options must be an object");
    const whole = { sizeBytes: 4096, blockBytes: 512, transmissionFlags: 1, timeoutSeconds: 0 };
    const more = { ...whole, deadConnectionTimeoutSeconds: 1, backend: "x" };
    expect(connectWith({ ...more, fds: 7 })).toThrow("fds must be an array");
    expect(connectWith({ ...more, fds: ["1"] })).toThrow("fds must hold descriptors");
    expect(connectWith({ ...more, fds: [-1] })).toThrow("fds must hold descriptors");
    expect(connectWith({ ...more, index: -1, fds: [] })).toThrow("index must be a number from 0");
    expect(() => native.nbdDisconnect(-1)).toThrow("an index is expected");
    expect(() => native.watchDeadLinks(undefined as never)).toThrow("a function is expected");
    expect(() => native.probeDevice(7 as never)).toThrow("a path is expected");
  });
});
