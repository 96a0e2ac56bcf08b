// `csnap detach`: asks this host's agent to detach a device. With --force, where the volume is not
// attached here: ends the read-write hold of an attachment whose host is gone, through the server or on
// the store itself.
//
// DT1 A hold is ended only when the user has seen whose it is: on a terminal he is asked, else the
//     line says it.
import { resolve } from "node:path";
import { createInterface } from "node:readline/promises";
import type { Command } from "commander";
import type { DeviceRecord } from "../../agent/model.js";
import { unmount } from "../../agent/mount.js";
import { AgentClient, agentSocketPath } from "../../agent/service.js";
import { deviceIndex } from "../../agent/sysfs.js";
import { CsnapError, codeOf } from "../../volume/errors.js";
import type { HoldRecord } from "../../volume/model.js";
import { isName } from "../../volume/names.js";
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
    .summary("detach a device, or end the hold of an attachment whose host is gone")
    .description(
      "Detaches a device of this host: named by its path, by what is attached, or by where it is mounted (it is unmounted first). A device in use is refused, and its users are named; --force takes it away all the same, and what was not written is lost. For a volume that is not attached here, --force ends the read-write hold of the host that is gone; if that host comes back, its device fails instead of overwriting what others wrote.",
    )
    .argument("<device|volume[@snapshot]|directory>", "what to detach")
    .option("--force", "also a device in use, or the hold of another host")
    .option("--yes", "do not ask")
    .addOption(jsonOption())
    .action((target: string, options: DetachOptions) => detach(contextOf(command), target, options));
  examples(command, "csnap detach disk1@monday", "csnap detach --force disk1");
}

async function detach(context: Context, target: string, options: DetachOptions): Promise<void> {
  const agent = new AgentClient(agentSocketPath(context.runDir));
  try {
    const devices = await detachHere(agent, target, options.force ?? false);
    if (options.json) printJson(devices);
    return;
  } catch (error) {
    const isElsewhere = codeOf(error) === "NOT_FOUND" || codeOf(error) === "NOT_SERVED";
    if (!options.force || !isElsewhere || !isName(target)) throw error;
  }
  const ended = await endHoldByForce(context, target, options.yes ?? false);
  if (options.json) printJson({ volume: target, ended });
  else print(`the hold of attachment ${ended.attachment} on ${target} is ended: ${describe(ended)}`);
}

/** A directory is unmounted first; only then is its device unused. */
async function detachHere(agent: AgentClient, target: string, force: boolean): Promise<DeviceRecord[]> {
  if (!target.startsWith("/") || deviceIndex(target) !== undefined) return await agent.detach(target, force);
  const directory = resolve(target);
  const found = (await agent.devices()).find((device) => device.mounts.includes(directory));
  if (!found)
    throw new CsnapError(
      "NOT_FOUND",
      `${directory} is where nothing of this host's agent is mounted: \`csnap devices\` lists what is`,
    );
  await unmount(directory);
  return await agent.detach(found.attachment, force);
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
