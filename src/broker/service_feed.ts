// What is known of one service in this process: the latest record, and whether those who hold it
// live. Shared by the tickets and grants of one local broker.
//
// SF1 At most one look is under way, so that a storage that hangs holds one thread of the pool, and
//     nobody who calls.
// SF2 A change is noticed by inotify; a slow poll notices what inotify can't: a holder that died, a
//     directory that came later, events that were lost.
// SF3 A record that is gone, or older than one seen before, is no step back in time but a gap: it is
//     told as such.
import { type FSWatcher, watch } from "node:fs";
import { stat } from "node:fs/promises";
import type { BrokerState } from "./broker.js";
import { isAlive, type ProcessIdentity } from "./process_identity.js";
import type { Versioned } from "./record.js";
import type { RecordStore } from "./record_store.js";

const pollMs = 2000;
/** A look takes a millisecond or two; one that takes this long says that the storage hangs. */
const lateMs = 1000;

/** How the service stands at one look. */
export interface Sight {
  readonly found: Versioned | undefined;
  readonly holderAlive: boolean;
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
  private watcher: FSWatcher | undefined;
  private poll: NodeJS.Timeout | undefined;
  private looking: Promise<void> | undefined;
  private lookAgain = false;
  private last: Sight | undefined;
  private lastText = "";
  private brokerState: BrokerState = "connected";
  private ended = false;

  constructor(
    readonly service: string,
    private readonly store: RecordStore,
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
      this.poll = setInterval(() => this.look(), pollMs);
      setImmediate(() => this.look());
    } else if (this.last) {
      const sight = this.last;
      setImmediate(() => this.listeners.has(listener) && listener.seen(sight, false));
    }
    return () => this.listeners.delete(listener);
  }

  get isUsed(): boolean {
    return this.listeners.size > 0;
  }

  end(): void {
    this.ended = true;
    this.listeners.clear();
    clearInterval(this.poll);
    this.watcher?.close();
    this.watcher = undefined;
  }

  /** Looks now, or again after the look that is under way (SF1). */
  look(): void {
    if (this.ended) return;
    if (this.looking) {
      this.lookAgain = true;
      return;
    }
    const late = setTimeout(
      () => this.setState("degraded", `the records of ${this.service} do not answer`),
      lateMs,
    );
    this.looking = this.lookOnce().finally(() => {
      clearTimeout(late);
      this.looking = undefined;
      if (!this.lookAgain) return;
      this.lookAgain = false;
      this.look();
    });
  }

  private async lookOnce(): Promise<void> {
    try {
      await this.startWatching();
      const found = await this.store.read(this.service);
      const holder = found?.record.slot.holder;
      const holderAlive = holder ? await isAlive(holder) : false;
      const agents = await aliveAgents(found?.record.agents ?? []);
      this.see({ found, holderAlive, agents });
    } catch (error) {
      if (this.ended) return;
      this.lastText = "";
      this.setState("unreachable", error instanceof Error ? error.message : String(error));
      for (const listener of this.listeners) listener.failed(error);
    }
  }

  /** The stat goes through the pool: where the directory hangs, inotify would hang this thread. */
  private async startWatching(): Promise<void> {
    if (this.watcher || this.ended) return;
    const directory = this.store.directoryOf(this.service);
    try {
      await this.store.prepareWatch(this.service);
      await stat(directory);
      if (this.ended) return;
      const watcher = watch(directory, { persistent: false });
      this.watcher = watcher;
      const restart = () => {
        watcher.close();
        if (this.watcher === watcher) this.watcher = undefined;
        this.look();
      };
      watcher.on("error", restart);
      watcher.on("change", (_kind, name) => {
        // The directory itself was removed or renamed.
        if (name === this.service) restart();
        else if (String(name).startsWith("r.")) this.look();
      });
    } catch {
      // Without rights to watch, the poll is all there is.
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
    const text = `${sight.found?.token} ${sight.holderAlive} ${sight.agents.join()}`;
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

async function aliveAgents(agents: readonly { host: string; process: ProcessIdentity }[]): Promise<string[]> {
  const alive: string[] = [];
  for (const { host, process } of agents) if (await isAlive(process)) alive.push(host);
  return alive;
}
