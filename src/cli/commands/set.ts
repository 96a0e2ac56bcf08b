// `csnap set`: changes properties of a volume or snapshot.
import type { Command } from "commander";
import { parseObjectName } from "../../volume/names.js";
import { withVolume } from "../access.js";
import { type Context, contextOf, examples, jsonOption } from "../context.js";
import { print, printJson } from "../output.js";
import { parseSnapshotAssignments, parseVolumeAssignments, snapshotProperties } from "../properties.js";

export function registerSet(program: Command): void {
  const command = program
    .command("set")
    .summary("change properties of a volume or snapshot")
    .description(
      "Changes properties. Volume: on-full=drop-snapshots|refuse-writes, staged-limit=SIZE, cache-limit=SIZE, reclaim-rate=SIZE. Snapshot: pin=on|off, priority=0..100, label.K=V (an empty V removes the label).",
    )
    .argument("<volume[@snapshot]>", "the volume or snapshot")
    .argument("<property=value...>", "what to change")
    .addOption(jsonOption())
    .action((name: string, assignments: string[], options: { json?: boolean }) =>
      set(contextOf(command), name, assignments, options.json ?? false),
    );
  examples(
    command,
    "csnap set disk1@monday pin=on priority=80 label.kind=weekly",
    "csnap set disk1 on-full=refuse-writes",
  );
}

async function set(
  context: Context,
  text: string,
  assignments: readonly string[],
  json: boolean,
): Promise<void> {
  const { volume, snapshot } = parseObjectName(text);
  // Parsed before the volume is opened: a wrong line must change nothing, not even an epoch.
  const change =
    snapshot === undefined
      ? { volume: parseVolumeAssignments(assignments) }
      : { snapshot: parseSnapshotAssignments(assignments) };
  const record = await withVolume(context, volume, "change", async ({ operations }) => {
    if (change.volume) return { volume, ...(await operations.updateProperties(change.volume)).properties };
    const updated = await operations.updateSnapshot(snapshot ?? "", change.snapshot);
    return { volume, snapshot, ...snapshotProperties(updated) };
  });
  if (json) printJson(record);
  else print(`${text}: ${assignments.join(", ")}`);
}
