// `csnap rename`: gives a volume another name on this host.
import type { Command } from "commander";
import { openBroker } from "../../broker/open.js";
import { checkNameIsFree, loadDefinition, renameDefinition } from "../../volume/definition.js";
import { CsnapError } from "../../volume/errors.js";
import { checkVolumeName } from "../../volume/names.js";
import { connectServer } from "../access.js";
import { type Context, contextOf, examples } from "../context.js";
import { print } from "../output.js";

export function registerRename(program: Command): void {
  const command = program
    .command("rename")
    .summary("rename a volume that is not being served")
    .description(
      "Renames a volume on this host: its definition, its sockets and its exports. Not while it is served.",
    )
    .argument("<old>", "the volume")
    .argument("<new>", "its new name")
    .action((from: string, to: string) =>
      rename(contextOf(command), checkVolumeName(from), checkVolumeName(to)),
    );
  examples(command, "csnap rename disk1 mail", "csnap rename disk1 disk1-old");
}

async function rename(context: Context, from: string, to: string): Promise<void> {
  const definition = loadDefinition(context.stateDir, from);
  checkNameIsFree(context.stateDir, to);
  if (await connectServer(context, definition)) {
    throw new CsnapError("BUSY", `${from} is being served: stop its server first, then rename it`);
  }
  // Under its new name the volume's epochs go on from the store's.
  await openBroker(context.brokerUrl, context).forget(from);
  renameDefinition(context.stateDir, from, to);
  print(`volume ${from} is now ${to}`);
}
