// `csnap status`: state, space and clients of volumes.
import type { Command } from "commander";
import { AgentClient, agentSocketPath } from "../../agent/service.js";
import { listDefinitions } from "../../volume/definition.js";
import { codeOf, messageOf } from "../../volume/errors.js";
import type { ClientRecord, VolumeRecord, VolumeState } from "../../volume/model.js";
import { checkVolumeName } from "../../volume/names.js";
import { formatSize } from "../../volume/sizes.js";
import { withVolume } from "../access.js";
import { type Context, contextOf, examples, jsonOption } from "../context.js";
import { counted, note, print, printJson, shortTime, styled } from "../output.js";

export function registerStatus(program: Command): void {
  const command = program
    .command("status")
    .summary("state, space and clients")
    .description(
      "Shows the state of one volume or of all: who serves it, what the store holds, who is connected.",
    )
    .argument("[volume]", "only this volume")
    .addOption(jsonOption())
    .action((name: string | undefined, options: { json?: boolean }) =>
      status(contextOf(command), name, options.json ?? false),
    );
  examples(command, "csnap status disk1", "csnap status --json");
}

interface Unavailable {
  readonly volume: string;
  readonly state: VolumeState;
  readonly error: string;
}

async function status(context: Context, name: string | undefined, json: boolean): Promise<void> {
  if (name !== undefined) {
    const record = await look(context, checkVolumeName(name));
    if (json) printJson(record);
    else print(describe(record));
    return;
  }
  const records: (VolumeRecord | Unavailable)[] = [];
  for (const defined of listDefinitions(context.stateDir)) {
    try {
      records.push(await look(context, defined));
    } catch (error) {
      const state = codeOf(error) === "BUSY" ? "in-use" : "unavailable";
      records.push({ volume: defined, state, error: messageOf(error) });
    }
  }
  if (json) printJson(records);
  else {
    for (const record of records) print("error" in record ? describeUnavailable(record) : describe(record));
    if (records.length === 0) note(`no volume is defined in ${context.stateDir}: \`csnap init\` makes one`);
  }
}

async function look(context: Context, name: string): Promise<VolumeRecord> {
  const record = await withVolume(context, name, "look", ({ operations }) => operations.status());
  // A server that was started by an older csnap answers without warnings.
  return { ...record, warnings: [...(record.warnings ?? []), ...(await agentWarnings(context, name))] };
}

/** What the agent of this host could not do for its devices of the volume. */
async function agentWarnings(context: Context, volume: string): Promise<string[]> {
  const agent = new AgentClient(agentSocketPath(context.runDir));
  try {
    const isUsed = (await agent.devices()).some((device) => device.volume === volume);
    return isUsed ? (await agent.status()).problems.map((problem) => `agent: ${problem}`) : [];
  } catch {
    return []; // no agent, or none that this user may ask
  }
}

function describeUnavailable({ volume, state, error }: Unavailable): string {
  return `${styled(volume, "bold")}: ${styled(state, "red")}\n  ${error}`;
}

const stateStyles: Partial<Record<VolumeState, "green" | "yellow" | "red">> = {
  serving: "green",
  unclean: "yellow",
  failed: "red",
};

function describe(record: VolumeRecord): string {
  const { origin, store, snapshots, server } = record;
  const style = stateStyles[record.state];
  const state = style ? styled(record.state, style) : record.state;
  const durability = record.durability === null ? "" : `, durability ${record.durability}`;
  const deleting = snapshots.deleting > 0 ? `, ${grouped(snapshots.deleting)} being reclaimed` : "";
  const free = store.size > 0 ? Math.floor((store.free / store.size) * 100) : 0;
  const lines = [
    `${styled(record.volume, "bold")}: ${state}, epoch ${record.epoch}${durability}`,
    ...(record.failure === null ? [] : [`  failure    ${record.failure}`]),
    ...record.warnings.map((warning) => `  ${styled("warning", "yellow")}    ${warning}`),
    ...(record.suspect
      ? ["  suspect    the origin was changed behind the snapshots: do not trust them"]
      : []),
    `  origin     ${origin.path}, ${formatSize(origin.size)}`,
    `  store      ${store.path}, ${formatSize(store.size)}: ${formatSize(store.data)} data, ${formatSize(store.metadata)} metadata, ${formatSize(store.free)} free (${free} %)`,
    ...(store.staged > 0
      ? [`  staged     ${formatSize(store.staged)} of acknowledged writes are on their way to the origin`]
      : []),
    `  snapshots  ${grouped(snapshots.live)} live${deleting}; ${counted(snapshots.exceptions, "exception")}`,
    `  on full    ${record.properties.on_full}`,
    ...(record.hold === null
      ? []
      : [
          `  held by    ${record.hold.host} since ${shortTime(record.hold.since)}, attachment ${record.hold.attachment}`,
        ]),
    ...recoveryLines(record),
  ];
  if (server) {
    lines.push(`  server     pid ${server.pid} since ${shortTime(server.started)}, csnap ${server.version}`);
    for (const uri of server.listeners) lines.push(`  listening  ${uri}`);
    if (server.metrics !== null) lines.push(`  metrics    ${server.metrics}`);
    lines.push(`  clients    ${server.clients.length === 0 ? "none" : server.clients.length}`);
    for (const client of server.clients) lines.push(`    ${describeClient(client)}`);
  }
  return lines.join("\n");
}

function recoveryLines({ recovery, counters }: VolumeRecord): string[] {
  const lines: string[] = [];
  if (recovery.lost_entries > 0) {
    lines.push(
      `  lost       ${counted(recovery.lost_entries, "chunk")} of snapshots can't be read any more (EIO)`,
    );
  }
  if (counters.checksum_errors > 0) {
    lines.push(
      `  checksums  ${counted(counters.checksum_errors, "mismatch", "mismatches")} since the volume was opened`,
    );
  }
  return lines;
}

function describeClient(client: ClientRecord): string {
  const mode = client.read_only ? "read-only" : "read-write";
  const who = client.user === null ? client.peer : `${client.user} at ${client.peer}`;
  const traffic = `${formatSize(client.read_bytes)} read, ${formatSize(client.write_bytes)} written`;
  return `#${client.id} ${client.export} ${mode} from ${who}${client.tls ? " (TLS)" : ""}, ${counted(client.requests, "request")}, ${traffic}`;
}

function grouped(count: number): string {
  return count.toLocaleString("en-US");
}
