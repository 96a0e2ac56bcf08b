// `kill -9` of the server under verified load (W8, W6, W7): again and again on one volume, at seeded moments, also in
// the middle of creating and deleting snapshots, and during recovery. 20 rounds, 100 with CSNAP_TIER=full.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { CheckRecord } from "../../src/volume/model.js";
import { MAIN, Sandbox, type Server } from "../support/csnap.js";
import {
  Kill9Volume,
  type Moment,
  type Plan,
  type Random,
  REQUESTS_AT_ONCE,
  SIZE_BYTES,
  seeded,
  VOLUME,
} from "./kill9-volume.js";

const ROUNDS = process.env.CSNAP_TIER === "full" ? 100 : 20;
const SEED = Number(process.env.CSNAP_SEED ?? Date.now() % 2 ** 31);
const ROUND_LIMIT_MS = 4000;
const RECOVERY_MS = 1500;

const sandbox = new Sandbox();
const random = seeded(SEED);
let server: Server;
let volume: Kill9Volume;
let broken = false;

beforeAll(async () => {
  console.log(`CSNAP_SEED=${SEED}`);
  await sandbox.init(VOLUME, String(SIZE_BYTES), "160M");
  server = await sandbox.serve(VOLUME);
  volume = new Kill9Volume(sandbox, random, server);
});

afterAll(async () => {
  if (!broken) return sandbox.close();
  await server?.kill();
  console.log(`kept for a look: ${sandbox.directory}`);
});

function choosePlan(random: Random): Plan {
  const moments: [Moment, number][] = [
    ["acked", 2500],
    ["create", 8],
    ["created", 8],
    ["delete", 6],
    ["deleted", 6],
  ];
  const [moment, most] = moments[random(moments.length)] as [Moment, number];
  return { moment, count: 1 + random(most), delayMs: random(2) * random(25) };
}

/** A server that is killed before it says that it is ready, or soon after. */
async function killWhileRecovering(delayMs: number): Promise<void> {
  const child = spawn(process.execPath, [MAIN, "serve", VOLUME], { env: sandbox.env, stdio: "ignore" });
  const ended = once(child, "exit");
  const timer = setTimeout(() => child.kill("SIGKILL"), delayMs);
  const [status, signal] = (await ended) as [number | null, NodeJS.Signals | null];
  clearTimeout(timer);
  expect([status, signal]).toEqual([null, "SIGKILL"]);
}

async function checkIsClean(): Promise<CheckRecord> {
  const report = await sandbox.json<CheckRecord>("check", VOLUME, "--data");
  expect(report).toMatchObject({ clean: true, problems: [], lost_entries: 0 });
  return report;
}

describe(`kill -9 under load (CSNAP_SEED=${SEED})`, () => {
  for (let round = 1; round <= ROUNDS; round++) {
    it(`round ${round}: nothing acknowledged is lost, no snapshot changes`, async (context) => {
      if (broken) context.skip("an earlier round failed");
      broken = true;
      const plan = choosePlan(random);
      await volume.runUntilKilled(plan, ROUND_LIMIT_MS);
      const { chunks_verified: chunks } = await checkIsClean();
      if (random(4) === 0) {
        await killWhileRecovering(random(RECOVERY_MS));
        await checkIsClean();
      }
      const durability = random(4) === 0 ? "sync" : "flush";
      server = await sandbox.serve(VOLUME, "--durability", durability);
      await volume.verify(server);
      const { acked, unanswered, created, deleted, cutOff } = volume.tally;
      console.log(
        `round ${round}: killed ${plan.delayMs} ms after ${plan.moment} ${plan.count}: ${acked} acknowledged, ` +
          `${unanswered} not; ${created} snapshots created, ${deleted} deleted, ${cutOff} cut off, ` +
          `${volume.snapshots.size} live; ${chunks} chunks checked; next: ${durability}`,
      );
      expect(unanswered).toBe(REQUESTS_AT_ONCE);
      broken = false;
    });
  }

  it("then stops in order, and the origin alone is current", async (context) => {
    if (broken) context.skip("an earlier round failed");
    broken = true;
    expect(await server.stop()).toBe(0);
    volume.model.settle(readFileSync(sandbox.path(`${VOLUME}.img`)));
    expect((await checkIsClean()).snapshots).toBe(volume.snapshots.size);
    broken = false;
  });
});
