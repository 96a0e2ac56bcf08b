// The attachment's state machine under random events, in a small world that keeps the rules of the
// kernel's client: what it may do to the machine, and what the machine must never do to it.
import { isDeepStrictEqual } from "node:util";
import { describe, expect, it } from "vitest";
import {
  Attachment,
  type AttachmentAction,
  type AttachmentEvent,
  type OnLost,
  type TimerName,
} from "../../src/agent/attachment.js";
import type { Identity } from "../../src/agent/dial.js";
import { seededRandom, testSeed } from "../support/random.js";

const identity: Identity = {
  volumeUuid: "00000000-0000-4000-8000-000000000001",
  durabilityId: "00000000-0000-4000-8000-0000000000d1",
  sizeBytes: 1 << 30,
  transmissionFlags: 0x14d,
};

/** A server, a kernel device and a clock without time: everything that is due may happen next. */
/** expect() costs too much for millions of checks. */
function must(condition: boolean, what: string): void {
  if (!condition) throw new Error(what);
}

class World {
  readonly machine: Attachment;
  readonly timers = new Set<TimerName>();
  /** attempts whose connection carries requests: given to the kernel and not shut */
  readonly live = new Set<number>();
  /** dialed, not yet given away */
  readonly dialed = new Set<number>();
  readonly due: AttachmentEvent[] = [];
  device: number | undefined;
  saved: { phase: string; device: number | undefined } | undefined;
  gone = false;
  disconnected = false;
  epoch = 1n;
  /** what a server would offer now, by which attempt it was offered what, and what was attached */
  found: Identity = identity;
  readonly offered = new Map<number, Identity>();
  first: Identity | undefined;
  attempts: number[] = [];
  trace: string[] = [];

  constructor(
    readonly random: () => number,
    onLost: OnLost,
    known: boolean,
  ) {
    this.machine = new Attachment({
      onLost,
      firstAttempt: 100,
      random,
      ...(known && { known: { device: 3, identity, epoch: 1n } }),
    });
    if (known) {
      this.device = 3;
      this.first = identity;
      this.live.add(99);
    }
    this.perform(this.machine.start());
  }

  give(event: AttachmentEvent): void {
    this.trace.push(event.kind === "timer" ? `timer ${event.timer}` : event.kind);
    if (event.kind === "timer") this.timers.delete(event.timer);
    this.perform(this.machine.handle(event));
    this.trace.push(`-> ${this.machine.phase}`);
  }

  private perform(actions: readonly AttachmentAction[]): void {
    for (const action of actions) this.act(action);
  }

  private act(action: AttachmentAction): void {
    // Only a connection that came late has to go.
    must(!this.gone || action.kind === "hang-up", "acts after the end");
    switch (action.kind) {
      case "save":
        this.saved = { phase: this.machine.phase, device: this.machine.device };
        break;
      case "dial": {
        must(this.live.size === 0, "dials while a connection lives (AT1)");
        const last = this.attempts.at(-1) ?? 0;
        must(action.attempt > last, "a TRY is used again");
        this.attempts.push(action.attempt);
        const { attempt } = action;
        const draw = this.random();
        if (draw < 0.7) this.dialed.add(attempt);
        this.offered.set(attempt, this.found);
        this.due.push(
          draw < 0.7
            ? { kind: "dialed", attempt, identity: this.found, epoch: this.epoch }
            : { kind: "dial-failed", attempt, reason: "refused", final: draw > 0.97 },
        );
        break;
      }
      case "hang-up":
        must(this.dialed.delete(action.attempt), "hangs up what is not its own");
        break;
      case "cut":
        if (this.live.size > 0 && this.random() < 0.9) this.due.push({ kind: "dead" });
        this.live.clear();
        break;
      case "connect":
        must(this.saved !== undefined, "the kernel is told before the record (AT5)");
        must(this.dialed.delete(action.attempt), "gives away what it does not have");
        must(this.device === undefined, "makes a second device");
        this.first = this.offered.get(action.attempt);
        if (this.random() < 0.9) {
          this.device = 3;
          this.live.add(action.attempt);
          this.due.push({ kind: "connected", device: 3 });
        } else {
          this.due.push({ kind: "connect-failed", reason: "EBUSY" });
        }
        break;
      case "install":
        must(this.dialed.delete(action.attempt), "gives away what it does not have");
        must(this.live.size === 0, "two connections live (AT1)");
        must(isDeepStrictEqual(this.offered.get(action.attempt), this.first), "installs what differs (AT2)");
        if (this.random() < 0.9) {
          if (this.random() < 0.9) this.live.add(action.attempt);
          this.due.push({ kind: "installed", attempt: action.attempt });
        } else {
          this.due.push({ kind: "install-failed", attempt: action.attempt, reason: "EINVAL" });
        }
        break;
      case "prove":
        if (this.live.size > 0 && this.random() < 0.8) this.due.push({ kind: "proved" });
        else if (this.random() < 0.1) this.due.push({ kind: "proof-failed", reason: "EIO" });
        break;
      case "arm":
        this.timers.add(action.timer);
        must(action.ms > 0, "a timer of no time");
        break;
      case "disarm":
        this.timers.delete(action.timer);
        break;
      case "check-unused":
        this.due.push(this.random() < 0.6 ? { kind: "unused" } : { kind: "in-use", by: "mounted" });
        break;
      case "disconnect":
        must(this.device !== undefined, "disconnects what it does not have");
        if (this.random() < 0.95) {
          this.live.clear();
          this.disconnected = true;
          this.due.push({ kind: "disconnected" });
        } else {
          this.due.push({ kind: "disconnect-failed", reason: "EBUSY" });
        }
        break;
      case "forget":
        this.gone = true;
        break;
      case "tell":
        break;
    }
  }

  /** What the outside may do at any time. */
  disturb(): void {
    const draw = this.random();
    if (draw < 0.25) {
      if (this.random() < 0.5) this.epoch += 1n;
      this.give({ kind: "address", address: { epoch: this.epoch, uris: ["nbd://a"] } });
    } else if (draw < 0.32) {
      const older = this.epoch > 1n ? this.epoch - 1n : 1n;
      this.give({ kind: "address", address: { epoch: older, uris: ["nbd://old"] } });
    } else if (draw < 0.42) {
      this.give({ kind: "no-address", reason: "nobody serves it" });
    } else if (draw < 0.6) {
      if (this.random() < 0.7) this.live.clear();
      this.give({ kind: "dead" });
    } else if (draw < 0.7) {
      this.give({ kind: "silent", reason: "no answer for 15 s" });
    } else if (draw < 0.76) {
      this.give({ kind: "doubt" });
    } else if (draw < 0.8) {
      this.found = this.random() < 0.5 ? identity : changed(this.random);
    } else if (draw < 0.83) {
      if (this.device !== undefined && this.machine.phase !== "connecting") {
        this.live.clear();
        this.device = undefined;
        this.give({ kind: "vanished" });
      }
    } else if (draw < 0.86) {
      this.give({ kind: "detach", force: this.random() < 0.4 });
    } else if (this.timers.size > 0) {
      const timers = [...this.timers];
      const timer = timers[Math.floor(this.random() * timers.length)] as TimerName;
      this.give({ kind: "timer", timer });
    }
  }

  step(): void {
    if (this.due.length > 0 && this.random() < 0.6) {
      // Answers of different calls overtake each other; a late one is the machine's to ignore.
      const at = Math.floor(this.random() * Math.min(2, this.due.length));
      const [event] = this.due.splice(at, 1);
      if (event) this.give(event);
    } else {
      this.disturb();
    }
    this.check();
  }

  check(): void {
    const { machine } = this;
    must(this.live.size <= 1, "two live connections");
    const toBeTold = this.due.filter((event) => event.kind === "dialed").length;
    must(this.dialed.size === toBeTold, "a connection is forgotten");
    if (machine.phase === "failed") {
      must(machine.reason !== "", "fails without a reason");
      must(this.live.size === 0, "a failed attachment carries requests");
    }
    if (machine.phase === "waiting") {
      must(machine.reason !== "", "waits without a reason (AT4)");
    }
    must(machine.phase !== "cutting" || this.timers.has("cut"), "cuts without a limit (AT4)");
    const proves = machine.phase === "proving" || machine.phase === "checking";
    must(!proves || this.timers.has("proof"), "waits for a proof without a limit (AT4)");
  }

  /** Peace: one healthy server, no disturbances. Everything has to end in a state of rest. */
  settle(): void {
    this.found = identity;
    this.epoch += 1n;
    this.give({ kind: "address", address: { epoch: this.epoch, uris: ["nbd://a"] } });
    for (let turns = 0; turns < 2000; turns++) {
      const event = this.due.shift();
      if (event) this.give(event);
      else if (this.machine.phase === "attached" || this.machine.phase === "failed" || this.gone) return;
      else if (this.timers.size > 0) this.give({ kind: "timer", timer: [...this.timers][0] as TimerName });
      else throw new Error(`stuck in ${this.machine.phase} (${this.machine.reason})`);
      this.check();
    }
    throw new Error(`no rest: ${this.machine.phase} (${this.machine.reason})`);
  }
}

function changed(random: () => number): Identity {
  const draw = random();
  if (draw < 0.25) return { ...identity, volumeUuid: "00000000-0000-4000-8000-000000000002" };
  if (draw < 0.5) return { ...identity, durabilityId: "00000000-0000-4000-8000-0000000000d2" };
  if (draw < 0.75) return { ...identity, sizeBytes: 1 << 20 };
  return { ...identity, transmissionFlags: 0x14f };
}

describe("an attachment's state machine", () => {
  it("comes to rest under 100,000 random sequences, never with two live connections", () => {
    const seed = testSeed(0xa77ac4);
    const ends = { attached: 0, failed: 0, gone: 0 };
    for (let sequence = 0; sequence < 100_000; sequence++) {
      const random = seededRandom(Math.imul(seed, 1_000_003) + sequence);
      const onLost: OnLost = random() < 0.5 ? { mode: "hang" } : { mode: "error", afterMs: 1000 };
      const world = new World(random, onLost, random() < 0.3);
      try {
        const steps = 5 + Math.floor(random() * 40);
        for (let i = 0; i < steps && !world.gone; i++) world.step();
        world.settle();
      } catch (error) {
        throw new Error(`CSNAP_SEED=${seed}, sequence ${sequence}: ${world.trace.slice(-30).join(", ")}`, {
          cause: error,
        });
      }
      ends[world.machine.phase as keyof typeof ends]++;
    }
    for (const count of Object.values(ends)) expect(count).toBeGreaterThan(1000);
  }, 120_000);
});

/** Drives a machine by hand; returns the kinds of its actions. */
function kinds(actions: readonly AttachmentAction[]): string[] {
  return actions.filter(({ kind }) => kind !== "tell").map(({ kind }) => kind);
}

function attached(onLost: OnLost = { mode: "hang" }): Attachment {
  const machine = new Attachment({ onLost, firstAttempt: 1, random: () => 0.5 });
  machine.start();
  machine.handle({ kind: "address", address: { epoch: 5n, uris: ["nbd://a"] } });
  machine.handle({ kind: "dialed", attempt: 1, identity, epoch: 5n });
  machine.handle({ kind: "connected", device: 0 });
  machine.handle({ kind: "proved" });
  expect(machine.phase).toBe("attached");
  return machine;
}

describe("reconnecting", () => {
  it("cuts, waits for the kernel's word, then dials", () => {
    const machine = attached();
    expect(kinds(machine.handle({ kind: "silent", reason: "silence" }))).toEqual(["disarm", "cut", "arm"]);
    expect(kinds(machine.handle({ kind: "dead" }))).toEqual(["disarm", "dial"]);
    expect(kinds(machine.handle({ kind: "dialed", attempt: 2, identity, epoch: 6n }))).toEqual([
      "save",
      "install",
    ]);
    expect(kinds(machine.handle({ kind: "installed", attempt: 2 }))).toEqual(["arm", "prove"]);
    machine.handle({ kind: "proved" });
    expect([machine.phase, machine.epoch]).toEqual(["attached", 6n]);
  });

  it("dials at once when the kernel says that the connection is dead", () => {
    const machine = attached();
    expect(kinds(machine.handle({ kind: "dead" }))).toEqual(["disarm", "cut", "dial"]);
  });

  it.each([
    ["volume", { volumeUuid: "00000000-0000-4000-8000-000000000002" }, "another volume"],
    ["durability id", { durabilityId: "x" }, "may have been lost"],
    ["size", { sizeBytes: 4096 }, "4096 bytes now"],
    ["flags", { transmissionFlags: 3 }, "flags have changed"],
  ])("fails loudly where the %s differs (F6)", (_what, difference, text) => {
    const machine = attached();
    machine.handle({ kind: "dead" });
    const actions = machine.handle({
      kind: "dialed",
      attempt: 2,
      identity: { ...identity, ...difference },
      epoch: 6n,
    });
    expect(machine.phase).toBe("failed");
    expect(machine.reason).toContain(text);
    expect(kinds(actions)).toContain("hang-up");
    expect(kinds(actions)).toContain("disconnect");
    expect(kinds(actions)).not.toContain("install");
  });

  it("takes no connection of an older epoch (F4)", () => {
    const machine = attached();
    machine.handle({ kind: "dead" });
    const actions = machine.handle({ kind: "dialed", attempt: 2, identity, epoch: 4n });
    expect(kinds(actions)).toContain("hang-up");
    expect(machine.phase).toBe("waiting");
  });

  it("gives up after the time of --on-lost error, and only then", () => {
    const machine = attached({ mode: "error", afterMs: 1000 });
    machine.handle({ kind: "no-address", reason: "nobody serves it" });
    expect(machine.phase).toBe("attached");
    expect(kinds(machine.handle({ kind: "dead" }))).toContain("arm");
    expect(machine.phase).toBe("waiting");
    expect(kinds(machine.handle({ kind: "timer", timer: "give-up" }))).toContain("disconnect");
    expect(machine.phase).toBe("failed");
  });

  it("goes back to work when a detach finds the device in use", () => {
    const machine = attached();
    expect(kinds(machine.handle({ kind: "detach", force: false }))).toEqual(["check-unused"]);
    machine.handle({ kind: "in-use", by: "/dev/nbd0 is mounted at /mnt" });
    machine.handle({ kind: "proved" });
    expect(machine.phase).toBe("attached");
  });
});
