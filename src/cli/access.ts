// The way to a volume: through its server where one answers, else by opening the store. Commands
// call withVolume() and never care which it is.
//
// AC1 A control socket counts only if it answers for the volume's uuid: two state directories may
//     use one name.
// AC2 A store that is locked while no control socket answers is refused, not raced.

import { randomUUID } from "node:crypto";
import type { Grant } from "../broker/broker.js";
import { claimEpoch } from "../broker/claim_epoch.js";
import { openBroker } from "../broker/open.js";
import { ControlClient } from "../control/client.js";
import type { NativeBinding } from "../native.js";
import { loadDefinition, type VolumeDefinition } from "../volume/definition.js";
import { DirectOperations } from "../volume/direct.js";
import { CsnapError, codeOf, messageOf } from "../volume/errors.js";
import { loadNative } from "../volume/load_native.js";
import { openVolume, waitForLock } from "../volume/open.js";
import type { VolumeOperations } from "../volume/operations.js";
import { controlSocketPath } from "../volume/paths.js";
import type { Context } from "./context.js";
import { note } from "./output.js";

export interface OpenedVolume {
  readonly definition: VolumeDefinition;
  readonly operations: VolumeOperations;
  /** through a server */
  readonly online: boolean;
}

interface Reached extends OpenedVolume {
  /** Lets go of the volume, and of the term that was claimed for it. */
  readonly close: () => Promise<void>;
}

/** `look`: writes nothing, not even an epoch. `change`: offline, claims an epoch like a server. */
export type Purpose = "look" | "change";

export async function withVolume<T>(
  context: Context,
  name: string,
  purpose: Purpose,
  use: (volume: OpenedVolume) => Promise<T>,
): Promise<T> {
  const opened = await reach(context, loadDefinition(context.stateDir, name), purpose);
  let result: T;
  try {
    result = await use(opened);
  } catch (error) {
    // The first error is the one to report.
    await opened.close().catch(() => {});
    throw error;
  }
  await opened.close();
  return result;
}

async function reach(context: Context, definition: VolumeDefinition, purpose: Purpose): Promise<Reached> {
  try {
    return await waitForLock(async () => {
      const operations = await connectServer(context, definition);
      if (operations) return { definition, operations, online: true, close: () => operations.close() };
      return await openHere(context, definition, purpose);
    });
  } catch (error) {
    if (codeOf(error) !== "BUSY") throw error;
    throw lockedError(context, definition, messageOf(error));
  }
}

/** The client of the volume's server; undefined where none answers. */
export async function connectServer(
  context: Context,
  definition: VolumeDefinition,
): Promise<ControlClient | undefined> {
  const socketPath = controlSocketPath(context.runDir, definition.name);
  const client = await ControlClient.connect(socketPath, definition.name);
  if (!client) return undefined;
  const { uuid } = await client.status();
  if (uuid !== definition.uuid) {
    throw new CsnapError(
      "BUSY_NAME",
      `${definition.name}: the server at ${socketPath} serves another volume (uuid ${uuid}, not ${definition.uuid}): set CSNAP_RUN_DIR to the run directory of the right one`,
    );
  }
  return client;
}

async function openHere(context: Context, definition: VolumeDefinition, purpose: Purpose): Promise<Reached> {
  const native = await loadNative();
  const grant = purpose === "change" ? await claimIfKnown(context, native, definition) : undefined;
  try {
    const volume = await openVolume(native, definition, {
      durability: "flush",
      lookOnly: purpose === "look",
      acceptOrigin: false,
      acceptLoss: false,
      ...(grant && { epoch: grant.epoch, direct: grant.storeClass !== "local" }),
      ...(grant?.gate !== undefined && { gate: grant.gate }),
      ...(grant?.reservation && { reservation: grant.reservation }),
    });
    if (purpose === "look" && !volume.info().clean) warnUnclean(definition);
    const operations = new DirectOperations(native, volume, {
      volume: definition.name,
      originPath: definition.origin,
      storePath: definition.store,
    });
    const close = () => operations.close().finally(() => grant?.release());
    return { definition, operations, online: false, close };
  } catch (error) {
    await grant?.release();
    throw error;
  }
}

/** A volume that was never served has no term to compare with: the store's own next epoch will do. */
async function claimIfKnown(
  context: Context,
  native: NativeBinding,
  definition: VolumeDefinition,
): Promise<Grant | undefined> {
  const broker = openBroker(context.brokerUrl, context, { native });
  if ((await broker.describe(definition.name)) === undefined) return undefined;
  return claimEpoch(broker, native, definition, { purpose: "command", instance: randomUUID() });
}

function warnUnclean({ name, origin }: VolumeDefinition): void {
  note(
    `${name} was not stopped in order: ${origin} alone may lack acknowledged writes until \`csnap serve ${name}\` has opened it`,
  );
}

/** `cause` is the core's line, which names the process that holds the lock where it can. */
function lockedError(context: Context, { name }: VolumeDefinition, cause: string): CsnapError {
  return new CsnapError(
    "BUSY",
    `${cause}; no server of ${name} answers at ${controlSocketPath(context.runDir, name)}: if one runs, set CSNAP_RUN_DIR to its run directory`,
  );
}
