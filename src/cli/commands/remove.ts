// `csnap remove`: forgets a volume. The origin stays, and stays current.
import { existsSync, unlinkSync } from "node:fs";
import { createInterface } from "node:readline/promises";
import type { Command } from "commander";
import { openBroker } from "../../broker/open.js";
import { loadDefinition, removeDefinition, type VolumeDefinition } from "../../volume/definition.js";
import { CsnapError, codeOf } from "../../volume/errors.js";
import { inspectTarget } from "../../volume/inspect.js";
import { loadNative } from "../../volume/load_native.js";
import { checkVolumeName } from "../../volume/names.js";
import { withVolume } from "../access.js";
import { type Context, contextOf, examples } from "../context.js";
import { counted, note, print } from "../output.js";

interface RemoveOptions {
  readonly wipeStore?: boolean;
  readonly yes?: boolean;
  readonly force?: boolean;
}

export function registerRemove(program: Command): void {
  const command = program
    .command("remove")
    .summary("forget a volume; the origin stays, current")
    .description(
      "Forgets a volume on this host. The origin stays and is current: what a crash left unapplied is applied first. The store stays too (`csnap import` takes it back), unless --wipe-store is given.",
    )
    .argument("<volume>", "volume to forget")
    .option("--wipe-store", "destroy the store and with it all snapshots; a store file is removed")
    .option("--yes", "do not ask")
    .option("--force", "also if the store can't be opened; the origin then stays as the last server left it")
    .action((name: string, options: RemoveOptions) =>
      remove(contextOf(command), checkVolumeName(name), options),
    );
  examples(command, "csnap remove disk1", "csnap remove disk1 --wipe-store --yes");
}

async function remove(context: Context, name: string, options: RemoveOptions): Promise<void> {
  const definition = loadDefinition(context.stateDir, name);
  if (existsSync(definition.store)) await settleUnlessForced(context, definition, options);
  else note(`the store ${definition.store} of ${name} is gone; only the definition is removed`);
  await openBroker(context.brokerUrl, context).forget(name);
  if (options.wipeStore) await wipe(definition);
  removeDefinition(context.stateDir, name);
  const fate = options.wipeStore ? "the store is destroyed" : `the store ${definition.store} stays`;
  print(`volume ${name} is forgotten; the origin ${definition.origin} stays, ${fate}`);
}

/** --force forgives a store that can't be opened, never one that somebody is using. */
async function settleUnlessForced(
  context: Context,
  definition: VolumeDefinition,
  options: RemoveOptions,
): Promise<void> {
  try {
    await settle(context, definition, options);
  } catch (error) {
    if (!options.force || codeOf(error) === "BUSY") throw error;
    note(`the store of ${definition.name} can't be opened; its origin may lack acknowledged writes`);
  }
}

/** Opens and closes the volume: refused while served, and afterwards the origin alone is current. */
async function settle(context: Context, definition: VolumeDefinition, options: RemoveOptions): Promise<void> {
  const snapshots = await withVolume(context, definition.name, "change", async ({ online, operations }) => {
    if (online) {
      throw new CsnapError(
        "BUSY",
        `${definition.name} is being served: stop its server first (SIGTERM to \`csnap serve ${definition.name}\`)`,
      );
    }
    return operations.snapshots();
  });
  if (!options.wipeStore || options.yes || !process.stdin.isTTY) return;
  await confirm(definition, snapshots.length);
}

async function confirm(definition: VolumeDefinition, snapshotCount: number): Promise<void> {
  const terminal = createInterface({ input: process.stdin, output: process.stderr });
  const question = `Destroy the store of ${definition.name} with ${counted(snapshotCount, "snapshot")}? [y/N] `;
  const answer = await terminal.question(question);
  terminal.close();
  if (!/^y(es)?$/i.test(answer.trim()))
    throw new CsnapError("INVALID_ARGUMENT", `${definition.name} is not removed: you said no`);
}

async function wipe({ store }: VolumeDefinition): Promise<void> {
  const target = inspectTarget(store, "store");
  if (!target) return;
  await (await loadNative()).wipeStore(store);
  if (target.kind === "file") unlinkSync(store);
}
