// Metrics in the Prometheus text format (version 0.0.4), on TCP when `--metrics HOST:PORT` asks.
//
// ME1 Figures come from the operations' records; nothing is counted here.
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { messageOf } from "../volume/errors.js";
import type { CounterName, VolumeRecord } from "../volume/model.js";

type Labels = Readonly<Record<string, string>>;

interface Family {
  readonly name: string;
  readonly type: "counter" | "gauge";
  readonly help: string;
  readonly samples: readonly { readonly labels: Labels; readonly value: number }[];
}

const counterHelp: Readonly<Record<CounterName, string>> = {
  reads: "Read requests served since the volume was opened.",
  writes: "Write requests served since the volume was opened.",
  flushes: "Flush requests served since the volume was opened.",
  read_bytes: "Bytes read by clients.",
  write_bytes: "Bytes written by clients.",
  copy_outs: "Chunks copied to the store before they were overwritten.",
  zero_chunks: "Chunks kept as zero without using space.",
  commits: "Group commits of exceptions.",
  checkpoints: "Checkpoints.",
  parked: "Requests that waited for a group commit.",
  checksum_errors: "Checksums that did not match.",
  chunks_freed: "Store chunks freed by reclaim.",
};

export function renderMetrics(record: VolumeRecord): string {
  const volume = { volume: record.volume };
  const gauge = (name: string, help: string, value: number, labels: Labels = {}): Family => ({
    name,
    type: "gauge",
    help,
    samples: [{ labels: { ...volume, ...labels }, value }],
  });
  const { store, snapshots, server } = record;
  const families: Family[] = [
    gauge(
      "csnap_up",
      "Whether the volume serves (1) or has stopped after an error (0).",
      record.state === "serving" ? 1 : 0,
    ),
    {
      name: "csnap_info",
      type: "gauge",
      help: "Identity of the volume.",
      samples: [
        {
          labels: {
            ...volume,
            uuid: record.uuid,
            durability: record.durability ?? "",
            version: server?.version ?? "",
          },
          value: 1,
        },
      ],
    },
    gauge("csnap_epoch", "Epoch of this server term.", record.epoch),
    gauge("csnap_origin_bytes", "Size of the origin.", record.origin.size),
    {
      name: "csnap_store_bytes",
      type: "gauge",
      help: "The snapshot store by use.",
      samples: (["data", "metadata", "reserve", "free"] as const).map((use) => ({
        labels: { ...volume, use },
        value: store[use],
      })),
    },
    gauge("csnap_store_size_bytes", "Size of the snapshot store.", store.size),
    gauge("csnap_journal_size_bytes", "Size of the journal.", store.journal_size),
    gauge("csnap_journal_used_bytes", "Used part of the journal.", store.journal_used),
    gauge("csnap_snapshots", "Live snapshots.", snapshots.live),
    gauge(
      "csnap_snapshots_deleting",
      "Deleted snapshots whose space is being reclaimed.",
      snapshots.deleting,
    ),
    gauge("csnap_exceptions", "Exceptions in the index.", snapshots.exceptions),
    gauge("csnap_held", "Whether an attachment holds the origin read-write.", record.hold ? 1 : 0),
    gauge("csnap_clients", "NBD connections in transmission.", server?.clients.length ?? 0),
    ...(Object.keys(counterHelp) as CounterName[]).map(
      (name): Family => ({
        name: `csnap_${name}_total`,
        type: "counter",
        help: counterHelp[name],
        samples: [{ labels: volume, value: record.counters[name] }],
      }),
    ),
  ];
  return families.map(renderFamily).join("");
}

function renderFamily(family: Family): string {
  const samples = family.samples.map(
    ({ labels, value }) => `${family.name}${renderLabels(labels)} ${value}\n`,
  );
  return `# HELP ${family.name} ${family.help}\n# TYPE ${family.name} ${family.type}\n${samples.join("")}`;
}

function renderLabels(labels: Labels): string {
  const parts = Object.entries(labels).map(([key, value]) => `${key}="${escapeLabel(value)}"`);
  return `{${parts.join(",")}}`;
}

function escapeLabel(value: string): string {
  return value.replace(/\\/g, "\\\\").replace(/"/g, '\\"').replace(/\n/g, "\\n");
}

export class MetricsServer {
  private readonly http: Server;

  constructor(status: () => Promise<VolumeRecord>) {
    this.http = createServer({ requestTimeout: 10_000 }, (request, response) => {
      const answer = (code: number, text: string, type = "text/plain; charset=utf-8") =>
        response.writeHead(code, { "Content-Type": type }).end(text);
      if (request.method !== "GET" || request.url?.split("?")[0] !== "/metrics") {
        answer(404, "csnap serves GET /metrics here\n");
        return;
      }
      status().then(
        (record) => answer(200, renderMetrics(record), "text/plain; version=0.0.4; charset=utf-8"),
        (error: unknown) => answer(500, `${messageOf(error)}\n`),
      );
    });
    this.http.maxConnections = 64;
  }

  /** Returns the URL; port 0 takes a free one. */
  async listen(host: string, port: number): Promise<string> {
    await new Promise<void>((resolve, reject) => {
      this.http.once("error", reject);
      this.http.listen({ host, port }, resolve);
    });
    const address = this.http.address() as AddressInfo;
    const shown = address.family === "IPv6" ? `[${address.address}]` : address.address;
    return `http://${shown}:${address.port}/metrics`;
  }

  async close(): Promise<void> {
    await new Promise<void>((resolve) => {
      this.http.close(() => resolve());
      this.http.closeAllConnections();
    });
  }
}
