// The records of services in etcd: the whole of what the broker needs of it (records.ts). One key for
// each service, PREFIX/svc/NAME, with the record as its value; compare-and-swap is a transaction on
// the key's mod_revision. No lease, no lock, no election of etcd's is used: see reference/broker.md
// §10 for why.
//
// ER1 A swap whose answer was lost is told by the token in the record: read again, it is ours, or the
//     next one was built on ours, or it was not stored. While that can't be read, nobody is told
//     either way: the call rejects.
// ER2 The same swap may be sent more than once, to several members at once: its compare lets the first
//     one through only.
import { randomBytes } from "node:crypto";
import { CsnapError, messageOf } from "../volume/errors.js";
import { EtcdClient } from "./etcd_client.js";
import { type EtcdOptions, parseEtcdUrl } from "./etcd_url.js";
import { EtcdWatch } from "./etcd_watch.js";
import { decodeRecord, encodeRecord, type ServiceRecord, type Versioned } from "./record.js";
import type { RecordStore } from "./records.js";

/** Of the JSON gateway: 64-bit numbers and bytes are text, absent is zero. */
interface KeyValue {
  readonly value?: string;
  readonly mod_revision?: string;
}
interface RangeAnswer {
  readonly kvs?: readonly KeyValue[];
}
interface TxnAnswer {
  readonly header?: { readonly revision?: string };
  readonly succeeded?: boolean;
  readonly responses?: readonly { readonly response_range?: RangeAnswer }[];
}

type Decoded = Versioned & { readonly previous: string };

export class EtcdRecords implements RecordStore {
  private readonly watches: EtcdWatch;

  constructor(
    private readonly client: EtcdClient,
    private readonly prefix: string,
  ) {
    this.watches = new EtcdWatch(client, `${prefix}/svc/`);
  }

  /** USAGE for a URL that is none, and for files it names that can't be read. */
  static open(url: string): EtcdRecords {
    const options: EtcdOptions = parseEtcdUrl(url);
    return new EtcdRecords(new EtcdClient(options), options.prefix);
  }

  async read(service: string): Promise<Versioned | undefined> {
    const found = await this.readDecoded(service);
    if (found) this.watches.saw(service, found.revision);
    return found;
  }

  private async readDecoded(service: string): Promise<Decoded | undefined> {
    const answer = await this.client.call<RangeAnswer>("kv/range", { key: this.key(service) });
    return this.decoded(service, answer);
  }

  async swap(
    service: string,
    base: Versioned | undefined,
    record: ServiceRecord,
    urgent = false,
  ): Promise<Versioned | undefined> {
    const token = randomBytes(16).toString("hex");
    const revision = (base?.revision ?? 0) + 1;
    const text = encodeRecord({ revision, token, previous: base?.token ?? "" }, record);
    const key = this.key(service);
    const transaction = {
      compare: [{ key, target: "MOD", result: "EQUAL", mod_revision: String(base?.revision ?? 0) }],
      success: [{ request_put: { key, value: base64(text) } }],
      failure: [{ request_range: { key } }],
    };
    let latest: Decoded | undefined;
    try {
      const answer = urgent
        ? await this.client.callAll<TxnAnswer>("kv/txn", transaction)
        : await this.client.call<TxnAnswer>("kv/txn", transaction);
      if (answer.succeeded) return { revision: Number(answer.header?.revision), token, record };
      // Of a former copy of this very transaction, perhaps (ER2).
      latest = this.decoded(service, answer.responses?.[0]?.response_range ?? {});
    } catch (error) {
      if (!(error instanceof CsnapError) || error.code !== "IO_ERROR") throw error;
      latest = await this.readDecoded(service);
      // Not stored yet, but what was sent may still arrive (ER1).
      if (latest?.token === base?.token) throw error;
    }
    if (latest?.token === token) return { revision: latest.revision, token, record };
    if (latest?.previous === token) return { revision: latest.revision - 1, token, record };
    return undefined;
  }

  watch(service: string, changed: () => void): () => void {
    return this.watches.add(service, changed);
  }

  close(): void {
    this.watches.close();
    this.client.close();
  }

  private key(service: string): string {
    return base64(`${this.prefix}/svc/${service}`);
  }

  private decoded(service: string, { kvs = [] }: RangeAnswer): Decoded | undefined {
    const [found] = kvs;
    if (!found) return undefined;
    const name = `${this.prefix}/svc/${service} in etcd`;
    try {
      const record = decodeRecord(Buffer.from(found.value ?? "", "base64").toString("utf8"), name);
      return { ...record, revision: Number(found.mod_revision) };
    } catch (error) {
      if (error instanceof CsnapError) throw error;
      throw new CsnapError("CORRUPT", `the broker's record ${name} can't be read: ${messageOf(error)}`);
    }
  }
}

function base64(text: string): string {
  return Buffer.from(text, "utf8").toString("base64");
}
