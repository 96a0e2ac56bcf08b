// `csnap detach --force VOLUME`: ends the read-write hold of an attachment whose host is gone, through
// the server or on the store itself.
//
// DT1 A hold is ended only when the user has seen whose it is: on a terminal he is asked, else the
//     line says it.
import { createInterface } from "node:readline/promises";
import type { Command } from "commander";
import { CsnapError, usageError } from "../../volume/errors.js";
import type { HoldRecord } from "../../volume/model.js";
import { parseObjectName } from "../../volume/names.js";
import { withVolume } from "../access.js";
import { type Context, contextOf, examples, jsonOption } from "../context.js";
import { print, printJson, shortTime } from "../output.js";

interface DetachOptions {
  readonly force?: boolean;
  readonly yes?: boolean;
  readonly json?: boolean;
}

export function registerDetach(program: Command): void {
  const command = program
    .command("detach")
    .summary("end the hold of an attachment whose host is gone")
    .description(
      "Ends the read-write hold of an attachment whose host is gone, so that others can attach or write. If that host comes back, its device fails instead of overwriting what others wrote.",
    )
    .argument("<volume>", "volume whose origin is held")
    .option("--force", "yes, end the hold of another host")
    .option("--yes", "do not ask")
    .addOption(jsonOption())
    .action((name: string, options: DetachOptions) => detach(contextOf(command), name, options));
  examples(command, "csnap detach --force disk1", "csnap detach --force --yes disk1 --json");
}

async function detach(context: Context, name: string, options: DetachOptions): Promise<void> {
  const { volume, snapshot } = parseObjectName(name);
  if (snapshot !== undefined)
    throw usageError(`'${name}' is a snapshot, and those are held by nobody: name the volume, ${volume}`);
  if (!options.force) {
    throw usageError(
      `detaching ends the hold on ${volume} of whichever host has it: say --force if that host is gone`,
    );
  }
  const ended = await endHoldByForce(context, volume, options.yes ?? false);
  if (options.json) printJson({ volume, ended });
  else print(`the hold of attachment ${ended.attachment} on ${volume} is ended: ${describe(ended)}`);
}

export async function endHoldByForce(context: Context, volume: string, yes: boolean): Promise<HoldRecord> {
  const { hold } = await withVolume(context, volume, "look", ({ operations }) => operations.status());
  if (hold === null) throw notHeld(volume);
  if (!yes && process.stdin.isTTY) await confirm(volume, hold);
  const ended = await withVolume(context, volume, "change", ({ operations }) =>
    operations.endHold({ attachment: hold.attachment, force: true }),
  );
  if (ended === null) throw notHeld(volume);
  return ended;
}

function notHeld(volume: string): CsnapError {
  return new CsnapError(
    "NOT_FOUND",
    `${volume} is held by no attachment: nothing to end (\`csnap status ${volume}\` shows a hold)`,
  );
}

function describe({ host, since }: HoldRecord): string {
  return `held by ${host} since ${shortTime(since)}`;
}

async function confirm(volume: string, hold: HoldRecord): Promise<void> {
  const terminal = createInterface({ input: process.stdin, output: process.stderr });
  const answer = await terminal.question(
    `End the hold on ${volume}, ${describe(hold)}? Its device fails if that host still runs. [y/N] `,
  );
  terminal.close();
  if (!/^y(es)?$/i.test(answer.trim()))
    throw new CsnapError("INVALID_ARGUMENT", `the hold on ${volume} stays: you said no`);
}
