// How long an agent leaves a free slot alone before it orders a server itself.
//
// AR4 A server that ends soon after its start is started again ever later, up to backoffMaxMs.
// AR7 A service that is being moved is left to the host that shall have it, for moveLimitMs.
// AR10 Both are counted on this host's own clock, from its first look at the slot. Wall clocks differ
//      from host to host and jump: by one that is behind the writer's, the wait would never end.
import type { Slot } from "./record.js";
import type { Runtime } from "./runtime.js";

export const backoffMaxMs = 10_000;
export const moveLimitMs = 10_000;

export class OrderDelay {
  private seen = "";
  private untilMs = 0;

  constructor(
    private readonly host: string,
    private readonly runtime: Pick<Runtime, "monotonicMs">,
  ) {}

  /** ms left; 0 or less: this agent may order. */
  leftMs(slot: Slot): number {
    const { since, retry_at, move_to } = slot;
    const nowMs = this.runtime.monotonicMs();
    const text = `${since} ${retry_at} ${move_to}`;
    if (text !== this.seen) {
      this.seen = text;
      this.untilMs = nowMs + this.wholeMs(slot);
    }
    return this.untilMs - nowMs;
  }

  private wholeMs({ since, retry_at, move_to }: Slot): number {
    if (move_to !== null) return move_to === this.host ? 0 : moveLimitMs;
    // Both were written by one clock.
    return retry_at === null ? 0 : Math.min(backoffMaxMs, Date.parse(retry_at) - Date.parse(since));
  }
}
