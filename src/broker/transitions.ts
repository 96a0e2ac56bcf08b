// The changes of a service's record, as functions: each takes the record as it is and gives it as it
// shall be, or throws the line that says why not. Backends apply them by compare-and-swap and call
// them anew with what they find when somebody was faster.
//
// TR1 A claim's epoch is above the record's and the store's (F1); it is written before anything is
//     started or opened.
// TR2 Only the slot's own instance, at its epoch, publishes, withdraws or releases.
import { CsnapError } from "../volume/errors.js";
import type { Address, ClaimOptions, Epoch, ServiceSpec } from "./broker.js";
import { defaultSpec } from "./broker.js";
import { type ProcessIdentity, sameProcess } from "./process_identity.js";
import { newRecord, type ServiceRecord, type Slot, vacantSlot } from "./record.js";

/** The slot as this look found it; `alive` is of its holder. */
export interface Found {
  readonly record: ServiceRecord | undefined;
  readonly alive: boolean;
}

/** Somebody holds the slot and lives. */
export function isHeld({ record, alive }: Found): boolean {
  return record?.slot.holder != null && alive;
}

/** TR1. BUSY, DISABLED, INVALID_ARGUMENT. */
export function claimed(
  service: string,
  found: Found,
  options: ClaimOptions,
  self: ProcessIdentity,
): ServiceRecord {
  const record = found.record ?? newRecord(null);
  const { slot, admin } = record;
  const spec = record.spec ?? defaultSpec(service, options.volumeUuid);
  if (spec.volumeUuid !== options.volumeUuid) throw otherVolume(service, spec, options.volumeUuid);
  if (options.purpose === "serve" && admin === "disabled") {
    throw new CsnapError(
      "DISABLED",
      `${service} is disabled by an administrator: \`csnap volume enable ${service}\` allows it to be served`,
    );
  }
  const isOrdered = slot.ordered && slot.instance === options.instance;
  const isOwn = slot.holder !== null && sameProcess(slot.holder, self) && slot.instance === options.instance;
  if (isHeld(found) && !isOrdered && !isOwn) throw heldError(service, record);
  const adopted = isOrdered && record.epoch > options.storeEpoch;
  return {
    ...record,
    spec,
    epoch: adopted ? record.epoch : next(record.epoch, options.storeEpoch),
    slot: claimedSlot(options.instance, self, options.purpose, claimReason(slot, found)),
  };
}

function next(recorded: Epoch, stamped: Epoch): Epoch {
  return (recorded < stamped ? stamped : recorded) + 1n;
}

function claimReason(former: Slot, found: Found): string {
  if (former.holder === null || isHeld(found) || former.state === "vacant") return "starting";
  return `starting; process ${former.holder.pid}, which had it before, is gone`;
}

export function claimedSlot(
  instance: string,
  holder: ProcessIdentity,
  purpose: Slot["purpose"],
  reason: string,
): Slot {
  return { ...vacantSlot(reason), state: "claimed", instance, holder, purpose };
}

function otherVolume(service: string, spec: ServiceSpec, uuid: string): CsnapError {
  return new CsnapError(
    "INVALID_ARGUMENT",
    `${service}: another volume of this name is declared (uuid ${spec.volumeUuid}, not ${uuid}): \`csnap volume define ${service}\` declares this one`,
  );
}

/** BUSY, in words. */
export function heldError(service: string, { slot, epoch }: ServiceRecord): CsnapError {
  const pid = slot.holder?.pid;
  const use = slot.ordered
    ? "the agent, which is starting its server: wait for it"
    : slot.purpose === "command"
      ? "a command that changes it: wait until that is done"
      : `which serves it with epoch ${epoch}: stop that one first`;
  return new CsnapError("BUSY", `${service}: in use by process ${pid}, ${use}`);
}

/** TR2: the record, if the slot is still this term's. */
export function ownSlot(
  record: ServiceRecord | undefined,
  instance: string,
  epoch: Epoch,
): record is ServiceRecord {
  return (
    record !== undefined &&
    record.epoch === epoch &&
    record.slot.instance === instance &&
    record.slot.holder !== null
  );
}

/** FENCED for publish(); the others have nothing left to do. */
export function fencedError(service: string, epoch: Epoch, record: ServiceRecord | undefined): CsnapError {
  return new CsnapError(
    "FENCED",
    `${service}: epoch ${epoch} is not valid any more, ${record ? `epoch ${record.epoch} was granted after it` : "its record is gone"}: start the server again`,
  );
}

export function withSlot(record: ServiceRecord, change: Partial<Slot>): ServiceRecord {
  return { ...record, slot: { ...record.slot, ...change, since: new Date().toISOString() } };
}

export function published(record: ServiceRecord, address: Address): ServiceRecord {
  return withSlot(record, { state: "published", ordered: false, address, reason: "serving", suspect: null });
}

export function withdrawn(record: ServiceRecord, reason: string): ServiceRecord {
  return withSlot(record, { state: "claimed", address: null, reason, suspect: null });
}

export function released(record: ServiceRecord, reason: string, failure: string | undefined): ServiceRecord {
  const slot = vacantSlot(failure ?? reason);
  return { ...record, slot: failure === undefined ? slot : { ...slot, state: "failed" } };
}

/** What this backend can hold to; the line that says why not. */
export function specProblem(spec: ServiceSpec, host: string): string | undefined {
  const { service, instances, storeClass, fencing, hosts } = spec;
  if (instances.max !== 1)
    return `${service}: a csnap volume has exactly one server, and ${instances.max} are declared: declare 1`;
  if (storeClass !== "local")
    return `${service}: store class ${storeClass} needs a broker that other hosts see, and local: knows this host only: declare --store-class local`;
  if (fencing.policy !== "none")
    return `${service}: fencing by ${fencing.policy} is of use between hosts only, and local: knows this host only: declare --fence none`;
  if (hosts.length > 0 && !hosts.includes(host))
    return `${service}: host ${host} is not among those declared (${hosts.join(", ")}), and local: knows this host only: add it with --host ${host}`;
  return undefined;
}
