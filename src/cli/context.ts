// What every command needs to know of its surroundings: directories, settings, the terminal.
import { type Command, Option } from "commander";
import { defaultBrokerUrl } from "../broker/open.js";
import { type Directories, findDirectories } from "../volume/paths.js";
import { loadSettings, type Settings } from "../volume/settings.js";

export interface Context extends Directories {
  /** where servers are known */
  readonly brokerUrl: string;
  readonly settings: Settings;
  /** --config, where it was given */
  readonly config: string | undefined;
}

export interface GlobalOptions {
  readonly stateDir?: string;
  readonly config?: string;
  readonly broker?: string;
}

export function globalOptions(): Option[] {
  return [
    new Option("--state-dir <dir>", "where volumes are defined (else $CSNAP_STATE_DIR, or the default)"),
    new Option("--config <file>", "settings (default: /etc/csnap/csnap.toml)"),
    new Option(
      "--broker <url>",
      "where servers are known: local: or etcd://HOST:PORT,… (else $CSNAP_BROKER, or local:)",
    ),
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
  const brokerUrl = options.broker || process.env.CSNAP_BROKER || settings.broker || defaultBrokerUrl;
  return { ...directories, brokerUrl, settings, config: options.config };
}

/** Two examples at the end of a command's help (cli.md). */
export function examples(command: Command, first: string, second: string): void {
  command.addHelpText("after", `\nExamples:\n  ${first}\n  ${second}`);
}

export const jsonOption = (): Option => new Option("--json", "print JSON");
