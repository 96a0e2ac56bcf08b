// Opens a broker by its URL. Called by `csnap serve`, the agent and commands.
import { usageError } from "../volume/errors.js";
import type { Directories } from "../volume/paths.js";
import type { Broker } from "./broker.js";
import { LocalBroker } from "./local.js";

export const defaultBrokerUrl = "local:";

/** `local:`. USAGE for anything else. Reads nothing and waits for nothing. */
export function openBroker(url: string, { stateDir }: Pick<Directories, "stateDir">): Broker {
  if (url === "local:") return new LocalBroker(stateDir);
  const scheme = /^([a-z]+):/.exec(url)?.[1];
  const what = scheme === "local" ? "has nothing behind the colon" : "is not known to this csnap";
  throw usageError(`broker URL '${url}' ${what}: it knows local: (this host's state directory)`);
}
