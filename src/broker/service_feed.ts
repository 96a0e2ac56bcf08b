// What is known of one service in this process: the latest record, and whether those who hold it
// live. Shared by the tickets and grants of one broker.
//
// SF1 At most one look is under way, so that a storage that hangs holds one thread of the pool, and
//     nobody who calls.
// SF2 A change is noticed by the store's hints; a slow poll notices what those can't tell: a holder
//     that died or fell silent, hints that were lost.
// SF3 A record that is gone, or older than one seen before, is no step back in time but a gap: it is
//     told as such.
import type { BrokerState } from "./broker.js";
import type { HolderLife, Life, Liveness } from "./liveness.js";
import type { RegisteredAgent, Versioned } from "./record.js";
import type { RecordStore } from "./records.js";
import { type Runtime, type Timer, wallText } from "./runtime.js";

const pollMs = 2000;
/** A look takes a millisecond or two; one that takes this long says that the storage hangs. */
const lateMs = 500;

/** How the service stands at one look. */
export interface Sight {
  readonly found: Versioned | undefined;
  /** of the slot's holder; gone where there is none */
  readonly holder: Life;
  readonly fencingMs?: number | undefined;
  /** ISO 8601: when, by this host's wall clock */
  readonly at: string;
  /** hosts of the registered agents that live */
  readonly agents: readonly string[];
}

export interface FeedListener {
  /** `gap`: SF3, or the storage answers again */
  readonly seen: (sight: Sight, gap: boolean) => void;
  readonly failed: (error: unknown) => void;
  readonly stateChanged: (state: BrokerState, detail: string) => void;
}

export class ServiceFeed {
  private readonly listeners = new Set<FeedListener>();
  private endWatch: (() => void) | undefined;
  private lookAgain: Timer | undefined;
  private poll: Timer | undefined;
  private looking: Promise<void> | undefined;
  private isStale = false;
  private last: Sight | undefined;
  private lastText = "";
  private brokerState: BrokerState = "connected";
  private ended = false;

  constructor(
    readonly service: string,
    private readonly store: RecordStore,
    private readonly liveness: Liveness,
    private readonly runtime: Runtime,
  ) {}

  get state(): BrokerState {
    return this.brokerState;
  }

  get sight(): Sight | undefined {
    return this.last;
  }

  /** The first look starts on a later turn. */
  add(listener: FeedListener): () => void {
    this.listeners.add(listener);
    if (!this.poll) {
      this.poll = this.runtime.every(pollMs, () => this.look());
      this.endWatch = this.store.watch(this.service, () => this.look());
      this.runtime.soon(() => this.look());
    } else if (this.last) {
      const sight = this.last;
      this.runtime.soon(() => {
        if (this.listeners.has(listener)) listener.seen(sight, false);
      });
    }
    return () => this.listeners.delete(listener);
  }

  get isUsed(): boolean {
    return this.listeners.size > 0;
  }

  end(): void {
    this.ended = true;
    this.listeners.clear();
    this.poll?.cancel();
    this.lookAgain?.cancel();
    this.endWatch?.();
  }

  /** Looks now, or again after the look that is under way (SF1). */
  look(): void {
    if (this.ended) return;
    if (this.looking) {
      this.isStale = true;
      return;
    }
    const late = this.runtime.after(lateMs, () =>
      this.setState("degraded", `the records of ${this.service} do not answer`),
    );
    this.looking = this.lookOnce().finally(() => {
      late.cancel();
      this.looking = undefined;
      if (!this.isStale) return;
      this.isStale = false;
      this.look();
    });
  }

  private async lookOnce(): Promise<void> {
    try {
      const found = await this.store.read(this.service);
      const { life, lookAgainMs, fencingMs }: HolderLife = found
        ? await this.liveness.holder(this.service, found.record)
        : { life: "gone" };
      const agents = await aliveAgents(this.liveness, this.service, found?.record.agents ?? []);
      this.lookAgain?.cancel();
      if (lookAgainMs !== undefined && !this.ended)
        this.lookAgain = this.runtime.after(lookAgainMs, () => this.look());
      this.see({ found, holder: life, fencingMs, at: wallText(this.runtime), agents });
    } catch (error) {
      if (this.ended) return;
      this.lastText = "";
      this.setState("unreachable", error instanceof Error ? error.message : String(error));
      for (const listener of this.listeners) listener.failed(error);
    }
  }

  private see(sight: Sight): void {
    if (this.ended) return;
    const former = this.last?.found;
    const isGap =
      this.brokerState !== "connected" ||
      (former !== undefined && (sight.found?.revision ?? 0) < former.revision) ||
      (former !== undefined &&
        sight.found?.revision === former.revision &&
        sight.found.token !== former.token);
    this.last = sight;
    this.setState("connected", "");
    const text = `${sight.found?.token} ${sight.holder} ${sight.agents.join()}`;
    if (text === this.lastText && !isGap) return;
    this.lastText = text;
    for (const listener of [...this.listeners]) listener.seen(sight, isGap);
  }

  private setState(state: BrokerState, detail: string): void {
    if (this.ended || state === this.brokerState) return;
    this.brokerState = state;
    for (const listener of this.listeners) listener.stateChanged(state, detail);
  }
}

/** Hosts of those that live; also for a look without a feed. */
export async function aliveAgents(
  liveness: Liveness,
  service: string,
  agents: readonly RegisteredAgent[],
): Promise<string[]> {
  const alive: string[] = [];
  for (const agent of agents) if (await liveness.agent(service, agent)) alive.push(agent.host);
  return alive;
}
