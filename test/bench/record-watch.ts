/** Every revision of a service's record in etcd, with the time at which it was heard of. */
import type { IncomingMessage } from "node:http";
import type * as Client from "../../src/broker/etcd_client.js";
import type * as Url from "../../src/broker/etcd_url.js";
import type * as Records from "../../src/broker/record.js";
import { importBuilt } from "../support/built.js";
import { monotonicMs } from "../support/term-spans.js";
import type { RecordAt } from "./failover-rows.js";

const { EtcdClient } = await importBuilt<typeof Client>("broker/etcd_client.js");
const { parseEtcdUrl } = await importBuilt<typeof Url>("broker/etcd_url.js");
const { decodeRecord } = await importBuilt<typeof Records>("broker/record.js");

interface WatchLine {
  readonly result?: { readonly events?: readonly { readonly kv?: { readonly value?: string } }[] };
}

export class RecordWatch {
  readonly records: RecordAt[] = [];
  #end = () => {};

  /** @param url a broker's; its first member must live throughout */
  static async follow(url: string, service: string): Promise<RecordWatch> {
    const history = new RecordWatch();
    const options = parseEtcdUrl(url);
    const client = new EtcdClient(options);
    const key = Buffer.from(`${options.prefix}/svc/${service}`, "utf8").toString("base64");
    const stream = await client.stream("watch", { create_request: { key } }, 0);
    history.#end = () => {
      stream.destroy();
      client.close();
    };
    history.#read(stream);
    return history;
  }

  #read(stream: IncomingMessage): void {
    let rest = "";
    stream.setEncoding("utf8");
    stream.on("error", () => {});
    stream.on("data", (part: string) => {
      const lines = (rest + part).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) if (line !== "") this.#take(JSON.parse(line) as WatchLine);
    });
  }

  #take({ result }: WatchLine): void {
    for (const { kv } of result?.events ?? []) {
      const text = Buffer.from(kv?.value ?? "", "base64").toString("utf8");
      const { epoch, slot } = decodeRecord(text, "watched").record;
      this.records.push({
        ms: monotonicMs(),
        epoch,
        state: slot.state,
        isFencing: slot.fencing !== null,
        holder: slot.holder,
      });
    }
  }

  close(): void {
    this.#end();
  }
}
