// `csnap import`: defines a volume on this host from a store that is there already.
import { resolve } from "node:path";
import type { Command } from "commander";
import {
  checkNameIsFree,
  listDefinitions,
  loadDefinition,
  writeDefinition,
} from "../../volume/definition.js";
import { CsnapError, codeOf, messageOf } from "../../volume/errors.js";
import { hostView, inspectTarget, needOrigin, refuseUsed } from "../../volume/inspect.js";
import { loadNative } from "../../volume/load_native.js";
import { checkVolumeName } from "../../volume/names.js";
import { type Context, contextOf, examples, jsonOption } from "../context.js";
import { print, printJson } from "../output.js";

interface ImportOptions {
  readonly name?: string;
  readonly origin?: string;
  readonly json?: boolean;
}

export function registerImport(program: Command): void {
  const command = program
    .command("import")
    .summary("take over an existing store on this host")
    .description(
      "Defines a volume from an existing store. The store knows the name and the origin; both can be changed here.",
    )
    .argument("<store>", "file or block device that holds the store")
    .option("--name <name>", "name of the volume here (default: the name that the store knows)")
    .option("--origin <path>", "where the origin is now (default: the path that the store knows)")
    .addOption(jsonOption())
    .action((store: string, options: ImportOptions) => importStore(contextOf(command), store, options));
  examples(command, "csnap import /data/disk1.store", "csnap import /dev/sdc --name mail --origin /dev/sdb");
}

async function importStore(context: Context, storeArgument: string, options: ImportOptions): Promise<void> {
  const store = resolve(storeArgument);
  if (!inspectTarget(store, "store")) {
    throw new CsnapError("NOT_FOUND", `store ${store} does not exist: check the path`);
  }
  const summary = await readSummary(store);
  const name = checkVolumeName(options.name ?? summary.volumeName);
  checkNameIsFree(context.stateDir, name);
  refuseSecondDefinition(context.stateDir, summary.volumeUuid);
  const origin = resolve(options.origin ?? summary.originPath);
  refuseUsed(needOrigin(origin, "say with --origin where it is now"), "origin", hostView());
  writeDefinition(context.stateDir, { name, uuid: summary.volumeUuid, origin, store, serve: {} });
  if (options.json) printJson({ volume: name, uuid: summary.volumeUuid, origin, store });
  else print(`volume ${name}: origin ${origin}, store ${store}\nServe it with \`csnap serve ${name}\`.`);
}

async function readSummary(store: string) {
  const native = await loadNative();
  try {
    return await native.readStore(store);
  } catch (error) {
    const message = messageOf(error);
    throw new CsnapError(codeOf(error), message.includes(store) ? message : `store ${store}: ${message}`);
  }
}

function refuseSecondDefinition(stateDir: string, uuid: string): void {
  for (const name of listDefinitions(stateDir)) {
    if (loadDefinition(stateDir, name).uuid === uuid) {
      throw new CsnapError(
        "ALREADY_EXISTS",
        `this store is volume '${name}' here already: use that name, or \`csnap rename ${name} NEW\``,
      );
    }
  }
}
