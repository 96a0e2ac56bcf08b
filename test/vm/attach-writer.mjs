/**
 * Writes records with growing numbers to a file, each synced before the next, and prints `NUMBER TIME` of every one that
 * is on stable storage (TIME: seconds of CLOCK_MONOTONIC). With `verify LAST`: the file must hold LAST or the one after
 * it, and every record below it that its slot still owes. Started by attach-restarts.mjs.
 *
 *     attach-writer.mjs FILE write | attach-writer.mjs FILE verify LAST
 *
 * AW1 A record's number is printed only after its fsync has returned.
 */
import assert from "node:assert/strict";
import { fsyncSync, openSync, readSync, writeSync } from "node:fs";

const BYTES = 4096;
const SLOTS = 64;
const [path, purpose, last] = process.argv.slice(2);

function record(number) {
  const bytes = Buffer.alloc(BYTES, number & 0xff);
  bytes.writeBigUInt64LE(BigInt(number));
  return bytes;
}

if (purpose === "write") {
  const fd = openSync(path, "w+");
  for (let number = 1; ; number++) {
    assert.equal(writeSync(fd, record(number), 0, BYTES, (number % SLOTS) * BYTES), BYTES);
    fsyncSync(fd);
    writeSync(1, `${number} ${Number(process.hrtime.bigint()) / 1e9}\n`);
  }
} else {
  const fd = openSync(path, "r");
  const durable = Number(last);
  assert.ok(durable > SLOTS, `only ${durable} records were written`);
  for (let slot = 0; slot < SLOTS; slot++) {
    const bytes = Buffer.alloc(BYTES);
    readSync(fd, bytes, 0, BYTES, slot * BYTES);
    const found = Number(bytes.readBigUInt64LE());
    const owed = durable - ((((durable - slot) % SLOTS) + SLOTS) % SLOTS);
    const next = owed + SLOTS === durable + 1 ? durable + 1 : owed;
    assert.ok(found === owed || found === next, `slot ${slot} holds ${found}, owed is ${owed}`);
    assert.ok(bytes.equals(record(found)), `record ${found} is torn`);
  }
  console.log(`records up to ${durable} are there`);
}
