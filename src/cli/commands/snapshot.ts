// `csnap snapshot`: creates a snapshot, with --freeze of a file system that is frozen meanwhile.
import type { Command } from "commander";
import { defaultPriority } from "../../control/api.js";
import { usageError } from "../../volume/errors.js";
import type { SnapshotRecord } from "../../volume/model.js";
import { checkLabel, checkPriority, parseSnapshotName } from "../../volume/names.js";
import type { CreateSnapshotRequest, VolumeOperations } from "../../volume/operations.js";
import { parseDuration } from "../../volume/sizes.js";
import { withVolume } from "../access.js";
import { contextOf, examples, jsonOption } from "../context.js";
import { checkFreezable, whileFrozen } from "../freeze.js";
import { print, printJson } from "../output.js";

interface SnapshotOptions {
  readonly pin?: boolean;
  readonly priority?: string;
  readonly label?: readonly string[];
  readonly freeze?: string;
  readonly freezeLimit?: string;
  readonly json?: boolean;
}

const defaultFreezeLimit = "10s";

export function registerSnapshot(program: Command): void {
  const collect = (value: string, former: readonly string[] | undefined) => [...(former ?? []), value];
  const command = program
    .command("snapshot")
    .summary("create a snapshot")
    .description(
      "Creates a snapshot: what the volume holds now, and all that was acknowledged before, unchanged until it is deleted.",
    )
    .argument("<volume@name>", "the volume and the new name")
    .option("--pin", "never drop it when the store fills")
    .option(
      "--priority <n>",
      `0 to 100; the lowest is dropped first when the store fills (default: ${defaultPriority})`,
    )
    .option("--label <k=v>", "a label; may be repeated", collect)
    .option(
      "--freeze <mountpoint>",
      "freeze this file system meanwhile; it is thawed even if csnap is killed",
    )
    .option("--freeze-limit <time>", `thaw after this time whatever happens (default: ${defaultFreezeLimit})`)
    .addOption(jsonOption())
    .action((name: string, options: SnapshotOptions) => snapshot(command, name, options));
  examples(
    command,
    "csnap snapshot disk1@before-upgrade --pin",
    "csnap snapshot db@nightly --label kind=nightly --freeze /srv/db",
  );
}

async function snapshot(command: Command, text: string, options: SnapshotOptions): Promise<void> {
  const { volume, snapshot: name } = parseSnapshotName(text);
  const request: CreateSnapshotRequest = {
    name,
    pinned: options.pin ?? false,
    priority: parsePriority(options.priority),
    labels: parseLabels(options.label ?? []),
  };
  if (options.freezeLimit !== undefined && options.freeze === undefined) {
    throw usageError("--freeze-limit says nothing without --freeze MOUNTPOINT");
  }
  const limitMs = parseDuration(options.freezeLimit ?? defaultFreezeLimit, "--freeze-limit");
  const made = await withVolume(contextOf(command), volume, "change", async ({ definition, operations }) => {
    if (options.freeze === undefined) return operations.createSnapshot(request);
    checkFreezable(options.freeze, [definition.origin, definition.store]);
    return frozenSnapshot(operations, request, options.freeze, limitMs);
  });
  if (options.json) printJson(made);
  else print(`${volume}@${made.name} ${made.created}`);
}

/** A snapshot that outlasted the freeze is not the quiet one that was asked for: it goes again. */
async function frozenSnapshot(
  operations: VolumeOperations,
  request: CreateSnapshotRequest,
  mountPoint: string,
  limitMs: number,
): Promise<SnapshotRecord> {
  let made: SnapshotRecord | undefined;
  try {
    await whileFrozen(mountPoint, limitMs, async () => {
      made = await operations.createSnapshot(request);
    });
  } catch (error) {
    if (made) await operations.deleteSnapshots([made.uuid], false);
    throw error;
  }
  if (!made) throw new Error("whileFrozen returned without having run its work");
  return made;
}

function parsePriority(text: string | undefined): number {
  if (text === undefined) return defaultPriority;
  return checkPriority(/^\d+$/.test(text) ? Number(text) : Number.NaN);
}

export function parseLabels(texts: readonly string[]): Record<string, string> {
  const labels: Record<string, string> = {};
  for (const text of texts) {
    const split = text.indexOf("=");
    if (split < 1) throw usageError(`label '${text}' is not K=V`);
    const key = text.slice(0, split);
    const value = text.slice(split + 1);
    checkLabel(key, value);
    if (value === "") throw usageError(`label '${key}' has no value: write ${key}=VALUE`);
    labels[key] = value;
  }
  return labels;
}
