// The events of one served volume: kept for a while, numbered, handed to everyone who listens
// (server-sent events, the server's log lines).
//
// EV1 Ids only grow within one server term; a listener that reconnects with the last id it saw gets
//     what is still kept after it.
// EV2 A listener that throws or is slow never holds up another: listeners are called synchronously
//     and must only hand over.
import type { VolumeEventKind } from "../native.js";

export type EventKind =
  | VolumeEventKind
  | "server-ready"
  | "server-stopping"
  | "client-connected"
  | "client-closed"
  /** of the agent */
  | "device-attached"
  | "device-lost"
  | "device-failed"
  | "device-detached"
  | "hold-taken"
  | "hold-ended";

export interface EventRecord {
  readonly id: number;
  readonly time: string;
  readonly volume: string;
  readonly kind: EventKind;
  /** name of the snapshot, or null */
  readonly snapshot: string | null;
  readonly snapshot_uuid: string | null;
  readonly message: string;
}

export interface EventInput {
  readonly kind: EventKind;
  readonly snapshot?: string;
  readonly snapshotUuid?: string;
  readonly message: string;
  /** the hub's own where absent */
  readonly volume?: string;
}

const keptEvents = 1000;

export class EventHub {
  private readonly kept: EventRecord[] = [];
  private readonly listeners = new Set<(event: EventRecord) => void>();
  private lastId = 0;

  constructor(
    private readonly volume: string,
    private readonly now: () => Date = () => new Date(),
  ) {}

  emit(input: EventInput): EventRecord {
    this.lastId += 1;
    const event: EventRecord = {
      id: this.lastId,
      time: this.now().toISOString(),
      volume: input.volume ?? this.volume,
      kind: input.kind,
      snapshot: input.snapshot || null,
      snapshot_uuid: input.snapshotUuid || null,
      message: input.message,
    };
    this.kept.push(event);
    if (this.kept.length > keptEvents) this.kept.shift();
    for (const listener of this.listeners) listener(event);
    return event;
  }

  /** Events after `lastSeen` that are still kept, then all new ones. Returns the way to stop. */
  subscribe(lastSeen: number, listener: (event: EventRecord) => void): () => void {
    for (const event of this.kept) if (event.id > lastSeen) listener(event);
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  get lastEventId(): number {
    return this.lastId;
  }
}
