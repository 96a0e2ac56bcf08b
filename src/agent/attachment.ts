// One attachment as a pure state machine: events in, actions out. device.ts feeds it and performs
// what it returns. Sources: design §9, reference on the kernel's client (cutting, adoption, races).
//
// AT1 Before a server is dialed every older connection is cut: at no time may two connections of one
//     attachment carry requests.
// AT2 A connection is installed only if volume, size, flags and durability id are those of the first
//     one and its epoch is not older (F6). Otherwise the device fails loudly: lost writes must not
//     be covered up by a server that knows nothing of them.
// AT3 An installed connection is believed only after a read through the device (the kernel may drop
//     a socket silently). Without proof in time everything begins anew, with a greater TRY.
// AT4 In every phase either something is under way that ends in an event, or a timer runs, or an
//     address is waited for and `reason` says why.
// AT5 What is wanted is saved before the kernel is told (`save` comes first): a killed agent finds
//     its devices again.
import type { Identity } from "./dial.js";

export type Phase =
  /** no connection; `reason` says what is waited for */
  | "waiting"
  /** older connections are shut; the kernel's word for it is waited for */
  | "cutting"
  | "dialing"
  /** the first CONNECT */
  | "connecting"
  /** RECONFIGURE */
  | "installing"
  /** a read has to prove the new connection */
  | "proving"
  /** found at start, or in doubt: a read decides whether the connection lives */
  | "checking"
  | "attached"
  /** is it in use? */
  | "releasing"
  | "disconnecting"
  /** for good; `reason` says why */
  | "failed"
  | "gone";

export interface ServerAddress {
  readonly epoch: bigint;
  readonly uris: readonly string[];
}

export type TimerName = "retry" | "cut" | "proof" | "give-up";

export type AttachmentEvent =
  | { readonly kind: "address"; readonly address: ServerAddress }
  /** nobody serves; `reason` is for a person */
  | { readonly kind: "no-address"; readonly reason: string }
  | {
      readonly kind: "dialed";
      readonly attempt: number;
      readonly identity: Identity;
      readonly epoch: bigint;
    }
  | {
      readonly kind: "dial-failed";
      readonly attempt: number;
      readonly reason: string;
      readonly final: boolean;
    }
  | { readonly kind: "connected"; readonly device: number }
  | { readonly kind: "connect-failed"; readonly reason: string }
  | { readonly kind: "installed"; readonly attempt: number }
  | { readonly kind: "install-failed"; readonly attempt: number; readonly reason: string }
  /** the kernel says that a connection of this device has died */
  | { readonly kind: "dead" }
  /** the server does not answer, or has ended its term: the connection is worth nothing */
  | { readonly kind: "silent"; readonly reason: string }
  /** something may have been missed: a read decides */
  | { readonly kind: "doubt" }
  /** a read through the device succeeded, or failed for another cause than a dead link */
  | { readonly kind: "proved" }
  | { readonly kind: "proof-failed"; readonly reason: string }
  | { readonly kind: "timer"; readonly timer: TimerName }
  | { readonly kind: "detach"; readonly force: boolean }
  | { readonly kind: "unused" }
  | { readonly kind: "in-use"; readonly by: string }
  | { readonly kind: "disconnected" }
  | { readonly kind: "disconnect-failed"; readonly reason: string }
  /** somebody else has taken the device from the kernel */
  | { readonly kind: "vanished" };

export type AttachmentAction =
  | { readonly kind: "save" }
  | { readonly kind: "dial"; readonly attempt: number; readonly uris: readonly string[] }
  /** closes a connection that was dialed and not installed */
  | { readonly kind: "hang-up"; readonly attempt: number }
  /** shuts every connection that the kernel was given */
  | { readonly kind: "cut" }
  | { readonly kind: "connect"; readonly attempt: number }
  | { readonly kind: "install"; readonly attempt: number }
  | { readonly kind: "prove" }
  | { readonly kind: "arm"; readonly timer: TimerName; readonly ms: number }
  | { readonly kind: "disarm"; readonly timer: TimerName }
  /** `deep`: the device answers, so that it may be opened */
  | { readonly kind: "check-unused"; readonly deep: boolean }
  | { readonly kind: "disconnect" }
  /** the attachment is over: ends its hold at the server and its record */
  | { readonly kind: "forget" }
  /** for the log and whoever waits */
  | { readonly kind: "tell"; readonly phase: Phase; readonly reason: string };

export type OnLost =
  | { readonly mode: "hang" }
  /** I/O errors once no server was there for so long */
  | { readonly mode: "error"; readonly afterMs: number };

export interface AttachmentOptions {
  readonly onLost: OnLost;
  /** greater than any TRY used before */
  readonly firstAttempt: number;
  /** 0 to 1, for the jitter of back-off */
  readonly random: () => number;
  /** why it has failed under a former agent: stays so until it is detached */
  readonly failure?: string | undefined;
  /** what a former agent knew */
  readonly known?: { readonly device: number; readonly identity: Identity; readonly epoch: bigint };
}

/** The kernel tells of a dead socket within milliseconds; where it never does, a read will show. */
const cutLimitMs = 1_500;
/** The same where the connection's server has ended: its sockets are closed already. */
const movedCutLimitMs = 200;
const checkLimitMs = 2_000;
const proofLimitMs = 2_000;
const proofLimitMaxMs = 60_000;
const retryFirstMs = 50;
const retryMaxMs = 1_000;

export class Attachment {
  #phase: Phase = "waiting";
  #reason = "it has just been asked for";
  #attempt: number;
  /** an attempt whose connection is ours and not installed */
  #dialed: number | undefined;
  #device: number | undefined;
  #identity: Identity | undefined;
  #epoch = 0n;
  #address: ServerAddress | undefined;
  /** the kernel has, or may have, a connection that was not cut */
  #live = false;
  #retryMs = retryFirstMs;
  #proofMs = proofLimitMs;
  #givingUp = false;
  /** where a refused detach goes back to */
  #before: Phase = "waiting";
  #actions: AttachmentAction[] = [];

  constructor(private readonly options: AttachmentOptions) {
    this.#attempt = options.firstAttempt - 1;
    if (options.known) {
      this.#device = options.known.device;
      this.#identity = options.known.identity;
      this.#epoch = options.known.epoch;
      this.#live = true;
    }
  }

  get phase(): Phase {
    return this.#phase;
  }
  /** one line; '' while attached */
  get reason(): string {
    return this.#reason;
  }
  get device(): number | undefined {
    return this.#device;
  }
  get identity(): Identity | undefined {
    return this.#identity;
  }
  get epoch(): bigint {
    return this.#epoch;
  }

  /** Called once, first. */
  start(): AttachmentAction[] {
    if (this.options.failure !== undefined) {
      this.#fail(this.options.failure);
    } else if (this.#device === undefined) {
      this.#go("waiting", "the server's address is not known yet");
    } else {
      this.#check("found at start");
    }
    return this.#take();
  }

  handle(event: AttachmentEvent): AttachmentAction[] {
    if (this.#phase === "gone") return this.#hangUpStray(event);
    switch (event.kind) {
      case "address":
        this.#addressed(event.address);
        break;
      case "no-address":
        this.#address = undefined;
        if (this.#phase === "waiting") this.#wait(event.reason);
        break;
      case "dialed":
        this.#connectionMade(event);
        break;
      case "dial-failed":
        if (this.#phase === "dialing" && event.attempt === this.#attempt) {
          if (event.final) this.#fail(event.reason);
          else this.#retry(event.reason);
        }
        break;
      case "connected":
        this.#connected(event.device);
        break;
      case "connect-failed":
        if (this.#phase === "connecting") {
          this.#live = false;
          this.#fail(event.reason);
        } else if (this.#phase === "disconnecting" && this.#device === undefined) {
          this.#forget("detached");
        }
        break;
      case "installed":
        if (this.#phase === "installing" && event.attempt === this.#attempt) this.#proveIt();
        break;
      case "install-failed":
        if (this.#phase === "installing" && event.attempt === this.#attempt) this.#lose(event.reason);
        break;
      case "dead":
        this.#dead();
        break;
      case "silent":
        if (this.#phase === "attached" || this.#phase === "checking") this.#lose(event.reason);
        break;
      case "doubt":
        if (this.#phase === "attached") this.#check("events may have been missed");
        break;
      case "proved":
        if (this.#phase === "proving" || this.#phase === "checking") this.#attached();
        break;
      case "proof-failed":
        if (this.#phase === "proving" || this.#phase === "checking") this.#lose(event.reason);
        break;
      case "timer":
        this.#expired(event.timer);
        break;
      case "detach":
        this.#detach(event.force);
        break;
      case "unused":
        if (this.#phase === "releasing") this.#disconnect("detached");
        break;
      case "in-use":
        if (this.#phase === "releasing") this.#stay(event.by);
        break;
      case "disconnected":
        this.#disconnected();
        break;
      case "disconnect-failed":
        if (this.#phase === "disconnecting") this.#stay(event.reason);
        break;
      case "vanished":
        this.#vanished();
        break;
    }
    return this.#take();
  }

  #addressed(address: ServerAddress): void {
    // F4: an older server may be told of late.
    if (address.epoch < this.#epoch) return;
    const isNewer = this.#address === undefined || address.epoch > this.#address.epoch;
    this.#address = address;
    if (this.#phase === "waiting") {
      if (isNewer) this.#retryMs = retryFirstMs;
      this.#act({ kind: "disarm", timer: "retry" });
      this.#dial();
    } else if (address.epoch > this.#epoch) {
      this.#moved(address.epoch);
    }
  }

  /** The term that the connection belongs to is over (F1), and with it the connection. */
  #moved(epoch: bigint): void {
    if (this.#phase === "attached" || this.#phase === "checking")
      this.#lose(`the server has moved to epoch ${epoch}`);
    // A connection that died unseen is never told of again: a restarted agent would wait in vain.
    if (this.#phase === "cutting") this.#act({ kind: "arm", timer: "cut", ms: movedCutLimitMs });
  }

  #connectionMade(event: Extract<AttachmentEvent, { kind: "dialed" }>): void {
    if (this.#phase !== "dialing" || event.attempt !== this.#attempt) {
      this.#act({ kind: "hang-up", attempt: event.attempt });
      return;
    }
    this.#dialed = event.attempt;
    if (event.epoch < this.#epoch) {
      this.#retry(`the server at the known address is of the older epoch ${event.epoch}`);
      return;
    }
    const mismatch = this.#identity && difference(this.#identity, event.identity);
    if (mismatch) {
      this.#fail(mismatch);
      return;
    }
    this.#identity ??= event.identity;
    this.#epoch = event.epoch;
    this.#dialed = undefined;
    this.#live = true;
    this.#act({ kind: "save" });
    if (this.#device === undefined) {
      this.#go("connecting", "the kernel makes the device");
      this.#act({ kind: "connect", attempt: event.attempt });
    } else {
      this.#go("installing", "the kernel takes the new connection");
      this.#act({ kind: "install", attempt: event.attempt });
    }
  }

  #connected(device: number): void {
    if (this.#phase !== "connecting" && this.#phase !== "disconnecting") return;
    this.#device = device;
    this.#act({ kind: "save" });
    // A forced detach came while the kernel was at it.
    if (this.#phase === "disconnecting") this.#act({ kind: "disconnect" });
    else this.#proveIt();
  }

  #proveIt(): void {
    this.#go("proving", "a first read has to come back");
    this.#act({ kind: "arm", timer: "proof", ms: this.#proofMs }, { kind: "prove" });
  }

  #attached(): void {
    this.#givingUp = false;
    this.#retryMs = retryFirstMs;
    this.#proofMs = proofLimitMs;
    this.#act({ kind: "disarm", timer: "proof" }, { kind: "disarm", timer: "give-up" });
    this.#go("attached", "");
    this.#act({ kind: "save" });
    // The server may have moved meanwhile.
    if (this.#address && this.#address.epoch > this.#epoch) this.#moved(this.#address.epoch);
  }

  #dead(): void {
    switch (this.#phase) {
      case "cutting":
        this.#live = false;
        this.#act({ kind: "disarm", timer: "cut" });
        this.#dial();
        break;
      case "attached":
      case "checking":
      case "proving":
        // While proving it may be the old connection's late death, or the new one's: begin anew
        // rather than wait for a proof that may never come.
        this.#live = false;
        this.#lose("the connection has died");
        break;
      default:
        break;
    }
  }

  /** From any phase with a connection that is worth nothing. */
  #lose(reason: string): void {
    if (this.#phase === "proving") this.#proofMs = Math.min(this.#proofMs * 2, proofLimitMaxMs);
    this.#act({ kind: "disarm", timer: "proof" });
    const { onLost } = this.options;
    if (onLost.mode === "error" && !this.#givingUp) {
      this.#givingUp = true;
      this.#act({ kind: "arm", timer: "give-up", ms: onLost.afterMs });
    }
    // AT1. Also a dead one: its descriptor is of no more use.
    this.#act({ kind: "cut" });
    if (this.#live) {
      this.#go("cutting", reason);
      this.#act({ kind: "arm", timer: "cut", ms: cutLimitMs });
    } else {
      this.#reason = reason;
      this.#dial();
    }
  }

  #dial(): void {
    const address = this.#address;
    if (!address) {
      this.#wait(this.#reason || "no server is known");
      return;
    }
    this.#attempt += 1;
    this.#go("dialing", this.#reason);
    this.#act({ kind: "dial", attempt: this.#attempt, uris: address.uris });
  }

  #retry(reason: string): void {
    this.#hangUp();
    this.#go("waiting", reason);
    // Decorrelated enough for the few devices of one host.
    const ms = Math.round(this.#retryMs * (0.5 + this.options.random()));
    this.#retryMs = Math.min(this.#retryMs * 1.5, retryMaxMs);
    this.#act({ kind: "arm", timer: "retry", ms });
  }

  #wait(reason: string): void {
    this.#go("waiting", reason);
  }

  #expired(timer: TimerName): void {
    if (timer === "retry" && this.#phase === "waiting") this.#dial();
    else if (timer === "cut" && this.#phase === "cutting") this.#dial();
    else if (timer === "proof" && (this.#phase === "proving" || this.#phase === "checking"))
      this.#lose(
        this.#phase === "checking" ? "a read does not come back" : "the new connection has not proved itself",
      );
    else if (timer === "give-up" && this.#givingUp) this.#giveUp();
  }

  #giveUp(): void {
    this.#givingUp = false;
    if (this.#phase === "releasing" || this.#phase === "disconnecting" || this.#phase === "failed") return;
    this.#fail(`no server came back in time (--on-lost error): ${this.#reason}`);
  }

  #detach(force: boolean): void {
    if (this.#phase === "disconnecting") return;
    this.#hangUp();
    if (this.#device === undefined && this.#phase !== "connecting") {
      this.#forget("detached");
    } else if (force) {
      if (this.#phase !== "releasing") this.#before = this.#phase;
      this.#disconnect("detached by force");
    } else if (this.#phase !== "releasing" && this.#phase !== "connecting") {
      this.#before = this.#phase;
      this.#go("releasing", "is it in use?");
      this.#act({ kind: "check-unused", deep: this.#before === "attached" });
    }
  }

  #disconnect(reason: string): void {
    for (const timer of ["retry", "cut", "proof", "give-up"] as const) this.#act({ kind: "disarm", timer });
    this.#go("disconnecting", reason);
    // A CONNECT under way answers first.
    if (this.#device !== undefined) this.#act({ kind: "save" }, { kind: "disconnect" });
  }

  /** A detach was refused: as before, with whatever has happened meanwhile. */
  #stay(why: string): void {
    this.#act({ kind: "tell", phase: "releasing", reason: why });
    if (this.#before === "failed") {
      this.#go("failed", why);
      return;
    }
    this.#check(why);
  }

  #check(why: string): void {
    this.#go("checking", why);
    this.#act({ kind: "arm", timer: "proof", ms: checkLimitMs }, { kind: "prove" });
  }

  #disconnected(): void {
    if (this.#phase === "disconnecting") this.#forget(this.#reason);
    else if (this.#phase === "failed") this.#live = false;
  }

  #vanished(): void {
    if (this.#phase === "disconnecting" || this.#phase === "releasing") {
      this.#forget("detached");
      return;
    }
    if (this.#device === undefined) return;
    this.#device = undefined;
    this.#live = false;
    if (this.#phase === "failed") this.#act({ kind: "save" });
    else this.#fail("somebody else has disconnected the device");
  }

  #fail(reason: string): void {
    this.#hangUp();
    for (const timer of ["retry", "cut", "proof", "give-up"] as const) this.#act({ kind: "disarm", timer });
    this.#go("failed", reason);
    this.#act({ kind: "save" });
    if (this.#device !== undefined) this.#act({ kind: "cut" }, { kind: "disconnect" });
    this.#live = false;
  }

  #forget(reason: string): void {
    for (const timer of ["retry", "cut", "proof", "give-up"] as const) this.#act({ kind: "disarm", timer });
    this.#live = false;
    this.#go("gone", reason);
    this.#act({ kind: "forget" });
  }

  #hangUp(): void {
    if (this.#dialed === undefined) return;
    this.#act({ kind: "hang-up", attempt: this.#dialed });
    this.#dialed = undefined;
  }

  #hangUpStray(event: AttachmentEvent): AttachmentAction[] {
    return event.kind === "dialed" ? [{ kind: "hang-up", attempt: event.attempt }] : [];
  }

  #go(phase: Phase, reason: string): void {
    this.#phase = phase;
    this.#reason = reason;
    this.#act({ kind: "tell", phase, reason });
  }

  #act(...actions: AttachmentAction[]): void {
    this.#actions.push(...actions);
  }

  #take(): AttachmentAction[] {
    const actions = this.#actions;
    this.#actions = [];
    return actions;
  }
}

/** Why `found` can't stand in for `known` (F6), or undefined. */
function difference(known: Identity, found: Identity): string | undefined {
  if (found.volumeUuid !== known.volumeUuid)
    return `the server at the known address serves another volume (uuid ${found.volumeUuid}, attached was ${known.volumeUuid})`;
  if (found.durabilityId !== known.durabilityId)
    return "acknowledged writes may have been lost at the server (its durability id has changed): detach, check the file system, attach again";
  if (found.sizeBytes !== known.sizeBytes)
    return `the export has ${found.sizeBytes} bytes now, attached were ${known.sizeBytes}`;
  if (found.transmissionFlags !== known.transmissionFlags)
    return `the export's flags have changed from 0x${known.transmissionFlags.toString(16)} to 0x${found.transmissionFlags.toString(16)}`;
  return undefined;
}
