// A model of the grant between hosts: nodes that look, claim, renew and release one record by
// compare-and-swap, over a network that delays and loses. What a node decides by is the shipped
// HeldLease, Silence and silenceMs, or a wrong copy of one. Used by test/unit/lease.test.ts, which
// explores every order of its events within bounds, and random orders beyond them.
//
// LM1 Who may act is named by the record: term, node, held. So there are never two, at no true time.
// LM2 Epochs grow by one with each claim; within a term each renewal's number is above all before it,
//     so that none is ever written twice.
//
// A request arrives at any later time or never, and so does its answer. A node may stop waiting for
// an answer at any time. A node that is paused is one whose events are not chosen for a while; it may
// be paused between any two of them, and between taking a number and sending is the same as a slow
// network. Not in the model: records that are lost or restored, and a clock that stands still.
//
// Exploring leaves out, unless `everyStep` is set, what reaches nothing new:
// LR1 A look arrives as it is asked for: no honest candidate looks at when it asked.
// LR2 A request that compares with an old revision is refused whenever it arrives: it is gone at once,
//     and its sender gives up, as it might do anyway.
import { HeldLease, type LeaseTiming, Silence, silenceMs } from "../../src/broker/lease.js";

/** HeldLease; a wrong one may look at the clock when it is told of an answer. */
export interface Lease {
  sending(nowMs: number): number;
  confirmed(seq: number, nowMs: number): void;
  readonly validUntilMs: number;
}

/** What a candidate could go by instead of its own clock after the answer. */
export interface Look {
  /** own clock when the look was asked for */
  readonly askedAtMs: number;
  /** wall clocks: of the candidate now, and of the writer when it wrote */
  readonly wallMs: number;
  readonly writtenWallMs: number;
}

/** Silence; a wrong one may look at more. */
export interface Watcher {
  saw(sign: string, nowMs: number, look: Look): number;
}

export interface Protocol {
  newLease(timing: LeaseTiming, claimSeq: number, nowMs: number): Lease;
  newSilence(): Watcher;
  silenceMs(grantMs: number): number;
  /** mistakes of the caller */
  readonly countsAmbiguous?: boolean;
  readonly actsWhileReleasing?: boolean;
  readonly claimsWithoutCompare?: boolean;
}

export const shipped: Protocol = {
  newLease: (timing, claimSeq, nowMs) => new HeldLease(timing, claimSeq, nowMs),
  newSilence: () => new Silence(),
  silenceMs,
};

/** What the register stores. */
interface Rec {
  readonly epoch: number;
  /** a node; -1: nobody ever */
  readonly holder: number;
  readonly seq: number;
  readonly held: boolean;
  readonly writtenWallMs: number;
  /** epoch, holder and number, as one text */
  readonly sign: string;
}

interface Known {
  readonly revision: number;
  readonly record: Rec;
}

type Role = "candidate" | "claiming" | "holder" | "releasing";
type Purpose = "look" | "claim" | "renew" | "release";

/** A request, and after its arrival the answer to it. */
interface Message {
  readonly node: number;
  /** an attempt; copies of one have the same */
  readonly attempt: number;
  readonly purpose: Purpose;
  readonly sentAtMs: number;
  readonly stage: "request" | "stored" | "refused" | "found";
  /** request: what it compares with and writes; stored and found: what the register has then */
  readonly at: Known;
}

interface Node {
  role: Role;
  /** its term, claimed or held */
  epoch: number;
  known: Known | undefined;
  /** the record it knows was silent long enough, or free, at the last look */
  mayClaim: boolean;
  /** the attempt whose answer it waits for; 0: none */
  awaited: number;
  lease: Lease | undefined;
  silence: Watcher;
  paused: boolean;
}

export interface Bounds {
  /** what each clock advances by in one tick */
  readonly ticksMs: readonly number[];
  /** messages of each node under way */
  readonly messagesMax: readonly number[];
  readonly epochMax: number;
  /** copies of a renewal */
  readonly copiesMax: number;
  /** what does not happen */
  readonly without?: readonly Kind[];
  /** every step apart, those included that reach nothing new (LR1, LR2) */
  readonly everyStep?: boolean;
}

export type Kind =
  | "tick"
  | "record changes"
  | "look"
  | "claim"
  | "renew"
  | "renew twice"
  | "release"
  | "give up"
  | "arrives"
  | "answered"
  | "lost";

/** What happens, and to which node or message. */
export interface Action {
  readonly kind: Kind;
  readonly index: number;
}

export const timing: LeaseTiming = Object.freeze({ grantMs: 4000, renewMs: 800 });

/**
 * A look at the clock may be followed by an act this much later, of the holder's clock: slackMs of the
 * candidate's clock, at the largest difference of rates, is 333.
 */
export const reactMs = 290;

export class Violation extends Error {}

function must(condition: boolean, what: string): void {
  if (!condition) throw new Violation(what);
}

/** A copy of an object of which all fields are plain values, maps of such, or frozen. */
function copyOf<T extends object>(original: T): T {
  const copy = Object.create(Object.getPrototypeOf(original));
  for (const [name, value] of Object.entries(original)) {
    if (value instanceof Map) copy[name] = new Map(value);
    else if (typeof value !== "object" || value === null || Object.isFrozen(value)) copy[name] = value;
    else throw new Error(`field ${name} of ${original.constructor.name}: can't be copied`);
  }
  return copy;
}

/** The private parts that a state is told from others by. */
interface LeaseParts {
  readonly sentAtMs: ReadonlyMap<number, number>;
}
interface SilenceParts {
  readonly sign: string;
  readonly sinceMs: number;
}

function at<T>(list: readonly T[], index: number): T {
  const found = list[index];
  if (found === undefined) throw new Error(`nothing at ${index}`);
  return found;
}

function record(epoch: number, holder: number, seq: number, held: boolean, writtenWallMs: number): Rec {
  return { epoch, holder, seq, held, writtenWallMs, sign: `${epoch}/${holder}/${seq}` };
}

export class World {
  revision = 1;
  record: Rec = record(0, -1, 0, false, 0);
  nodes: Node[];
  clocksMs: number[];
  messages: Message[] = [];
  /** nodes that a copy has in common with its original */
  private shared = 0;
  private lastAttempt = 0;
  /** claims upon a record that was silent, and the least time that then had passed since the old holder's end */
  takeovers = 0;
  marginMs = Number.POSITIVE_INFINITY;
  renewals = 0;

  constructor(
    readonly protocol: Protocol,
    readonly bounds: Bounds,
  ) {
    this.clocksMs = bounds.ticksMs.map((_, index) => index * 1_000_000);
    this.nodes = bounds.ticksMs.map(() => ({
      role: "candidate",
      epoch: -1,
      known: undefined,
      mayClaim: false,
      awaited: 0,
      lease: undefined,
      silence: protocol.newSilence(),
      paused: false,
    }));
  }

  copy(bounds = this.bounds): World {
    const copy: World = Object.assign(Object.create(World.prototype), this, { bounds });
    copy.messages = this.messages.slice();
    copy.clocksMs = this.clocksMs.slice();
    copy.nodes = this.nodes.slice();
    copy.shared = -1;
    return copy;
  }

  /** The node, to be changed. */
  private own(index: number): Node {
    const node = at(this.nodes, index);
    if ((this.shared & (1 << index)) === 0) return node;
    this.shared &= ~(1 << index);
    const copy = { ...node, lease: node.lease && copyOf(node.lease), silence: copyOf(node.silence) };
    this.nodes[index] = copy;
    return copy;
  }

  private now(index: number): number {
    return at(this.clocksMs, index);
  }

  /** From nothing to a grant that a node has just got. */
  grantTo(index: number): this {
    this.perform({ kind: "look", index });
    if (this.bounds.everyStep) this.perform({ kind: "arrives", index: 0 });
    this.perform({ kind: "answered", index: 0 });
    this.perform({ kind: "claim", index });
    this.perform({ kind: "arrives", index: 0 });
    this.perform({ kind: "answered", index: 0 });
    return this;
  }

  /** All that may happen next. */
  actions(): Action[] {
    const actions: Action[] = [{ kind: "tick", index: 0 }];
    const { without } = this.bounds;
    const add = (kind: Kind, index: number) => {
      if (!without?.includes(kind)) actions.push({ kind, index });
    };
    if (this.record.held) add("record changes", 0);
    for (const [index, node] of this.nodes.entries()) {
      if (node.paused) continue;
      if (node.awaited !== 0) {
        add("give up", index);
        continue;
      }
      const underWay = this.messages.filter((message) => message.node === index).length;
      const room = at(this.bounds.messagesMax, index) - underWay;
      if (room < 1) continue;
      add("look", index);
      if (node.role === "holder") {
        add("renew", index);
        if (room >= 2 && this.bounds.copiesMax >= 2) add("renew twice", index);
      }
      if (node.role === "holder" || node.role === "releasing") add("release", index);
      if (node.mayClaim && (node.known?.record.epoch ?? 0) < this.bounds.epochMax) add("claim", index);
    }
    for (const [index, message] of this.messages.entries()) {
      const node = at(this.nodes, message.node);
      if (message.stage === "request") add("arrives", index);
      else if (!node.paused) add("answered", index);
      if (node.awaited !== message.attempt) add("lost", index);
    }
    return actions;
  }

  /** Throws a Violation. */
  perform({ kind, index }: Action): void {
    if (kind === "tick") this.advance(this.bounds.ticksMs);
    else if (kind === "record changes") this.revision++;
    else if (kind === "look") this.look(index);
    else if (kind === "claim") this.claim(index);
    else if (kind === "renew") this.renew(index, 1);
    else if (kind === "renew twice") this.renew(index, 2);
    else if (kind === "release") this.release(index);
    else if (kind === "give up") this.giveUp(index);
    else if (kind === "arrives") this.arrive(index);
    else if (kind === "answered") this.answer(index);
    else this.messages.splice(index, 1);
    this.forgetWithoutEffect();
    this.check();
  }

  advance(byMs: readonly number[]): void {
    for (let index = 0; index < byMs.length; index++)
      this.clocksMs[index] = this.now(index) + at(byMs, index);
  }

  /** By its clock, until it may claim if what it saw last stands. */
  dueInMs(index: number): number {
    const { sinceMs } = at(this.nodes, index).silence as unknown as SilenceParts;
    return sinceMs + this.protocol.silenceMs(timing.grantMs) - this.now(index);
  }

  /** It stands still, or goes on. */
  pause(index: number): void {
    const node = this.own(index);
    node.paused = !node.paused;
  }

  mayAct(index: number): boolean {
    const { lease } = at(this.nodes, index);
    return lease !== undefined && this.now(index) < lease.validUntilMs + reactMs;
  }

  /** LM1 */
  check(): void {
    const { epoch, holder, held } = this.record;
    for (let index = 0; index < this.nodes.length; index++) {
      if (!this.mayAct(index)) continue;
      const { epoch: own } = at(this.nodes, index);
      if (holder === index && epoch === own && held) continue;
      const found = held ? `term ${epoch}, held by node ${holder}` : "free";
      throw new Violation(`node ${index} may act in term ${own}, and the record is ${found}`);
    }
  }

  private send(index: number, purpose: Purpose, base: Known, written: Rec, copies = 1): void {
    this.lastAttempt++;
    this.own(index).awaited = this.lastAttempt;
    const message: Message = {
      node: index,
      attempt: this.lastAttempt,
      purpose,
      sentAtMs: this.now(index),
      stage: "request",
      at: { revision: base.revision, record: written },
    };
    for (let copy = 0; copy < copies; copy++) this.messages.push(message);
  }

  /** Wall clocks disagree: each node's is a minute ahead of the one before it. */
  private wallMs(index: number): number {
    return this.now(index) - index * (1_000_000 - 60_000);
  }

  private look(index: number): void {
    this.send(index, "look", { revision: this.revision, record: this.record }, this.record);
    if (!this.bounds.everyStep) this.arrive(this.messages.length - 1);
  }

  private claim(index: number): void {
    const node = this.own(index);
    const { known } = node;
    if (!known) throw new Error("claims what it does not know");
    const epoch = known.record.epoch + 1;
    let seq = 1;
    if (node.lease && node.epoch === epoch) seq = node.lease.sending(this.now(index));
    else node.lease = this.protocol.newLease(timing, seq, this.now(index));
    node.role = "claiming";
    node.epoch = epoch;
    this.send(index, "claim", known, record(epoch, index, seq, true, this.wallMs(index)));
  }

  private renew(index: number, copies: number): void {
    const { lease, known, epoch } = this.own(index);
    if (!lease || !known) throw new Error("renews what it does not hold");
    const seq = lease.sending(this.now(index));
    this.send(index, "renew", known, record(epoch, index, seq, true, this.wallMs(index)), copies);
  }

  /** The last act: it stops acting, then says so. */
  private release(index: number): void {
    const node = this.own(index);
    const { known, epoch } = node;
    if (!known) throw new Error("releases what it does not hold");
    node.role = "releasing";
    if (!this.protocol.actsWhileReleasing) node.lease = undefined;
    this.send(index, "release", known, record(epoch, index, known.record.seq, false, this.wallMs(index)));
  }

  private giveUp(index: number): void {
    const node = this.own(index);
    const message = this.messages.find((one) => one.attempt === node.awaited);
    node.awaited = 0;
    if (!this.protocol.countsAmbiguous || message?.purpose !== "renew") return;
    node.lease?.confirmed(message.at.record.seq, this.now(index));
  }

  /** At the register. */
  private arrive(index: number): void {
    const message = at(this.messages, index);
    if (message.purpose === "look") {
      const found = { revision: this.revision, record: this.record };
      this.messages[index] = { ...message, stage: "found", at: found };
      return;
    }
    const blind = this.protocol.claimsWithoutCompare && message.purpose === "claim";
    if (message.at.revision !== this.revision && !blind) {
      this.messages[index] = { ...message, stage: "refused" };
      return;
    }
    const before = this.record;
    const { record } = message.at;
    if (message.purpose === "claim") this.countTakeover(before);
    if (message.purpose === "renew") this.renewals++;
    this.revision++;
    this.record = record;
    this.messages[index] = { ...message, stage: "stored", at: { revision: this.revision, record } };
    if (message.purpose === "claim")
      must(record.epoch === before.epoch + 1, "an epoch that does not grow by 1");
    else must(record.epoch === before.epoch && record.holder === before.holder, "another's record written");
    if (message.purpose === "renew")
      must(
        record.seq > before.seq,
        `number ${record.seq} stored after ${before.seq} in term ${record.epoch}`,
      );
  }

  private countTakeover(before: Rec): void {
    if (!before.held) return;
    this.takeovers++;
    const old = at(this.nodes, before.holder);
    if (old.lease && old.epoch === before.epoch)
      this.marginMs = Math.min(this.marginMs, this.now(before.holder) - old.lease.validUntilMs);
  }

  /** At the node that asked; perhaps long after it gave up. */
  private answer(index: number): void {
    const message = at(this.messages, index);
    const node = this.own(message.node);
    this.messages.splice(index, 1);
    if (node.awaited === message.attempt) node.awaited = 0;
    if (message.stage === "found") this.found(message, node);
    if (message.stage !== "stored") return;
    const { revision, record } = message.at;
    if (revision > (node.known?.revision ?? 0)) node.known = message.at;
    if (node.epoch !== record.epoch || node.role === "candidate") return;
    if (message.purpose === "release") this.leave(node);
    if (message.purpose === "release" || node.role === "releasing") return;
    node.lease?.confirmed(record.seq, this.now(message.node));
    node.role = "holder";
    node.mayClaim = false;
  }

  private leave(node: Node): void {
    node.role = "candidate";
    node.lease = undefined;
    node.mayClaim = false;
  }

  private found(message: Message, node: Node): void {
    const { revision, record } = message.at;
    // An answer that was overtaken by a late one to an earlier request.
    if (revision < (node.known?.revision ?? 0)) return;
    node.known = message.at;
    const own = record.holder === message.node && record.epoch === node.epoch && record.held;
    if (own && node.role !== "releasing") {
      must(node.role !== "candidate", "finds itself the holder of a term it left");
      node.lease?.confirmed(record.seq, this.now(message.node));
      node.role = "holder";
      node.mayClaim = false;
      return;
    }
    if (own) return;
    if (node.role !== "claiming" || record.epoch >= node.epoch) this.leave(node);
    node.mayClaim = !record.held || this.isSilent(message, node);
  }

  private isSilent({ node: index, sentAtMs, at: { record } }: Message, node: Node): boolean {
    const look: Look = {
      askedAtMs: sentAtMs,
      wallMs: this.wallMs(index),
      writtenWallMs: record.writtenWallMs,
    };
    const silentMs = node.silence.saw(record.sign, this.now(index), look);
    return silentMs >= this.protocol.silenceMs(timing.grantMs);
  }

  /** What nobody waits for any more and would change nothing, whenever it came. */
  private forgetWithoutEffect(): void {
    const kept = (message: Message) => {
      const node = at(this.nodes, message.node);
      const isAwaited = node.awaited === message.attempt;
      if (isAwaited && (this.bounds.everyStep || message.purpose === "look")) return true;
      if (message.purpose === "look") return false;
      const hopeless =
        message.stage === "request"
          ? message.at.revision !== this.revision && !this.protocol.claimsWithoutCompare
          : message.stage === "refused";
      if (hopeless && isAwaited) this.own(message.node).awaited = 0;
      if (hopeless || isAwaited) return !hopeless;
      return (
        message.stage === "request" || (node.epoch === message.at.record.epoch && node.role !== "candidate")
      );
    };
    if (!this.messages.every(kept)) this.messages = this.messages.filter(kept);
  }

  /**
   * States of the same text have the same futures. Clocks count from now, and time that has passed is
   * passed; numbers count among those that can still be seen; revisions are the latest or not.
   */
  key(): string {
    const live = [this.record];
    for (const { purpose, stage, at: known } of this.messages) {
      const { record } = known;
      if (purpose === "look" && stage === "request") continue;
      if (!live.some(({ sign }) => sign === record.sign)) live.push(record);
    }
    live.sort((a, b) => a.epoch - b.epoch || a.holder - b.holder || a.seq - b.seq);
    const place = (sign: string) => live.findIndex((one) => one.sign === sign);
    let text = `${place(this.record.sign)}${this.record.held ? "h" : "f"}`;
    for (const { epoch, holder } of live) text += `${epoch}.${holder},`;
    for (let index = 0; index < this.nodes.length; index++) text += this.nodeKey(index, live, place);
    const messages = this.messages.map(({ node: index, attempt, purpose, stage, at: known, sentAtMs }) => {
      const { known: own, awaited } = at(this.nodes, index);
      const isNewest = known.revision === this.revision;
      const isLater = Math.sign(known.revision - (own?.revision ?? 0));
      const age = this.bounds.everyStep ? Math.min(this.now(index) - sentAtMs, timing.grantMs) : 0;
      const head = `${index}${awaited === attempt}${purpose}${stage}`;
      if (purpose === "look" && stage === "request") return `${head}${age}`;
      return `${head}${isNewest}${isLater}${place(known.record.sign)}${known.record.held}${age}`;
    });
    return `${text}/${messages.sort().join()}`;
  }

  private nodeKey(index: number, live: readonly Rec[], place: (sign: string) => number): string {
    const { role, epoch, known, mayClaim, awaited, lease, silence } = at(this.nodes, index);
    const now = this.now(index);
    const { sign, sinceMs } = silence as unknown as SilenceParts;
    const heard = place(sign);
    const silentMs =
      heard < 0 && this.protocol === shipped
        ? 0
        : Math.min(now - sinceMs, this.protocol.silenceMs(timing.grantMs));
    const isNewest = known?.revision === this.revision;
    // A claim of which no request and no record is left is none.
    const own = live.filter((one) => one.epoch === epoch && one.holder === index);
    const isIdle = role === "candidate" || (role === "claiming" && own.length === 0);
    let text = `/${isIdle ? "" : role + epoch}${isNewest ? "n" : ""}${mayClaim ? "m" : ""}${awaited ? "a" : ""}${heard}.${silentMs}`;
    if (!lease || isIdle) return text;
    const { sentAtMs } = lease as unknown as LeaseParts;
    const stillMs = (untilMs: number) => Math.max(untilMs - now, -reactMs);
    text += `.${stillMs(lease.validUntilMs)}`;
    for (const { seq } of own) {
      const sentMs = sentAtMs.get(seq);
      const untilMs = sentMs === undefined ? lease.validUntilMs : sentMs + timing.grantMs;
      text += `,${stillMs(Math.max(untilMs, lease.validUntilMs))}`;
    }
    return text;
  }

  /** The trace's line. */
  tell({ kind, index }: Action): string {
    if (kind === "tick" || kind === "record changes") return kind;
    if (kind !== "arrives" && kind !== "answered" && kind !== "lost") return `node ${index}: ${kind}`;
    const { node, purpose, stage, at: known } = at(this.messages, index);
    const what =
      purpose === "look" ? purpose : `${purpose} (term ${known.record.epoch}, number ${known.record.seq})`;
    return `node ${node}: ${what} ${kind}${stage === "request" ? "" : `: ${stage}`}`;
  }
}
