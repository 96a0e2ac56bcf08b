// Simulated etcd: one linearizable record behind three members, and each process's RecordStore over a
// network that delays, loses and cuts in one direction only.
//
// SE1 A request may arrive, be stored and its answer be lost; without a quorum it may be held and
//     stored when the quorum is back. The client does what src/broker/etcd_records.ts does (ER1, ER2):
//     tokens tell what became of a swap.
// SE2 Watch events come late, twice or not at all; after a loss the watch is silent until it is opened
//     anew, as after a compaction.

import type { ServiceRecord, Versioned } from "../../../src/broker/record.js";
import type { RecordStore } from "../../../src/broker/records.js";
import { CsnapError } from "../../../src/volume/errors.js";
import type { Lane, SimHost, SimProcess, Universe } from "./machine.js";

const MEMBERS = 3;
/** as in etcd_client.ts */
const ENDPOINT_LIMIT_MS = 700;

type Stored = Versioned & { readonly previous: string };

interface Watcher {
  readonly store: SimRecords;
  readonly changed: () => void;
  isSilent: boolean;
}

export class SimEtcd {
  latest: Stored | undefined;
  readonly isUp = Array.from({ length: MEMBERS }, () => true);
  readonly watchers = new Set<Watcher>();
  /** probability that a message is lost */
  loss = 0;
  private revision = 0;
  private held: (() => void)[] = [];

  constructor(
    readonly universe: Universe,
    /** Sees each change at the moment it is stored. */
    private readonly committed: (
      before: ServiceRecord | undefined,
      after: ServiceRecord,
      by: SimProcess,
    ) => void,
  ) {}

  get hasQuorum(): boolean {
    return this.isUp.filter(Boolean).length > MEMBERS / 2;
  }

  setMember(index: number, isUp: boolean): void {
    this.isUp[index] = isUp;
    if (!this.hasQuorum) return;
    const held = this.held;
    this.held = [];
    for (const apply of held) this.universe.time.after(1, apply);
  }

  /** What arrives while there is no quorum is held, or dropped. */
  serve(apply: () => void): void {
    if (this.hasQuorum) apply();
    else if (this.universe.chance.is(0.5)) this.held.push(() => this.serve(apply));
  }

  /** The transaction: what is stored afterwards, and whether by this very call. */
  swap(
    baseRevision: number,
    next: { readonly token: string; readonly previous: string; readonly record: ServiceRecord },
    by: SimProcess,
  ): { readonly latest: Stored | undefined; readonly succeeded: boolean } {
    const before = this.latest;
    if ((before?.revision ?? 0) !== baseRevision) return { latest: before, succeeded: false };
    this.latest = { revision: ++this.revision, ...next };
    this.committed(before?.record, next.record, by);
    for (const watcher of this.watchers) this.hint(watcher);
    return { latest: this.latest, succeeded: true };
  }

  /** SE2 */
  private hint(watcher: Watcher): void {
    const { chance } = this.universe;
    if (watcher.isSilent) return;
    const { lane, host } = watcher.store;
    if (host.losesIn || chance.is(this.loss + 0.005)) {
      watcher.isSilent = true;
      const reopen = () => {
        if (!this.watchers.has(watcher)) return;
        if (host.losesIn || host.losesOut || !this.hasQuorum) {
          lane.later(500, reopen);
          return;
        }
        watcher.isSilent = false;
        watcher.changed();
      };
      lane.later(chance.between(1000, 4000), reopen);
      return;
    }
    const copies = chance.is(0.01) ? 2 : 1;
    for (let copy = 0; copy < copies; copy++)
      lane.later(chance.is(0.02) ? chance.between(20, 1500) : chance.between(0.3, 5), watcher.changed);
  }
}

export class SimRecords implements RecordStore {
  readonly host: SimHost;
  private first = 0;
  private isClosed = false;

  constructor(
    private readonly etcd: SimEtcd,
    private readonly process: SimProcess,
    readonly lane: Lane,
  ) {
    this.host = process.host;
    this.first = Math.floor(etcd.universe.chance.random() * MEMBERS);
  }

  read(): Promise<Stored | undefined> {
    return this.call(() => this.etcd.latest);
  }

  async swap(
    _service: string,
    base: Versioned | undefined,
    record: ServiceRecord,
    urgent = false,
  ): Promise<Versioned | undefined> {
    const token = `token-${this.etcd.universe.nextId++}`;
    const previous = base?.token ?? "";
    const transaction = () => this.etcd.swap(base?.revision ?? 0, { token, previous, record }, this.process);
    let latest: Stored | undefined;
    try {
      const answer = urgent ? await this.callAll(transaction) : await this.call(transaction);
      if (answer.succeeded) return answer.latest;
      latest = answer.latest;
    } catch (error) {
      latest = await this.read();
      if (latest?.token === base?.token) throw error;
    }
    if (latest?.token === token) return latest;
    if (latest?.previous === token) return { revision: latest.revision - 1, token, record };
    return undefined;
  }

  watch(_service: string, changed: () => void): () => void {
    const watcher: Watcher = { store: this, changed, isSilent: false };
    this.etcd.watchers.add(watcher);
    return () => this.etcd.watchers.delete(watcher);
  }

  close(): void {
    this.isClosed = true;
  }

  private async call<T>(atServer: () => T): Promise<T> {
    const start = this.first;
    for (let i = 0; i < MEMBERS; i++) {
      const member = (start + i) % MEMBERS;
      try {
        const answer = await this.attempt(member, atServer);
        this.first = member;
        return answer;
      } catch {
        // The next member may answer.
      }
    }
    throw new CsnapError("IO_ERROR", "etcd does not answer");
  }

  private callAll<T>(atServer: () => T): Promise<T> {
    return Promise.any(Array.from({ length: MEMBERS }, (_, member) => this.attempt(member, atServer))).catch(
      () => {
        throw new CsnapError("IO_ERROR", "etcd does not answer");
      },
    );
  }

  /** One request to one member. */
  private attempt<T>(member: number, atServer: () => T): Promise<T> {
    const { etcd, host, lane } = this;
    const { time, chance } = etcd.universe;
    if (this.isClosed) return Promise.reject(new Error("closed"));
    return new Promise((resolve, reject) => {
      const limit = lane.runtime.after(ENDPOINT_LIMIT_MS, () => reject(new Error("no answer")));
      const lost = () => chance.is(etcd.loss);
      if (host.losesOut || lost()) return;
      const travelMs = () => (chance.is(0.02) ? chance.between(10, 900) : chance.between(0.2, 3));
      time.after(travelMs(), () => {
        if (!etcd.isUp[member]) {
          if (chance.is(0.5)) lane.later(1, () => reject(new Error("connection refused")));
          return;
        }
        etcd.serve(() => {
          const answer = atServer();
          if (host.losesIn || lost()) return;
          lane.later(travelMs(), () => {
            limit.cancel();
            resolve(answer);
          });
        });
      });
    });
  }
}
