// `csnap list`: volumes and their snapshots with their space.
import type { Command } from "commander";
import { listDefinitions } from "../../volume/definition.js";
import { codeOf, messageOf } from "../../volume/errors.js";
import type { SnapshotRecord, VolumeRecord } from "../../volume/model.js";
import { checkVolumeName } from "../../volume/names.js";
import { formatSize } from "../../volume/sizes.js";
import { withVolume } from "../access.js";
import { type Context, contextOf, examples, jsonOption } from "../context.js";
import { type Column, note, print, printJson, printTable, shortTime } from "../output.js";

interface Listed {
  readonly volume: VolumeRecord;
  readonly snapshots: readonly SnapshotRecord[];
}

interface Unavailable {
  readonly name: string;
  readonly state: "in-use" | "unavailable";
  readonly error: string;
}

export function registerList(program: Command): void {
  const command = program
    .command("list")
    .summary("list volumes and snapshots with their space")
    .description(
      "Lists volumes and their snapshots. UNIQUE is held by that snapshot alone, SHARED with others, FREED is what comes free if it alone is deleted; ~ marks estimates.",
    )
    .argument("[volume]", "only this volume")
    .addOption(jsonOption())
    .action((name: string | undefined, options: { json?: boolean }) =>
      list(contextOf(command), name, options.json),
    );
  examples(command, "csnap list disk1", "csnap list --json");
}

async function list(context: Context, name: string | undefined, json: boolean | undefined): Promise<void> {
  if (name !== undefined) {
    const found = await look(context, checkVolumeName(name));
    show([found], [], json);
    return;
  }
  const listed: Listed[] = [];
  const unavailable: Unavailable[] = [];
  for (const defined of listDefinitions(context.stateDir)) {
    try {
      listed.push(await look(context, defined));
    } catch (error) {
      const state = codeOf(error) === "BUSY" ? "in-use" : "unavailable";
      unavailable.push({ name: defined, state, error: messageOf(error) });
    }
  }
  show(listed, unavailable, json);
  if (listed.length === 0 && unavailable.length === 0) {
    note(`no volume is defined in ${context.stateDir}: \`csnap init\` makes one`);
  }
}

function look(context: Context, name: string): Promise<Listed> {
  return withVolume(context, name, "look", async ({ operations }) => ({
    volume: await operations.status(),
    snapshots: await operations.snapshots(),
  }));
}

interface Row {
  readonly name: string;
  readonly created: string;
  readonly size: string;
  readonly unique: string;
  readonly shared: string;
  readonly freed: string;
  readonly priority: string;
  readonly pinned: string;
}

const columns: readonly Column<Row>[] = [
  { title: "NAME", cell: (row) => row.name },
  { title: "CREATED", cell: (row) => row.created },
  { title: "SIZE", right: true, cell: (row) => row.size },
  { title: "UNIQUE", right: true, cell: (row) => row.unique },
  { title: "SHARED", right: true, cell: (row) => row.shared },
  { title: "FREED", right: true, cell: (row) => row.freed },
  { title: "PRIORITY", right: true, cell: (row) => row.priority },
  { title: "PINNED", cell: (row) => row.pinned },
];

function show(
  listed: readonly Listed[],
  unavailable: readonly Unavailable[],
  json: boolean | undefined,
): void {
  if (json) {
    const volumes = listed.map(({ volume, snapshots }) => ({ ...volumeKeys(volume), snapshots }));
    const broken = unavailable.map(({ name, state, error }) => ({ volume: name, state, error }));
    printJson([...volumes, ...broken]);
    return;
  }
  const rows = listed.flatMap(({ volume, snapshots }) => [volumeRow(volume), ...snapshots.map(snapshotRow)]);
  if (rows.length > 0) printTable(columns, rows);
  for (const { name, error } of unavailable) print(`${name}  ${error}`);
}

function volumeKeys(volume: VolumeRecord) {
  const { uuid, state, created, origin, store } = volume;
  return {
    volume: volume.volume,
    uuid,
    state,
    created,
    size: origin.size,
    store_size: store.size,
    store_free: store.free,
  };
}

function volumeRow(volume: VolumeRecord): Row {
  const none = "-";
  return {
    name: volume.volume,
    created: shortTime(volume.created),
    size: formatSize(volume.origin.size),
    unique: none,
    shared: none,
    freed: none,
    priority: none,
    pinned: none,
  };
}

function snapshotRow(snapshot: SnapshotRecord): Row {
  const figure = (bytes: number) => `${snapshot.estimated ? "~" : ""}${formatSize(bytes)}`;
  return {
    name: `${snapshot.volume}@${snapshot.name}${snapshot.suspect ? " (suspect)" : ""}`,
    created: shortTime(snapshot.created),
    size: formatSize(snapshot.size),
    unique: figure(snapshot.unique),
    shared: figure(snapshot.shared),
    freed: figure(snapshot.freed_if_deleted),
    priority: String(snapshot.priority),
    pinned: snapshot.pinned ? "yes" : "no",
  };
}
