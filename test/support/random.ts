// Random numbers that a seed repeats.

/** The seed of a test: $CSNAP_SEED, else the test's own. The test prints it when it fails. */
export function testSeed(own: number): number {
  return Number(process.env.CSNAP_SEED ?? own);
}

/** Numbers from 0 up to 1; splitmix32. */
export function seededRandom(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x9e3779b9) | 0;
    let mixed = state ^ (state >>> 16);
    mixed = Math.imul(mixed, 0x21f0aaad);
    mixed ^= mixed >>> 15;
    mixed = Math.imul(mixed, 0x735a2d97);
    mixed ^= mixed >>> 15;
    return (mixed >>> 0) / 2 ** 32;
  };
}
