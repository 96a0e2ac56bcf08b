// Time and chance, as the broker, an agent's servers and a server's term see them. Handed to whatever
// waits or draws, so that the shipped code runs in virtual time as well (test/schedules).
//
// RT1 Nothing else asks for the time, sets a timer or draws a number, but the adapters to the outside
//     world that test/unit/layering.test.ts names.
// RT2 A grant's arithmetic uses neither of these clocks but CLOCK_BOOTTIME (clock.ts). The wall clock
//     is for people, and for waits that nothing but patience depends on.
import { randomUUID } from "node:crypto";

export interface Timer {
  /** No call after this; none twice. */
  cancel(): void;
}

export interface Runtime {
  /** ms since some moment of this process; never goes back */
  monotonicMs(): number;
  /** ms since 1970; may jump, and differs from host to host */
  wallMs(): number;
  /** Calls once, on a later turn. The process lives until then. */
  after(delayMs: number, call: () => void): Timer;
  /** The same for a call that need not come: it keeps no process alive. */
  afterIfAlive(delayMs: number, call: () => void): Timer;
  every(periodMs: number, call: () => void): Timer;
  /** Calls on a later turn of the event loop. */
  soon(call: () => void): void;
  /** from 0 up to 1 */
  random(): number;
  /** An id that no process draws twice. */
  uniqueId(): string;
}

export const nodeRuntime: Runtime = {
  monotonicMs: () => performance.now(),
  wallMs: () => Date.now(),
  after: (delayMs, call) => timer(setTimeout(call, delayMs)),
  afterIfAlive: (delayMs, call) => timer(setTimeout(call, delayMs).unref()),
  every: (periodMs, call) => timer(setInterval(call, periodMs)),
  soon: (call) => void setImmediate(call),
  random: () => Math.random(),
  uniqueId: () => randomUUID(),
};

function timer(started: NodeJS.Timeout): Timer {
  return { cancel: () => clearTimeout(started) };
}

export function sleep(runtime: Runtime, delayMs: number): Promise<void> {
  return new Promise((resolve) => {
    runtime.after(delayMs, resolve);
  });
}

/** What `work` comes to, or `late` once the limit has passed; a rejection by then is passed on. */
export async function within<T, L>(
  runtime: Runtime,
  limitMs: number,
  work: Promise<T>,
  late: () => L,
): Promise<T | L> {
  let limit: Timer | undefined;
  const passed = new Promise<void>((resolve) => {
    limit = runtime.after(limitMs, resolve);
  }).then(late);
  try {
    return await Promise.race([work, passed]);
  } finally {
    limit?.cancel();
  }
}

/** ISO 8601, for people. */
export function wallText(runtime: Runtime): string {
  return new Date(runtime.wallMs()).toISOString();
}
