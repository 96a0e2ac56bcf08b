#!/usr/bin/python3
"""The transmission phase in another process, for tests of the hand-over: it holds a dup of the client's socket
as descriptor 3 and serves an export of zeros, while the process that did the handshake has closed its own.

usage: transmission-peer.py STRUCTURED(0|1) INITIAL_BYTES_HEX
"""
import socket
import struct
import sys

structured = sys.argv[1] == "1"
pending = bytes.fromhex(sys.argv[2])
client = socket.socket(fileno=3)
client.setblocking(True)


def receive(count):
    global pending
    while len(pending) < count:
        more = client.recv(65536)
        if not more:
            sys.exit(0)
        pending += more
    taken, pending = pending[:count], pending[count:]
    return taken


while True:
    magic, flags, kind, cookie, offset, length = struct.unpack(">IHHQQI", receive(28))
    if magic != 0x25609513:
        sys.exit("bad request magic %x" % magic)
    if kind == 2:
        break
    if kind == 1:
        receive(length)
    if kind == 7:
        client.sendall(struct.pack(">IHHQIIII", 0x668E33EF, 1, 5, cookie, 12, 1, length, 3))
    elif kind == 0 and structured:
        client.sendall(struct.pack(">IHHQIQI", 0x668E33EF, 1, 2, cookie, 12, offset, length))
    else:
        client.sendall(struct.pack(">IIQ", 0x67446698, 0, cookie) + bytes(length if kind == 0 else 0))
client.shutdown(socket.SHUT_RDWR)
