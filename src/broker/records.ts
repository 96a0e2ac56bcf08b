// The seam between the broker and what stores its records: compare-and-swap of one record for each
// service, and hints of changes. A backend is one file that does this: files of this host
// (file_records.ts), etcd (etcd_records.ts); a Consul or Kubernetes one would be as long.
import type { ServiceRecord, Versioned } from "./record.js";

export interface RecordStore {
  /** The latest record, linearizable; undefined: there is none. Rejects with a CsnapError. */
  read(service: string): Promise<Versioned | undefined>;
  /**
   * Replaces `base`, or makes the first record, if it is still the latest; undefined: somebody was
   * faster. Rejects where that can't be known: then it may have been stored, and may yet be.
   * `urgent`: on every way at once that leads to the storage.
   */
  swap(
    service: string,
    base: Versioned | undefined,
    record: ServiceRecord,
    urgent?: boolean,
  ): Promise<Versioned | undefined>;
  /** Calls `changed` soon after the record changed, mostly; returns what ends that. */
  watch(service: string, changed: () => void): () => void;
  /** Ends what is under way and lets the process end. */
  close(): void;
}
