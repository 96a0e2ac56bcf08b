// `csnap get`: properties of a volume or snapshot.
import type { Command } from "commander";
import { CsnapError } from "../../volume/errors.js";
import { parseObjectName } from "../../volume/names.js";
import { withVolume } from "../access.js";
import { type Context, contextOf, examples, jsonOption } from "../context.js";
import { print, printJson, printTable } from "../output.js";
import {
  findSnapshot,
  type PropertyRow,
  snapshotProperties,
  snapshotRows,
  volumeRows,
} from "../properties.js";

export function registerGet(program: Command): void {
  const command = program
    .command("get")
    .summary("show properties of a volume or snapshot")
    .description(
      "Shows the properties that `csnap set` changes. Volume: on-full, staged-limit, cache-limit, reclaim-rate. Snapshot: pin, priority, label.K.",
    )
    .argument("<volume[@snapshot]>", "the volume or snapshot")
    .argument("[property...]", "only these; a single one prints its bare value")
    .addOption(jsonOption())
    .action((name: string, wanted: string[], options: { json?: boolean }) =>
      get(contextOf(command), name, wanted, options.json ?? false),
    );
  examples(command, "csnap get disk1@monday", "csnap get disk1 on-full");
}

async function get(context: Context, text: string, wanted: readonly string[], json: boolean): Promise<void> {
  const { volume, snapshot } = parseObjectName(text);
  const { rows, record } = await withVolume(context, volume, "look", async ({ operations }) => {
    if (snapshot === undefined) {
      const { properties } = await operations.status();
      return { rows: volumeRows(properties), record: { volume, ...properties } };
    }
    const found = findSnapshot(await operations.snapshots(), volume, snapshot);
    return { rows: snapshotRows(found), record: { volume, snapshot, ...snapshotProperties(found) } };
  });
  const chosen = wanted.length === 0 ? rows : wanted.map((name) => choose(rows, name, text));
  if (json) printJson(record);
  else if (wanted.length === 1 && chosen[0]) print(chosen[0].value);
  else {
    printTable<PropertyRow>(
      [
        { title: "NAME", cell: () => text },
        { title: "PROPERTY", cell: (row) => row.property },
        { title: "VALUE", cell: (row) => row.value },
      ],
      chosen,
    );
  }
}

function choose(rows: readonly PropertyRow[], name: string, object: string): PropertyRow {
  const row = rows.find((candidate) => candidate.property === name);
  if (row) return row;
  const known = rows.map((candidate) => candidate.property).join(", ");
  throw new CsnapError("NOT_FOUND", `${object} has no property '${name}': it has ${known}`);
}
