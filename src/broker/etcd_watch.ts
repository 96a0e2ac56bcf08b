// One watch of all services' keys: hints that a record has changed. Used by etcd_records.ts.
//
// EW1 Hints only. A watch that ends, was compacted away or falls silent is opened anew at the next
//     member, and everybody is told to look (a gap).
// EW2 Silence is noticed by what reads show: a revision that the watch has not told silentLimitMs after
//     it was read.
import type { IncomingMessage } from "node:http";
import type { EtcdClient } from "./etcd_client.js";

const retryMinMs = 100;
const retryMaxMs = 2000;
const silentLimitMs = 2000;

interface WatchLine {
  readonly result?: {
    readonly header?: { readonly revision?: string };
    readonly created?: boolean;
    readonly canceled?: boolean;
    readonly events?: readonly { readonly kv?: { readonly key?: string } }[];
  };
}

export class EtcdWatch {
  private readonly listeners = new Map<string, Set<() => void>>();
  private stream: IncomingMessage | undefined;
  private running = false;
  private closed = false;
  private turn = 0;
  private toldRevision = 0;
  private missedSince: number | undefined;
  private retry: (() => void) | undefined;

  constructor(
    private readonly client: EtcdClient,
    private readonly prefix: string,
  ) {}

  add(service: string, changed: () => void): () => void {
    const listeners = this.listeners.get(service) ?? new Set();
    this.listeners.set(service, listeners.add(changed));
    if (!this.running) void this.run();
    return () => {
      listeners.delete(changed);
      if (listeners.size === 0 && this.listeners.get(service) === listeners) this.listeners.delete(service);
      if (this.listeners.size === 0) this.interrupt();
    };
  }

  /** EW2: a read found this revision of a watched key. */
  saw(service: string, revision: number): void {
    if (!this.listeners.has(service) || revision <= this.toldRevision) {
      this.missedSince = undefined;
      return;
    }
    const now = performance.now();
    this.missedSince ??= now;
    if (now - this.missedSince < silentLimitMs) return;
    this.missedSince = undefined;
    this.stream?.destroy();
  }

  close(): void {
    this.closed = true;
    this.listeners.clear();
    this.interrupt();
  }

  private interrupt(): void {
    this.stream?.destroy();
    this.retry?.();
  }

  private async run(): Promise<void> {
    this.running = true;
    let waitMs = retryMinMs;
    while (!this.closed && this.listeners.size > 0) {
      const openedMs = performance.now();
      try {
        this.stream = await this.client.stream("watch", this.createRequest(), this.turn);
        await this.follow(this.stream);
      } catch {
        // The next member may answer.
      }
      this.stream = undefined;
      this.turn++;
      waitMs = performance.now() - openedMs > retryMaxMs ? retryMinMs : Math.min(retryMaxMs, waitMs * 2);
      if (!this.closed && this.listeners.size > 0) await this.pause(waitMs);
    }
    this.running = false;
  }

  private createRequest(): object {
    const start = Buffer.from(this.prefix, "utf8");
    const end = Buffer.from(start);
    // The first key behind all with this prefix, which ends with a slash.
    end[end.length - 1] = (end[end.length - 1] ?? 0) + 1;
    return { create_request: { key: start.toString("base64"), range_end: end.toString("base64") } };
  }

  /** Until the stream ends, or the watch on it. */
  private async follow(stream: IncomingMessage): Promise<void> {
    if (this.closed || this.listeners.size === 0) stream.destroy();
    let rest = "";
    stream.setEncoding("utf8");
    for await (const part of stream as AsyncIterable<string>) {
      const lines = (rest + part).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) if (line !== "" && !this.take(JSON.parse(line) as WatchLine)) return;
    }
  }

  /** False: the watch has ended. */
  private take({ result }: WatchLine): boolean {
    if (!result || result.canceled) return false;
    this.toldRevision = Math.max(this.toldRevision, Number(result.header?.revision ?? 0));
    if (result.created) this.tellAll();
    for (const { kv } of result.events ?? []) {
      const name = Buffer.from(kv?.key ?? "", "base64")
        .toString("utf8")
        .slice(this.prefix.length);
      for (const changed of this.listeners.get(name) ?? []) changed();
    }
    return true;
  }

  private tellAll(): void {
    for (const listeners of this.listeners.values()) for (const changed of listeners) changed();
  }

  private pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(done, ms);
      timer.unref();
      const self = this;
      function done(): void {
        clearTimeout(timer);
        self.retry = undefined;
        resolve();
      }
      this.retry = done;
    });
  }
}
