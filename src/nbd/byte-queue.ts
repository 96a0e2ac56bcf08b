/**
 * Received bytes not consumed yet: append at the end, take from the front. Used by handshake.ts.
 *
 * 1. Appending costs the appended bytes (amortised), also when a client sends one byte at a time.
 * 2. What `take` returns is a copy, never a view of memory that a later append reuses.
 */
export class ByteQueue {
  #bytes = Buffer.alloc(256);
  #start = 0;
  #end = 0;

  get length(): number {
    return this.#end - this.#start;
  }

  append(bytes: Uint8Array): void {
    if (this.#end + bytes.length > this.#bytes.length) {
      const needed = this.length + bytes.length;
      const roomy = needed * 2 <= this.#bytes.length;
      const target = roomy ? this.#bytes : Buffer.alloc(Math.max(256, needed * 2));
      this.#bytes.copy(target, 0, this.#start, this.#end);
      this.#end = this.length;
      this.#start = 0;
      this.#bytes = target;
    }
    this.#bytes.set(bytes, this.#end);
    this.#end += bytes.length;
  }

  /** The next `count` bytes; the caller has checked that they are there. */
  take(count: number): Buffer {
    if (count > this.length) throw new RangeError(`take ${count} of ${this.length} bytes`);
    const bytes = Buffer.from(this.#bytes.subarray(this.#start, this.#start + count));
    this.skip(count);
    return bytes;
  }

  /** Drops up to `count` bytes; returns how many were there to drop. */
  skip(count: number): number {
    const dropped = Math.min(count, this.length);
    this.#start += dropped;
    if (this.#start === this.#end) {
      this.#start = 0;
      this.#end = 0;
      // A burst must not stay allocated for the life of an idle connection.
      if (this.#bytes.length > 4096) this.#bytes = Buffer.alloc(256);
    }
    return dropped;
  }
}
