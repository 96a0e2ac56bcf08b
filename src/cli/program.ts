// The command line: all commands, exit statuses and the one line on stderr.
//
// PR1 Exit status 0: done; 1: failed; 2: wrong usage. Every failure is one line `csnap: …` on stderr.
import { Command, CommanderError } from "commander";
import { CsnapError, codeOf, isNativeError, messageOf, oneLine, usageError } from "../volume/errors.js";
import { version } from "../volume/version.js";
import { registerAgent } from "./commands/agent.js";
import { registerAttach } from "./commands/attach.js";
import { registerCheck } from "./commands/check.js";
import { registerDelete } from "./commands/delete.js";
import { registerDemo } from "./commands/demo.js";
import { registerDetach } from "./commands/detach.js";
import { registerDevices } from "./commands/devices.js";
import { registerDump } from "./commands/dump.js";
import { registerEvents } from "./commands/events.js";
import { registerGet } from "./commands/get.js";
import { registerImport } from "./commands/import.js";
import { registerInit } from "./commands/init.js";
import { registerList } from "./commands/list.js";
import { registerRemove } from "./commands/remove.js";
import { registerRename } from "./commands/rename.js";
import { registerServe } from "./commands/serve.js";
import { registerSet } from "./commands/set.js";
import { registerSnapshot } from "./commands/snapshot.js";
import { registerStatus } from "./commands/status.js";
import { registerVolume } from "./commands/volume.js";
import { examples, globalOptions } from "./context.js";

export const exitDone = 0;
export const exitFailed = 1;
export const exitUsage = 2;

export function buildProgram(): Command {
  const program = new Command("csnap")
    .description("Cheap, instant, crash-safe snapshots of any disk image or block device, served over NBD.")
    .version(version, "--version", "print the version")
    .helpOption("--help", "show help")
    .helpCommand("help [command]", "show help of a command")
    .configureHelp({ showGlobalOptions: true, sortSubcommands: false })
    // Errors come back as exceptions; run() prints them its own way.
    .configureOutput({ outputError: () => {} })
    .exitOverride();
  for (const option of globalOptions()) program.addOption(option);
  registerInit(program);
  registerServe(program);
  registerSnapshot(program);
  registerList(program);
  registerDelete(program);
  registerGet(program);
  registerSet(program);
  registerStatus(program);
  registerAttach(program);
  registerDetach(program);
  registerDevices(program);
  registerEvents(program);
  registerCheck(program);
  registerDump(program);
  registerImport(program);
  registerRename(program);
  registerRemove(program);
  registerVolume(program);
  registerDemo(program);
  registerAgent(program);
  examples(program, "csnap init disk1 --origin /data/disk1.img --store /data/disk1.store", "csnap demo");
  return program;
}

/** Runs one command line (without node and script); returns the exit status. */
export async function run(args: readonly string[]): Promise<number> {
  const program = buildProgram();
  try {
    if (args.length === 0) {
      process.stderr.write(program.helpInformation());
      return exitUsage;
    }
    await program.parseAsync([...args], { from: "user" });
    return exitDone;
  } catch (thrown) {
    if (thrown instanceof CommanderError && thrown.exitCode === 0) return exitDone;
    const error = thrown instanceof CommanderError ? commandLineError(thrown, program, args) : thrown;
    process.stderr.write(`csnap: ${lineOf(error)}\n`);
    if (process.env.CSNAP_DEBUG && error instanceof Error) process.stderr.write(`${error.stack}\n`);
    return codeOf(error) === "USAGE" ? exitUsage : exitFailed;
  }
}

function commandLineError(error: CommanderError, program: Command, args: readonly string[]): CsnapError {
  const command = program.commands.find((candidate) => args.includes(candidate.name()));
  const help = command ? `csnap ${command.name()} --help` : "csnap --help";
  return usageError(`${oneLine(error.message).replace(/^error: |\.$/g, "")}: see \`${help}\``);
}

/** Errors of our own and of the system say what to do; anything else is a defect of csnap's. */
function lineOf(error: unknown): string {
  const isExpected =
    error instanceof CsnapError || isNativeError(error) || (error instanceof Error && "syscall" in error);
  const message = messageOf(error);
  return isExpected ? message : `internal error: ${message}: please report it (CSNAP_DEBUG=1 shows where)`;
}
