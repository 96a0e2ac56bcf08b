// The claim that precedes every opening of a store that writes: a server's, and an offline command's.
//
// CE1 What is claimed is what the store is then stamped with (OpenVolumeOptions.epoch): the core
//     refuses an epoch that is not above its own, so a claim made by an older look stamps nothing.
import type { StoreSummary } from "../native.js";
import type { VolumeDefinition } from "../volume/definition.js";
import { explain } from "../volume/open.js";
import type { Broker, ClaimOptions, Epoch, Grant } from "./broker.js";

/** Of NativeBinding. */
interface StoreReader {
  readStore(path: string): Promise<Pick<StoreSummary, "epoch">>;
}

/** The epoch for the next opening of the store: above the broker's and the superblock's. */
export async function claimEpoch(
  broker: Broker,
  native: StoreReader,
  definition: VolumeDefinition,
  claim: Pick<ClaimOptions, "purpose" | "instance" | "ordered">,
): Promise<Grant> {
  let storeEpoch: Epoch;
  try {
    storeEpoch = (await native.readStore(definition.store)).epoch;
  } catch (error) {
    throw explain(error, definition);
  }
  return broker.claim(definition.name, { ...claim, storeEpoch, volumeUuid: definition.uuid });
}
