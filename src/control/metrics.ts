// A volume's figures as metrics: what its record says, for Prometheus.
//
// ME1 Figures come from the operations' records; nothing is counted here.
import type { CounterName, VolumeRecord } from "../volume/model.js";
import { type Family, type Labels, renderFamilies } from "./prometheus.js";

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
  parked: "Requests that waited for a group commit, or for staged writes to be applied.",
  staged: "Writes acknowledged from the journal, before their chunks were copied out.",
  applied: "Chunks of staged writes put in place in the origin.",
  checksum_errors: "Checksums that did not match.",
  chunks_freed: "Store chunks freed by reclaim.",
  acks_refused: "Requests, replies and changes of the devices held back as the grant had ended.",
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
    ...term(record, gauge),
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
    gauge("csnap_staged_bytes", "Acknowledged writes held until they are in the origin.", store.staged),
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
  return renderFamilies(families);
}

type Gauge = (name: string, help: string, value: number) => Family;

/** How this term began, and how long it may last: what is known of it only. */
function term({ found_clean, server }: VolumeRecord, gauge: Gauge): Family[] {
  const families = [
    gauge(
      "csnap_takeover",
      "Whether the term before this one had not ended in order (1), so that this one began with recovery.",
      found_clean ? 0 : 1,
    ),
  ];
  if (server?.start_ms != null)
    families.push(
      gauge(
        "csnap_start_seconds",
        "From the claim of this term to its published address, recovery included.",
        server.start_ms / 1000,
      ),
    );
  if (server?.grant_remaining_ms != null)
    families.push(
      gauge(
        "csnap_grant_remaining_seconds",
        "Until the grant of this term ends, unless it is renewed.",
        server.grant_remaining_ms / 1000,
      ),
    );
  return families;
}
