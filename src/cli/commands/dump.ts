// `csnap dump`: prints a volume's metadata as JSON lines.
import type { Command } from "commander";
import { checkVolumeName } from "../../volume/names.js";
import { withVolume } from "../access.js";
import { contextOf, examples } from "../context.js";

export function registerDump(program: Command): void {
  const command = program
    .command("dump")
    .summary("print a volume's metadata as JSON lines")
    .description(
      "Prints superblock, snapshots and exceptions as JSON, one object a line; writes nothing to the store.",
    )
    .argument("<volume>", "the volume")
    .action(async (name: string) => {
      await withVolume(contextOf(command), checkVolumeName(name), "look", ({ operations }) =>
        operations.dump(process.stdout),
      );
    });
  examples(command, "csnap dump disk1 > disk1.jsonl", "csnap dump disk1 | head -n 1");
}
