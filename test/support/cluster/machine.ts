// Simulated hosts and processes: what a kernel, a power switch and a clock are to the shipped code.
//
// MA1 Each host has clocks of its own: BOOTTIME at its own rate, and a wall clock that jumps.
// MA2 A process runs on lanes, one for each thread that matters. What comes due while the lane, the
//     process or its host stands still waits, and runs in its order once it goes on; what comes due
//     after its death never runs.
// MA3 A killed process is gone when its last I/O has ended, as one in state D; a host that loses its
//     power takes its I/O with it.

import type { ProcessIdentity } from "../../../src/broker/process_identity.js";
import type { Runtime, Timer } from "../../../src/broker/runtime.js";
import { CsnapError } from "../../../src/volume/errors.js";
import type { Chance, VirtualTime } from "./virtual-time.js";

/** What all that is simulated shares. */
export interface Universe {
  readonly time: VirtualTime;
  readonly chance: Chance;
  readonly trace: (line: string) => void;
  nextId: number;
}

export class SimHost {
  readonly processes = new Map<number, SimProcess>();
  boots = 1;
  isOn = true;
  isPaused = false;
  /** what is sent from here, and to here, is lost */
  losesOut = false;
  losesIn = false;
  /** the way to the shared store stands still */
  storeHangs = false;
  /** of the shared store's device: one process at a time (O_EXCL) */
  storeUser: SimProcess | undefined;
  wallOffsetMs = 0;
  private nextPid = 100;
  /** BOOTTIME at the last change of its rate */
  private boottimeBaseMs: number;
  private trueBaseMs = 0;
  private rateNow: number;

  constructor(
    readonly universe: Universe,
    readonly name: string,
    readonly rate: number,
  ) {
    this.boottimeBaseMs = 1000 + universe.chance.between(0, 1e6);
    this.rateNow = rate;
  }

  get bootId(): string {
    return `${this.name}-boot-${this.boots}`;
  }

  boottimeMs(): number {
    return this.boottimeBaseMs + (this.universe.time.nowMs - this.trueBaseMs) * this.rateNow;
  }

  wallMs(): number {
    return 1.7e12 + this.boottimeMs() + this.wallOffsetMs;
  }

  start(what: string, parent?: SimProcess): SimProcess {
    const process = new SimProcess(this, this.nextPid++, what, parent);
    this.processes.set(process.pid, process);
    return process;
  }

  isAlive({ boot_id, pid, start_time }: ProcessIdentity): boolean {
    return boot_id === this.bootId && this.processes.get(pid)?.identity.start_time === start_time;
  }

  /** `clockToo`: as a virtual machine that is stopped from outside. */
  pause(clockToo: boolean): void {
    this.isPaused = true;
    if (clockToo) this.setRate(0);
  }

  resume(): void {
    this.isPaused = false;
    this.setRate(this.rate);
    for (const process of this.processes.values()) process.wake();
  }

  private setRate(rate: number): void {
    this.boottimeBaseMs = this.boottimeMs();
    this.trueBaseMs = this.universe.time.nowMs;
    this.rateNow = rate;
  }

  powerOff(): void {
    if (!this.isOn) return;
    this.universe.trace(`${this.name}: power off`);
    this.isOn = false;
    for (const process of [...this.processes.values()]) process.vanish();
    this.storeUser = undefined;
    this.isPaused = false;
    this.setRate(this.rate);
  }

  powerOn(): void {
    this.boots++;
    this.isOn = true;
    this.universe.trace(`${this.name}: boots`);
  }
}

/** A thread of a process. */
export class Lane {
  isStuck = false;
  private waiting: (() => void)[] = [];
  readonly runtime: Runtime;

  constructor(private readonly process: SimProcess) {
    const { host } = process;
    const { time, chance } = host.universe;
    const after = (delayMs: number, call: () => void): Timer => {
      let isCancelled = false;
      const event = time.after(delayMs / host.rate, () =>
        this.run(() => {
          if (!isCancelled) call();
        }),
      );
      return {
        cancel: () => {
          isCancelled = true;
          event.cancelled = true;
        },
      };
    };
    this.runtime = {
      monotonicMs: () => host.boottimeMs(),
      wallMs: () => host.wallMs(),
      after,
      afterIfAlive: after,
      every: (periodMs, call) => {
        let timer: Timer;
        const next = () => {
          timer = after(periodMs, () => {
            next();
            call();
          });
        };
        next();
        return { cancel: () => timer.cancel() };
      },
      soon: (call) => void time.after(0, () => this.run(call)),
      random: chance.random,
      uniqueId: () => `id-${host.universe.nextId++}`,
    };
  }

  private get isStill(): boolean {
    return this.isStuck || this.process.isStopped || this.process.host.isPaused;
  }

  run(call: () => void): void {
    if (this.process.state !== "alive") return;
    if (this.isStill) this.waiting.push(call);
    else call();
  }

  /** Runs it after a delay. */
  later(delayMs: number, call: () => void): void {
    this.process.host.universe.time.after(delayMs, () => this.run(call));
  }

  wake(): void {
    if (this.isStill || this.waiting.length === 0) return;
    const calls = this.waiting;
    this.waiting = [];
    for (const call of calls) this.later(0, call);
  }
}

type Ended = { readonly status: number | null; readonly signal: NodeJS.Signals | null };

export class SimProcess {
  state: "alive" | "dying" | "gone" = "alive";
  isStopped = false;
  readonly identity: ProcessIdentity;
  /** the event loop; the native threads; the renewal thread */
  readonly main: Lane;
  readonly data: Lane;
  readonly renewal: Lane;
  readonly children: SimProcess[] = [];
  /** Its standard input, as its parent's end of the pipe has it. */
  onInput: ((text: string | undefined) => void) | undefined;
  onSigterm: (() => void) | undefined;
  /** Told at the very moment, of every way to go. */
  onGone: (() => void) | undefined;
  private readonly exitListeners: ((ended: Ended) => void)[] = [];
  private ending: Ended = { status: null, signal: null };
  private inFlight = 0;

  constructor(
    readonly host: SimHost,
    readonly pid: number,
    readonly what: string,
    readonly parent: SimProcess | undefined,
  ) {
    this.identity = {
      host: host.name,
      machine: `machine-${host.name}`,
      boot_id: host.bootId,
      pid,
      start_time: String(Math.floor(host.boottimeMs())),
    };
    this.main = new Lane(this);
    this.data = new Lane(this);
    this.renewal = new Lane(this);
    parent?.children.push(this);
  }

  get name(): string {
    return `${this.host.name}/${this.what}-${this.pid}`;
  }

  wake(): void {
    for (const lane of [this.data, this.renewal, this.main]) lane.wake();
  }

  /** To its parent, if that lives then; one without a parent is the test's. */
  onExit(listener: (ended: Ended) => void): void {
    this.exitListeners.push(listener);
  }

  /** I/O that the kernel carries out, whatever becomes of the process. */
  ioBegins(): void {
    this.inFlight++;
  }

  ioEnds(): void {
    this.inFlight--;
    this.reap();
  }

  signal(name: NodeJS.Signals): void {
    if (this.state === "gone") throw new CsnapError("NOT_FOUND", "no such process");
    if (name === "SIGKILL") this.end({ status: null, signal: name });
    else if (name === "SIGTERM") this.main.run(() => this.onSigterm?.());
    else if (name === "SIGSTOP") this.isStopped = true;
    else if (name === "SIGCONT") {
      this.isStopped = false;
      this.wake();
    }
  }

  exit(status: number): void {
    this.end({ status, signal: null });
  }

  private end(how: Ended): void {
    if (this.state !== "alive") return;
    this.host.universe.trace(`${this.name}: ends, ${how.signal ?? `status ${how.status}`}`);
    this.ending = how;
    this.state = "dying";
    for (const child of this.children) child.main.later(1, () => child.onInput?.(undefined));
    this.reap();
  }

  private reap(): void {
    if (this.state !== "dying" || this.inFlight > 0) return;
    this.state = "gone";
    this.host.processes.delete(this.pid);
    if (this.host.storeUser === this) this.host.storeUser = undefined;
    this.onGone?.();
    const { time } = this.host.universe;
    for (const listener of this.exitListeners) {
      const tell = () => listener(this.ending);
      if (this.parent) this.parent.main.later(1, tell);
      else time.after(1, tell);
    }
  }

  /** With its host's power. */
  vanish(): void {
    this.state = "gone";
    this.host.processes.delete(this.pid);
    this.onGone?.();
  }
}
