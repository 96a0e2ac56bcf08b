// `csnap events`: prints the events of served volumes as they happen.
import type { Command } from "commander";
import type { ControlClient } from "../../control/client.js";
import type { EventRecord } from "../../control/events.js";
import { listDefinitions, loadDefinition } from "../../volume/definition.js";
import { CsnapError } from "../../volume/errors.js";
import { checkVolumeName } from "../../volume/names.js";
import { connectServer } from "../access.js";
import { type Context, contextOf, examples } from "../context.js";
import { print } from "../output.js";

interface EventsOptions {
  readonly past?: boolean;
  readonly json?: boolean;
}

export function registerEvents(program: Command): void {
  const command = program
    .command("events")
    .summary("follow what happens")
    .description(
      "Prints the events of one served volume, or of all that are served now, until they stop or you interrupt.",
    )
    .argument("[volume]", "only this volume")
    .option("--past", "begin with the events that the server still remembers")
    .option("--json", "print one JSON object a line")
    .action((name: string | undefined, options: EventsOptions) => events(contextOf(command), name, options));
  examples(command, "csnap events disk1", "csnap events --past --json");
}

async function events(context: Context, name: string | undefined, options: EventsOptions): Promise<void> {
  const names = name === undefined ? listDefinitions(context.stateDir) : [checkVolumeName(name)];
  const clients: ControlClient[] = [];
  for (const volume of names) {
    const client = await connectServer(context, loadDefinition(context.stateDir, volume));
    if (client) clients.push(client);
    else if (name !== undefined) {
      throw new CsnapError(
        "NOT_SERVED",
        `${name} is not served, so nothing happens to it: start \`csnap serve ${name}\``,
      );
    }
  }
  if (clients.length === 0)
    throw new CsnapError("NOT_SERVED", "no volume is being served: start `csnap serve VOLUME`");
  await Promise.all(
    clients.map(async (client) => {
      for await (const event of client.followEvents(options.past ? 0 : undefined)) {
        print(options.json ? JSON.stringify(event) : describeEvent(event));
      }
    }),
  );
}

export function describeEvent(event: EventRecord): string {
  const object = event.snapshot === null ? event.volume : `${event.volume}@${event.snapshot}`;
  return `${event.time} ${event.kind} ${object}${event.message === "" ? "" : `: ${event.message}`}`;
}
