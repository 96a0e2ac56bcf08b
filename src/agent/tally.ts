// What this agent has done and seen since it started: starts, fences, and times without a server.
//
// TL1 A failover is a start after something was lost: a host that this agent had fenced, or a server of this host that
//     ended with an error. Moves and first starts are starts only.
// TL2 A stall is the time between a device that worked and the same device working again; the first wait for a server is
//     none. One that lasts counts as far as it has come.

/** What was lost before a server was started. */
export type FailoverReason = "fenced" | "died";

export interface ServiceTally {
  readonly starts: number;
  readonly failovers: Readonly<Record<FailoverReason, number>>;
  readonly fences: readonly {
    readonly method: string;
    readonly confirmed: boolean;
    readonly count: number;
  }[];
}

interface Counted {
  starts: number;
  readonly failovers: Record<FailoverReason, number>;
  readonly fences: { readonly method: string; readonly confirmed: boolean; count: number }[];
  /** since the last start */
  lost: FailoverReason | undefined;
}

export class ServiceTallies {
  readonly #services = new Map<string, Counted>();

  lost(service: string, reason: FailoverReason): void {
    this.#of(service).lost = reason;
  }

  fenced(service: string, method: string, confirmed: boolean): void {
    const counted = this.#of(service);
    const known = counted.fences.find((fence) => fence.method === method && fence.confirmed === confirmed);
    if (known) known.count++;
    else counted.fences.push({ method, confirmed, count: 1 });
    if (confirmed) counted.lost = "fenced";
  }

  started(service: string): void {
    const counted = this.#of(service);
    counted.starts++;
    if (counted.lost !== undefined) counted.failovers[counted.lost]++;
    counted.lost = undefined;
  }

  entries(): IterableIterator<[string, ServiceTally]> {
    return this.#services.entries();
  }

  #of(service: string): Counted {
    const counted = this.#services.get(service) ?? {
      starts: 0,
      failovers: { fenced: 0, died: 0 },
      fences: [],
      lost: undefined,
    };
    this.#services.set(service, counted);
    return counted;
  }
}

export interface Stall {
  readonly count: number;
  readonly ms: number;
}

/** Of one device; times are performance.now(). */
export class StallClock {
  #count = 0;
  #endedMs = 0;
  #sinceMs: number | undefined;

  lost(nowMs: number): void {
    if (this.#sinceMs !== undefined) return;
    this.#sinceMs = nowMs;
    this.#count++;
  }

  /** It works again, or is given up. */
  over(nowMs: number): void {
    if (this.#sinceMs === undefined) return;
    this.#endedMs += nowMs - this.#sinceMs;
    this.#sinceMs = undefined;
  }

  at(nowMs: number): Stall {
    const runningMs = this.#sinceMs === undefined ? 0 : nowMs - this.#sinceMs;
    return { count: this.#count, ms: this.#endedMs + runningMs };
  }
}
