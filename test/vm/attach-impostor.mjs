/**
 * A server that says of itself whatever a test wants, behind the address that the broker tells: for the refusals of
 * attach-refusals.mjs. It speaks NBD's handshake and the four requests of the kernel, keeps nothing, and counts.
 *
 * AI1 It claims and publishes through the broker as a server does: to the agent it is one.
 * AI2 It counts every byte that comes after a handshake ended in transmission, so that "nothing was written" is measured.
 */
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:net";
import { openBroker } from "../../dist/broker/open.js";
import {
  encodeReply,
  encodeU16,
  encodeU32,
  encodeU64,
  Info,
  NBD_MAGIC,
  OPTION_HEADER_BYTES,
  OPTION_MAGIC,
  Option,
  Reply,
} from "../../dist/nbd/wire.js";
import { stateDir, work } from "./attach-rig.mjs";

const REQUEST_BYTES = 28;
const SIMPLE_REPLY = 0x67446698;
const Command = { READ: 0, WRITE: 1, DISCONNECT: 2 };

export class Impostor {
  /** transmissions begun, bytes received in them, bytes of writes among those */
  transmissions = 0;
  bytes = 0;
  written = 0;
  #sockets = new Set();
  #server = createServer((socket) => {
    this.#sockets.add(socket);
    socket.on("error", () => {});
    socket.on("close", () => this.#sockets.delete(socket));
    this.#serve(socket).catch(() => socket.destroy());
  });

  /** @param identity an Identity of dial.ts; @param storeEpoch of the volume it stands in for */
  async start(identity, storeEpoch) {
    this.identity = identity;
    const path = `${work}/impostor.sock`;
    this.#server.listen(path);
    await once(this.#server, "listening");
    this.broker = openBroker("local:", { stateDir });
    this.grant = await this.broker.claim("disk1", {
      instance: randomUUID(),
      storeEpoch,
      volumeUuid: this.claimedUuid ?? identity.volumeUuid,
      purpose: "serve",
    });
    await this.grant.publish({ uris: [`nbd+unix:///?socket=${path}`] });
  }

  async stop() {
    await this.grant.withdraw("the test is over");
    for (const socket of this.#sockets) socket.destroy();
    this.#server.close();
    await this.grant.release();
    await this.broker.close();
  }

  async #serve(socket) {
    const { sizeBytes, transmissionFlags, volumeUuid, durabilityId } = this.identity;
    const take = reader(socket);
    socket.write(Buffer.concat([NBD_MAGIC, OPTION_MAGIC, encodeU16(3)]));
    await take(4);
    for (;;) {
      const header = await take(OPTION_HEADER_BYTES);
      const option = header.readUInt32BE(8);
      await take(header.readUInt32BE(12));
      if (option !== Option.GO && option !== Option.INFO) throw new Error(`option ${option}`);
      const description = `csnap volume=${volumeUuid} durability=${durabilityId} epoch=${this.grant.epoch}`;
      const about = Buffer.concat([
        encodeU16(Info.EXPORT),
        encodeU64(sizeBytes),
        encodeU16(transmissionFlags),
      ]);
      const block = Buffer.concat([
        encodeU16(Info.BLOCK_SIZE),
        encodeU32(1),
        encodeU32(4096),
        encodeU32(32 << 20),
      ]);
      socket.write(
        Buffer.concat([
          encodeReply(option, Reply.INFO, about),
          encodeReply(option, Reply.INFO, block),
          encodeReply(
            option,
            Reply.INFO,
            Buffer.concat([encodeU16(Info.DESCRIPTION), Buffer.from(description)]),
          ),
          encodeReply(option, Reply.ACK),
        ]),
      );
      if (option === Option.GO) break;
    }
    this.transmissions++;
    for (;;) {
      const request = await take(REQUEST_BYTES);
      const command = request.readUInt16BE(6);
      const length = request.readUInt32BE(24);
      this.bytes += REQUEST_BYTES;
      if (command === Command.DISCONNECT) break;
      if (command === Command.WRITE) {
        await take(length);
        this.bytes += length;
        this.written += length;
      }
      const content = command === Command.READ ? Buffer.alloc(length) : Buffer.alloc(0);
      socket.write(Buffer.concat([encodeU32(SIMPLE_REPLY), encodeU32(0), request.subarray(8, 16), content]));
    }
    socket.end();
  }
}

/** So many bytes, one taker at a time. */
function reader(socket) {
  return async (bytes) => {
    for (;;) {
      const data = bytes === 0 ? Buffer.alloc(0) : socket.read(bytes);
      if (data !== null) return data;
      if (socket.readableEnded || socket.destroyed) throw new Error("closed");
      await Promise.race([once(socket, "readable"), once(socket, "close")]);
    }
  };
}
