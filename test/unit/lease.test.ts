// The argument of src/broker/lease.ts as a checked model: every order of events within bounds, random
// orders beyond them, and copies of the protocol with one mistake each, which must be caught.
import { describe, expect, it } from "vitest";
import { HeldLease, Silence, silenceMs } from "../../src/broker/lease.js";
import {
  type Action,
  type Bounds,
  type Kind,
  type Lease,
  type Look,
  type Protocol,
  reactMs,
  shipped,
  timing,
  Violation,
  type Watcher,
  World,
} from "../support/lease-model.js";
import { seededRandom, testSeed } from "../support/random.js";

const isFull = process.env.CSNAP_TIER === "full";
const fullLimitMs = 20 * 60_000;

/**
 * Half of what a slow and a fast clock show after the same time, apart by the 20 % allowed for:
 * the slow one 4200, when a holder may still be acting by a look at 3999; the fast one 5040. That is
 * more than 4000, than 4000 * 1.2 and than 4000 + 400, and less than what is waited.
 */
const slowMs = 2100;
const fastMs = 2520;

interface Explored {
  readonly states: number;
  readonly steps: number;
  readonly violation: string;
  /** the events before it */
  readonly trace: readonly string[];
}

/** Breadth first, so that the violation that is found has the fewest events. */
function explore(protocol: Protocol, bounds: Bounds, visit: (world: World, nth: number) => void): Explored {
  const seen = new Set<string>();
  const reachedBy: { readonly action: Action; readonly from: number }[] = [];
  const begin = () => new World(protocol, bounds).grantTo(0);
  let steps = 0;
  let frontier = [{ world: begin(), id: 0 }];
  seen.add(frontier.map(({ world }) => world.key()).join());
  reachedBy.push({ action: { kind: "tick", index: 0 }, from: 0 });
  while (frontier.length > 0) {
    const next: typeof frontier = [];
    for (const { world, id } of frontier) {
      for (const action of world.actions()) {
        steps++;
        const after = world.copy();
        const violation = violationOf(() => after.perform(action));
        if (violation !== undefined) {
          const trace = pathTo(id, reachedBy).concat(action);
          return { states: seen.size, steps, violation, trace: told(begin(), trace) };
        }
        const key = after.key();
        if (seen.has(key)) continue;
        visit(after, seen.size);
        next.push({ world: after, id: seen.size });
        seen.add(key);
        reachedBy.push({ action, from: id });
      }
    }
    frontier = next;
  }
  return { states: seen.size, steps, violation: "", trace: [] };
}

function violationOf(step: () => void): string | undefined {
  try {
    step();
    return undefined;
  } catch (error) {
    if (error instanceof Violation) return error.message;
    throw error;
  }
}

function pathTo(last: number, reachedBy: readonly { action: Action; from: number }[]): Action[] {
  const path: Action[] = [];
  for (let id = last; id > 0; ) {
    const step = reachedBy[id];
    if (!step) throw new Error(`state ${id} was not reached`);
    path.push(step.action);
    id = step.from;
  }
  return path.reverse();
}

function told(world: World, path: readonly Action[]): string[] {
  return path.map((action) => {
    const line = world.tell(action);
    violationOf(() => world.perform(action));
    return line;
  });
}

/**
 * No more faults: what is under way arrives, and everybody but `dead` goes on. Who of them may act, round
 * for round; -1: nobody.
 */
function settled(from: World, rounds: number, dead: number): number[] {
  const { ticksMs } = from.bounds;
  const world = from.copy({
    ticksMs,
    messagesMax: ticksMs.map(() => 100),
    epochMax: Number.POSITIVE_INFINITY,
    copiesMax: 1,
  });
  const holders: number[] = [];
  for (let round = 0; round < rounds; round++) {
    deliverAll(world, dead);
    for (const [index, { role, known }] of world.nodes.entries()) {
      if (index === dead) continue;
      const may = new Set(world.actions().flatMap((one) => (one.index === index ? [one.kind] : [])));
      const kinds: Kind[] = ["look"];
      if (known?.revision === world.revision)
        kinds.unshift("claim", "renew", ...(role === "releasing" ? ["release" as const] : []));
      const kind = kinds.find((one) => may.has(one));
      if (kind === undefined) throw new Error(`node ${index} can't go on`);
      world.perform({ kind, index });
      deliverAll(world, dead);
    }
    holders.push(world.nodes.findIndex((_, index) => index !== dead && world.mayAct(index)));
    world.perform({ kind: "tick", index: 0 });
  }
  return holders;
}

function deliverAll(world: World, dead: number): void {
  for (let left = 1000; ; left--) {
    const [message] = world.messages;
    if (!message) return;
    if (left === 0) throw new Error("messages without end");
    if (message.stage === "request") world.perform({ kind: "arrives", index: 0 });
    else world.perform({ kind: message.node === dead ? "lost" : "answered", index: 0 });
  }
}

const spaces: readonly (readonly [name: string, bounds: Bounds])[] = [
  [
    "two terms, a holder with two attempts or copies under way",
    { ticksMs: [slowMs, fastMs], messagesMax: [2, 1], epochMax: 2, copiesMax: 2 },
  ],
  [
    "three terms, in steps of a quarter of the grant",
    { ticksMs: [slowMs / 2, fastMs / 2], messagesMax: [1, 1], epochMax: 3, copiesMax: 1 },
  ],
  [
    "two candidates",
    {
      ticksMs: [slowMs, fastMs, fastMs],
      messagesMax: [1, 1, 1],
      epochMax: 2,
      copiesMax: 1,
      without: ["release", "record changes"],
    },
  ],
];

const largeSpaces: typeof spaces = [
  [
    "every step apart",
    { ticksMs: [slowMs, fastMs], messagesMax: [1, 1], epochMax: 2, copiesMax: 1, everyStep: true },
  ],
  [
    "three attempts or copies under way",
    { ticksMs: [slowMs, fastMs], messagesMax: [3, 1], epochMax: 2, copiesMax: 2 },
  ],
  ["two of each node", { ticksMs: [slowMs, fastMs], messagesMax: [2, 2], epochMax: 2, copiesMax: 2 }],
  [
    "two attempts, three terms, the fast clock first",
    { ticksMs: [fastMs, slowMs], messagesMax: [2, 1], epochMax: 3, copiesMax: 1 },
  ],
];

describe("every order of events", () => {
  it.each(isFull ? [...spaces, ...largeSpaces] : spaces)(
    "keeps LM1 and LM2, and ends in a grant that lasts once faults stop: %s",
    (name, bounds) => {
      let samples = 0;
      let roundsMax = 0;
      const { states, steps, violation, trace } = explore(shipped, bounds, (world, nth) => {
        if (nth % 61 !== 0) return;
        samples++;
        for (const dead of [-1, world.record.holder]) {
          const holders = settled(world, 16, dead);
          const first = holders.findIndex((holder) => holder >= 0);
          roundsMax = Math.max(roundsMax, first);
          const isLasting = first >= 0 && holders.slice(first).every((holder) => holder === holders[first]);
          if (!isLasting) throw new Error(`state ${nth} without node ${dead} does not settle: ${holders}`);
        }
      });
      console.log(
        `${name}: ${states} states, ${steps} steps; ${samples} states settled, within ${roundsMax} ticks`,
      );
      expect([violation, ...trace]).toEqual([""]);
      expect(states).toBeGreaterThan(50_000);
    },
    isFull ? fullLimitMs : 60_000,
  );
});

class CountsFromTheAnswer extends HeldLease {
  private untilMs = Number.NEGATIVE_INFINITY;
  override confirmed(seq: number, nowMs = 0): void {
    super.confirmed(seq);
    this.untilMs = nowMs + timing.grantMs;
  }
  override get validUntilMs(): number {
    return this.untilMs;
  }
}

/** An attempt without an answer is sent again as it was, and counts from then. */
class RepeatsItsNumber extends HeldLease {
  private last = 0;
  private confirmedSeq = 1;
  override sending(nowMs: number): number {
    if (this.last > this.confirmedSeq)
      (this as unknown as { sentAtMs: Map<number, number> }).sentAtMs.set(this.last, nowMs);
    else this.last = super.sending(nowMs);
    return this.last;
  }
  override confirmed(seq: number): void {
    super.confirmed(seq);
    this.confirmedSeq = Math.max(this.confirmedSeq, seq);
  }
}

class GoesByTheWallClock extends Silence {
  override saw(_sign: string, _nowMs: number, look?: Look): number {
    return look ? look.wallMs - look.writtenWallMs : 0;
  }
}

class NeverStartsAnew extends Silence {
  override saw(sign: string, nowMs: number): number {
    return super.saw(sign.slice(0, sign.lastIndexOf("/")), nowMs);
  }
}

class CountsFromTheRequest implements Watcher {
  private sign = "";
  private sinceMs = 0;
  saw(sign: string, nowMs: number, { askedAtMs }: Look): number {
    if (sign !== this.sign) this.sinceMs = askedAtMs;
    this.sign = sign;
    return nowMs - this.sinceMs;
  }
}

function withLease(wrong: new (...parameters: ConstructorParameters<typeof HeldLease>) => Lease): Protocol {
  return { ...shipped, newLease: (...parameters) => new wrong(...parameters) };
}

function withSilence(wrong: new () => Watcher): Protocol {
  return { ...shipped, newSilence: () => new wrong() };
}

const small: Bounds = { ticksMs: [slowMs, fastMs], messagesMax: [2, 1], epochMax: 2, copiesMax: 1 };
const unmerged: Bounds = { ...small, messagesMax: [1, 1], everyStep: true };

const mistakes: readonly (readonly [name: string, protocol: Protocol, bounds: Bounds])[] = [
  ["a holder that counts from the answer", withLease(CountsFromTheAnswer), small],
  ["a holder that sends a number again", withLease(RepeatsItsNumber), small],
  ["a holder that counts an attempt without an answer", { ...shipped, countsAmbiguous: true }, small],
  ["a holder that acts until its release is answered", { ...shipped, actsWhileReleasing: true }, small],
  ["a candidate that waits as long as a grant", { ...shipped, silenceMs: (grantMs) => grantMs }, small],
  ["a candidate that allows for rates only", { ...shipped, silenceMs: (grantMs) => grantMs * 1.2 }, small],
  ["a candidate that allows for slack only", { ...shipped, silenceMs: (grantMs) => grantMs + 400 }, small],
  ["a candidate that goes by the record's wall clock", withSilence(GoesByTheWallClock), small],
  ["a candidate that does not start anew with a new number", withSilence(NeverStartsAnew), small],
  ["a candidate that counts from its request", withSilence(CountsFromTheRequest), unmerged],
  [
    "a candidate that writes without comparing",
    { ...shipped, claimsWithoutCompare: true },
    { ...unmerged, without: ["release"] },
  ],
];

describe("one mistake", () => {
  it.each(mistakes)("of %s lets two act", { timeout: 60_000 }, (name, protocol, bounds) => {
    const { states, violation, trace } = explore(protocol, bounds, () => {});
    console.log([`${name}: ${violation} (${states} states)`, ...trace].join("\n  "));
    expect(violation).toContain("may act");
  });
});

/**
 * Random orders, rates within the 20 % and any lengths of time; nodes that stand still, and candidates
 * that look as soon as they may claim.
 */
function walk(seed: number, events: number, trace?: string[]): World {
  const random = seededRandom(seed);
  const upTo = (limit: number) => Math.floor(random() * limit);
  const rates = Array.from({ length: 2 + upTo(4) }, () => [1, 1.2, 1 + random() / 5][upTo(3)] ?? 1);
  const world = new World(shipped, {
    ticksMs: rates,
    messagesMax: rates.map(() => 4),
    epochMax: Number.POSITIVE_INFINITY,
    copiesMax: 2,
    everyStep: true,
  }).grantTo(upTo(rates.length));
  const rare: readonly Kind[] = ["release", "lost", "give up", "record changes"];
  for (let event = 0; event < events; event++) {
    const dice = random();
    if (dice < 0.2) {
      const index = upTo(rates.length);
      const dueMs = world.dueInMs(index) / (rates[index] ?? 1);
      const passedMs = dueMs > 0 && dice < 0.04 ? dueMs + random() : random() * (dice < 0.05 ? 4000 : 400);
      trace?.push(`${passedMs} ms pass`);
      world.advance(rates.map((rate) => rate * passedMs));
      world.check();
    } else if (dice < 0.24) {
      const index = upTo(rates.length);
      trace?.push(`node ${index} stands still, or goes on`);
      world.pause(index);
    } else {
      const [, ...all] = world.actions();
      const soon = all.filter(({ kind }) => kind === "claim" || kind === "arrives" || kind === "answered");
      const actions = soon.length > 0 && dice < 0.7 ? soon : all;
      const action = actions[upTo(actions.length)];
      if (!action || (rare.includes(action.kind) && random() < 0.8)) continue;
      trace?.push(world.tell(action));
      world.perform(action);
    }
  }
  return world;
}

it("random orders of events keep LM1 and LM2", { timeout: isFull ? fullLimitMs : 60_000 }, () => {
  const seed = testSeed(0x1ea5e);
  const schedules = isFull ? 200_000 : 10_000;
  const sums = { renewals: 0, takeovers: 0, closestMs: Number.POSITIVE_INFINITY };
  for (let schedule = 0; schedule < schedules; schedule++) {
    const violation = violationOf(() => {
      const { renewals, takeovers, marginMs } = walk(seed + schedule, 200);
      sums.renewals += renewals;
      sums.takeovers += takeovers;
      sums.closestMs = Math.min(sums.closestMs, marginMs);
    });
    if (violation === undefined) continue;
    const trace: string[] = [];
    violationOf(() => walk(seed + schedule, 200, trace));
    throw new Error([`CSNAP_SEED=${seed + schedule}: ${violation}`, ...trace].join("\n  "));
  }
  console.log(`CSNAP_SEED=${seed}: ${schedules} schedules`, sums);
  expect(sums.takeovers).toBeGreaterThan(schedules / 2);
  expect(sums.renewals).toBeGreaterThan(schedules);
  expect(sums.closestMs).toBeLessThan(reactMs + 50);
});

describe("silenceMs", () => {
  it.each([2000, 4000, 30_000])(
    "leaves time for a late act at the largest difference of rates: %i",
    (grantMs) => {
      expect(silenceMs(grantMs) / 1.2 - grantMs).toBeGreaterThan(reactMs);
      expect(silenceMs(grantMs)).toBeLessThan(grantMs * 1.4 + 1);
    },
  );
});
