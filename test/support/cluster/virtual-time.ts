// The one queue of events of a simulated world, by true time, and the one source of its chance.
import { seededRandom } from "../random.js";

export interface VirtualEvent {
  readonly whenMs: number;
  readonly order: number;
  readonly run: () => void;
  cancelled: boolean;
}

export class VirtualTime {
  nowMs = 0;
  /** events that were run */
  events = 0;
  private order = 0;
  /** a binary heap */
  private readonly queue: VirtualEvent[] = [];

  after(delayMs: number, run: () => void): VirtualEvent {
    const event = { whenMs: this.nowMs + Math.max(0, delayMs), order: this.order++, run, cancelled: false };
    this.push(event);
    return event;
  }

  /** Runs the next event; false: there is none until then. */
  step(untilMs: number): boolean {
    for (;;) {
      const [next] = this.queue;
      if (!next || next.whenMs > untilMs) {
        this.nowMs = untilMs;
        return false;
      }
      this.pop();
      if (next.cancelled) continue;
      this.nowMs = next.whenMs;
      this.events++;
      next.run();
      return true;
    }
  }

  private push(event: VirtualEvent): void {
    const { queue } = this;
    let at = queue.push(event) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      const above = queue[parent] as VirtualEvent;
      if (!isBefore(event, above)) break;
      queue[at] = above;
      at = parent;
    }
    queue[at] = event;
  }

  private pop(): void {
    const { queue } = this;
    const last = queue.pop() as VirtualEvent;
    if (queue.length === 0) return;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= queue.length) break;
      if (
        child + 1 < queue.length &&
        isBefore(queue[child + 1] as VirtualEvent, queue[child] as VirtualEvent)
      )
        child++;
      if (!isBefore(queue[child] as VirtualEvent, last)) break;
      queue[at] = queue[child] as VirtualEvent;
      at = child;
    }
    queue[at] = last;
  }
}

function isBefore(a: VirtualEvent, b: VirtualEvent): boolean {
  return a.whenMs < b.whenMs || (a.whenMs === b.whenMs && a.order < b.order);
}

export class Chance {
  private readonly next: () => number;

  constructor(seed: number) {
    this.next = seededRandom(seed);
  }

  random = (): number => this.next();

  is(probability: number): boolean {
    return this.next() < probability;
  }

  between(low: number, high: number): number {
    return low + this.next() * (high - low);
  }

  pick<T>(list: readonly T[]): T {
    const found = list[Math.floor(this.next() * list.length)];
    if (found === undefined) throw new Error("nothing to pick from");
    return found;
  }
}
