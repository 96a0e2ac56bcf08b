// `csnap delete`: deletes snapshots, several at once, of one or more volumes.
import type { Command } from "commander";
import { usageError } from "../../volume/errors.js";
import type { SnapshotRecord } from "../../volume/model.js";
import { parseObjectName } from "../../volume/names.js";
import { formatSize } from "../../volume/sizes.js";
import { withVolume } from "../access.js";
import { contextOf, examples, jsonOption } from "../context.js";
import { counted, print, printJson } from "../output.js";

interface DeleteOptions {
  readonly dryRun?: boolean;
  readonly yes?: boolean;
  readonly json?: boolean;
}

export function registerDelete(program: Command): void {
  const command = program
    .command("delete")
    .summary("delete snapshots")
    .description(
      "Deletes snapshots at once; their names are free again, and their space returns in the background.",
    )
    .argument("<volume@snapshot...>", "one or more snapshots")
    .option("--dry-run", "only say how much space would come free")
    .option("--yes", "do not ask; without effect, for nothing is asked")
    .addOption(jsonOption())
    .action((names: string[], options: DeleteOptions) => deleteSnapshots(command, names, options));
  examples(
    command,
    "csnap delete disk1@monday disk1@tuesday",
    "csnap delete --dry-run disk1@monday disk1@tuesday",
  );
}

async function deleteSnapshots(
  command: Command,
  names: readonly string[],
  options: DeleteOptions,
): Promise<void> {
  const context = contextOf(command);
  const dryRun = options.dryRun ?? false;
  const deleted: SnapshotRecord[] = [];
  let freed = 0;
  for (const [volume, snapshots] of groupByVolume(names)) {
    const purpose = dryRun ? "look" : "change";
    const result = await withVolume(context, volume, purpose, ({ operations }) =>
      operations.deleteSnapshots(snapshots, dryRun),
    );
    deleted.push(...result.deleted);
    freed += result.freed;
  }
  if (options.json) {
    printJson({ deleted: dryRun ? [] : deleted, would_delete: dryRun ? deleted : [], freed });
    return;
  }
  const verb = dryRun ? "would be deleted" : "deleted";
  for (const snapshot of deleted) print(`${snapshot.volume}@${snapshot.name} ${verb}`);
  const returns = dryRun ? "would come free" : "come free in the background";
  print(`${counted(deleted.length, "snapshot")}: ${formatSize(freed)} ${returns}`);
}

export function groupByVolume(names: readonly string[]): Map<string, string[]> {
  const groups = new Map<string, string[]>();
  for (const name of names) {
    const { volume, snapshot } = parseObjectName(name);
    if (snapshot === undefined) {
      throw usageError(
        `'${name}' is not a snapshot: write VOLUME@SNAPSHOT (\`csnap remove\` forgets a volume)`,
      );
    }
    groups.set(volume, [...(groups.get(volume) ?? []), snapshot]);
  }
  return groups;
}
