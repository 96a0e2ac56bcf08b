// What every command needs to know of its surroundings: directories, settings, the terminal.
import { type Command, Option } from "commander";
import { type Directories, findDirectories } from "../volume/paths.js";
import { loadSettings, type Settings } from "../volume/settings.js";

export interface Context extends Directories {
  readonly settings: Settings;
}

export interface GlobalOptions {
  readonly stateDir?: string;
  readonly config?: string;
}

export function globalOptions(): Option[] {
  return [
    new Option("--state-dir <dir>", "where volumes are defined (else $CSNAP_STATE_DIR, or the default)"),
    new Option("--config <file>", "settings (default: /etc/csnap/csnap.toml)"),
  ];
}

export function contextOf(command: Command): Context {
  const options = command.optsWithGlobals<GlobalOptions>();
  const settings = loadSettings(options.config);
  const directories = findDirectories({
    stateDirOption: options.stateDir,
    configStateDir: settings.stateDir,
    configRunDir: settings.runDir,
    env: process.env,
    isRoot: process.getuid?.() === 0,
  });
  return { ...directories, settings };
}

/** Two examples at the end of a command's help (cli.md). */
export function examples(command: Command, first: string, second: string): void {
  command.addHelpText("after", `\nExamples:\n  ${first}\n  ${second}`);
}

export const jsonOption = (): Option => new Option("--json", "print JSON");
