/** Images as a benchmark needs them: how they were filled decides what a small write costs, whoever serves them. */
import { execFile } from "node:child_process";
import { closeSync, fdatasyncSync, fsyncSync, openSync, writeSync } from "node:fs";
import { promisify } from "node:util";
import { seededRandom } from "../../support/random.js";

const run = promisify(execFile);
const BLOCK_BYTES = 4096;

/**
 * Data that neither compresses to zeros nor repeats by the chunk, written in pieces of 4 KiB: the page cache then holds
 * small folios. In a large one a 4 KiB write costs several times as much.
 */
export function fillImage(path: string, bytes: number): void {
  const block = Buffer.alloc(BLOCK_BYTES);
  const fd = openSync(path, "w");
  for (let at = 0; at < bytes; at += block.length) {
    block.fill((at / block.length) & 0xff || 1);
    block.writeUIntLE(at, 0, 6);
    writeSync(fd, block, 0, block.length, at);
  }
  fsyncSync(fd);
  closeSync(fd);
}

/** What the page cache holds of the file leaves it. While nobody writes it. */
export async function dropCache(path: string): Promise<void> {
  await run("sync", [path]);
  await run("dd", [`if=${path}`, "iflag=nocache", "count=0"]);
}

/**
 * Writes per second that the device below an image takes: 4 KiB each, at random, for so long, and the sync that makes
 * them durable counted. They change the image.
 */
export function deviceWriteRate(path: string, bytes: number, seconds: number, seed: number): number {
  const random = seededRandom(seed);
  const block = Buffer.alloc(BLOCK_BYTES, 0xa5);
  const blocks = Math.floor(bytes / BLOCK_BYTES);
  const fd = openSync(path, "r+");
  try {
    const start = performance.now();
    let writes = 0;
    while (performance.now() - start < seconds * 1000) {
      for (let i = 0; i < 64; i++)
        writeSync(fd, block, 0, block.length, Math.floor(random() * blocks) * BLOCK_BYTES);
      writes += 64;
    }
    fdatasyncSync(fd);
    return (writes * 1000) / (performance.now() - start);
  } finally {
    closeSync(fd);
  }
}
