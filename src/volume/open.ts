// Opens a volume in this process: a server's whole term, or the moment that a command needs while
// no server runs.
//
// O1 A store or origin that is locked is waited for shortly (a look by another command is over in
//    milliseconds), then refused, never raced.
// O2 Errors of the core come out with the volume's name and the command that remedies them.
import { setTimeout as sleep } from "node:timers/promises";
import type { NativeBinding, NativeVolume, OpenVolumeOptions } from "../native.js";
import type { VolumeDefinition } from "./definition.js";
import { CsnapError, codeOf, isNativeError, messageOf } from "./errors.js";
import { hostView, needOrigin, refuseUsed } from "./inspect.js";

/** How long a locked store is waited for. */
export const lockWaitMs = 1000;
const lockRetryMs = 50;

export type OpenSettings = Omit<OpenVolumeOptions, "originPath" | "storePath">;

/** Repeats `attempt` while it says BUSY, for at most lockWaitMs. */
export async function waitForLock<T>(attempt: () => Promise<T>): Promise<T> {
  const deadline = performance.now() + lockWaitMs;
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      if (codeOf(error) !== "BUSY" || performance.now() >= deadline) throw error;
      await sleep(lockRetryMs);
    }
  }
}

export async function openVolume(
  native: NativeBinding,
  definition: VolumeDefinition,
  settings: OpenSettings,
): Promise<NativeVolume> {
  try {
    const { origin, store } = definition;
    return await native.openVolume({ ...settings, originPath: origin, storePath: store });
  } catch (error) {
    throw explain(error, definition);
  }
}

/** Mounted, looped and the like: what the core's lock alone does not see on a file. */
export function checkOriginIsFree(definition: VolumeDefinition): void {
  const target = needOrigin(
    definition.origin,
    `bring it back, or correct its path in volumes/${definition.name}.toml of the state directory`,
  );
  refuseUsed(target, "origin", hostView());
}

/** Adds to a core's error the volume and the command that helps. */
export function explain(error: unknown, definition: VolumeDefinition): unknown {
  if (!isNativeError(error)) return error;
  const message = messageOf(error);
  const { name } = definition;
  const named = message.startsWith(`${name}:`) ? message : `${name}: ${message}`;
  const remedy = remedies(definition)[error.code];
  const text = remedy === undefined || message.includes(remedy.mark) ? named : `${named}: ${remedy.text}`;
  return new CsnapError(error.code, text);
}

interface Remedy {
  /** a message that holds this names the remedy already */
  readonly mark: string;
  readonly text: string;
}

function remedies({ name, store, origin }: VolumeDefinition): Partial<Record<string, Remedy>> {
  return {
    WRONG_ORIGIN: {
      mark: "--accept-origin",
      text: `put the right origin back at ${origin}, or take this one with \`csnap serve ${name} --accept-origin\` (its snapshots are then suspect)`,
    },
    ORIGIN_CHANGED: {
      mark: "--accept-origin",
      text: `somebody wrote to ${origin} while it was not served; take it as it is with \`csnap serve ${name} --accept-origin\` (its snapshots are then suspect)`,
    },
    NEEDS_ACCEPT_LOSS: {
      mark: "--accept-loss",
      text: `restore from a backup, or go on with \`csnap serve ${name} --accept-loss\``,
    },
    FENCED: { mark: "epoch", text: "a newer server owns the store" },
    NOT_A_STORE: { mark: "csnap init", text: `check the path ${store}` },
    NEWER_FORMAT: { mark: "upgrade", text: "upgrade csnap" },
    CORRUPT: {
      mark: "csnap remove",
      text: `put a copy of the store back, or give it up with \`csnap remove ${name} --force\` (the origin stays as it is)`,
    },
  };
}
