/** The server is killed with -9 while first writes are staged, and started again. */
import { setTimeout as pause } from "node:timers/promises";
import { addressOf, ConnectionLost, NbdClient } from "../../support/nbd-client.js";
import { seededRandom } from "../../support/random.js";
import type { Running } from "./contestant.js";
import type { Csnap } from "./csnap.js";
import { amountRow } from "./rows.js";
import type { Circumstances, Scenario } from "./scenario.js";

const NAME = "open after a crash";
const BLOCK_BYTES = 4096;
const DEPTH = 64;
const ANSWER_LIMIT_MS = 60_000;

/** Writes at random, many at once, until the server is gone. */
async function writeUntilLost(client: NbdClient, blocks: number, seed: number): Promise<void> {
  const random = seededRandom(seed);
  const data = Buffer.alloc(BLOCK_BYTES, 0xc3);
  const worker = async () => {
    for (;;) await client.write(Math.floor(random() * blocks) * BLOCK_BYTES, data);
  };
  const ends = await Promise.allSettled(Array.from({ length: DEPTH }, worker));
  for (const end of ends)
    if (end.status === "rejected" && !(end.reason instanceof ConnectionLost)) throw end.reason;
}

/** Bytes that were staged just before it. */
async function crash(csnap: Csnap, running: Running, seconds: number, seed: number): Promise<number> {
  const client = await NbdClient.open(addressOf(running.uri), { timeoutMs: ANSWER_LIMIT_MS });
  const writing = writeUntilLost(client, csnap.bytes / BLOCK_BYTES, seed);
  await pause(1000 * seconds);
  const { store } = await csnap.control.status();
  await csnap.kill();
  await writing;
  client.destroy();
  return store.staged;
}

async function run({ csnap, rounds, seconds }: Circumstances): Promise<object[]> {
  const [open, settled, staged]: [number[], number[], number[]] = [[], [], []];
  for (let round = 0; round < rounds; round++) {
    const first = await csnap.start("unix");
    await csnap.shareAll();
    staged.push(await crash(csnap, first, seconds, round));
    const start = performance.now();
    const second = await csnap.start("unix");
    const client = await NbdClient.open(addressOf(second.uri));
    await client.read(0, BLOCK_BYTES);
    open.push(performance.now() - start);
    await csnap.settled();
    settled.push(performance.now() - start);
    await client.disconnect();
    await second.stop();
  }
  const label = { workload: NAME, server: "csnap" };
  const mib = staged.map((bytes) => bytes / 2 ** 20);
  return [
    amountRow({ ...label, measure: "from start to the first answered read" }, "ms", open),
    amountRow({ ...label, measure: "from start until nothing is staged" }, "ms", settled),
    amountRow({ ...label, measure: "staged before the kill" }, "MiB", mib),
  ];
}

export const openAfterCrash: Scenario = { name: NAME, ours: "csnap, crash", run };
