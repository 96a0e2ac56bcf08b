// The changes of a service's record, as functions: each takes the record as it is and gives it as it
// shall be, or throws the line that says why not. Backends apply them by compare-and-swap and call
// them anew with what they find when somebody was faster.
//
// TR1 A claim's epoch is above the record's and the store's (F1); it is written before anything is
//     started or opened.
// TR2 Only the slot's own instance, at its epoch, renews, publishes, withdraws or releases.
// TR3 A holder that is silent, on another host, is not known to be dead: its slot is taken over after
//     a fence only (F8): the declared command's, or an administrator's word.
// TR4 A broker that is behind the store knows less than the store (it was restored, or is another
//     cluster's): on a store that other hosts reach an administrator must say that it counts (F1).
// TR5 A fence by reservations counts only if the holder has given no sign since it began: its grant has
//     ended then, and as the slot becomes vacant in the same step it is never renewed. So a server that
//     registers at the devices later than the fence (RV4) finds its gate shut.
import { CsnapError } from "../volume/errors.js";
import type { Address, ClaimOptions, Epoch, ServiceSpec } from "./broker.js";
import { defaultSpec } from "./broker.js";
import type { Life } from "./liveness.js";
import { type ProcessIdentity, sameProcess } from "./process_identity.js";
import { type Beat, type Fencing, newRecord, type ServiceRecord, type Slot, vacantSlot } from "./record.js";
import { reservesDevices, withRegistrant } from "./reservation.js";

/** The slot as this look found it; `life` is its holder's. */
export interface Found {
  readonly record: ServiceRecord | undefined;
  readonly life: Life;
  /** of HolderLife */
  readonly fencingMs?: number | undefined;
  /** ISO 8601: when, by this host's wall clock */
  readonly at: string;
}

/** Somebody has the slot and may still act, or is not known to have stopped (TR3). */
export function isHeld({ record, life }: Found): boolean {
  return record?.slot.holder != null && life !== "gone";
}

/** What a claim adds where grants end in time. */
export interface ClaimTerms {
  readonly grantMs: number;
}

/** TR1. BUSY, DISABLED, INVALID_ARGUMENT. */
export function claimed(
  service: string,
  found: Found,
  options: ClaimOptions,
  self: ProcessIdentity,
  terms?: ClaimTerms,
): ServiceRecord {
  const record = found.record ?? newRecord(null, found.at);
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
  if (options.ordered && !isOrdered && !isOwn) throw withdrawnError(service);
  if (isHeld(found) && !isOrdered && !isOwn) throw heldError(service, record, found.life);
  const adopted = isOrdered && record.epoch > options.storeEpoch;
  // In one term no number comes twice, whoever writes it (LS1).
  const beat = terms ? { seq: adopted ? (slot.beat?.seq ?? 0) + 1 : 1, grant_ms: terms.grantMs } : null;
  const taken = {
    ...record,
    spec,
    epoch: adopted ? record.epoch : next(record.epoch, options.storeEpoch),
    slot: claimedSlot({
      instance: options.instance,
      holder: self,
      purpose: options.purpose,
      reason: claimReason(slot, found),
      beat,
      since: found.at,
    }),
  };
  return withRegistrant(taken, self);
}

function next(recorded: Epoch, stamped: Epoch): Epoch {
  return (recorded < stamped ? stamped : recorded) + 1n;
}

export function firstBeat(terms: ClaimTerms | undefined): Beat | null {
  return terms ? { seq: 1, grant_ms: terms.grantMs } : null;
}

/** TR2: the record with the next sign of life. */
export function renewed(record: ServiceRecord, seq: number): ServiceRecord {
  const { beat } = record.slot;
  return beat ? { ...record, slot: { ...record.slot, beat: { ...beat, seq } } } : record;
}

/**
 * TR3: an administrator knows that the silent holder's host can't write any more. `epoch` is what it was
 * known of: between a look at the host and the word, another may have taken over and fallen silent.
 */
export function fenceConfirmed(
  service: string,
  { record, life, at }: Found,
  epoch: Epoch,
  who: string,
): ServiceRecord {
  if (!record || life !== "silent" || !record.slot.holder)
    throw new CsnapError(
      "INVALID_ARGUMENT",
      `${service}: nothing to confirm: no host that had it is silent (\`csnap volume explain ${service}\` says how it stands)`,
    );
  const { holder } = record.slot;
  if (record.epoch !== epoch)
    throw new CsnapError(
      "INVALID_ARGUMENT",
      `${service}: nothing to confirm for epoch ${epoch}: ${holder.host} has epoch ${record.epoch} by now: \`csnap volume explain ${service}\` says how it stands`,
    );
  return { ...record, slot: vacantSlot(`${who} confirmed that ${holder.host} can't write any more`, at) };
}

/**
 * TR4. Undefined: it is not behind. `record`: where an agent had ordered it, which must not order again:
 * each order adds to the epoch, and would catch up in the end.
 */
export function behindStore(
  service: string,
  { record, at }: Pick<Found, "record" | "at">,
  { instance, storeEpoch }: ClaimOptions,
): { readonly error: CsnapError; readonly record?: ServiceRecord } | undefined {
  if (!record?.spec || record.spec.storeClass === "local") return undefined;
  const isOrdered = record.slot.ordered && record.slot.instance === instance;
  // The order's own number says nothing of what the broker knew before it.
  const known = isOrdered ? record.epoch - 1n : record.epoch;
  if (storeEpoch <= known) return undefined;
  const error = new CsnapError(
    "FENCED",
    `${service}: its store was served with epoch ${storeEpoch}, and this broker knows of ${known} only: another broker may rule it; if that one is gone for good, \`csnap volume enable --adopt-epoch ${service}\``,
  );
  return isOrdered ? { error, record: released(record, "", error.message, at) } : { error };
}

export function adoptedEpoch(record: ServiceRecord, stamped: Epoch, at: string): ServiceRecord {
  if (record.epoch >= stamped) return record;
  return { ...record, epoch: stamped, slot: vacantSlot("an administrator adopted the store's epoch", at) };
}

/**
 * Why this can't be declared now. What a store's class asks of a server (direct I/O, mode sync, a
 * gate) is settled when it opens, and so is whether it reserves its devices: one that serves keeps to
 * what it was opened under (F8).
 */
export function specConflict(found: Found, spec: ServiceSpec): CsnapError | undefined {
  const former = found.record?.spec;
  if (!found.record || !former || !isHeld(found)) return undefined;
  const isSame =
    former.volumeUuid === spec.volumeUuid &&
    former.storeClass === spec.storeClass &&
    reservesDevices(former.fencing) === reservesDevices(spec.fencing);
  return isSame ? undefined : heldError(spec.service, found.record, found.life);
}

/** TR3: this candidate fences, the others wait. Undefined: there is nothing to fence any more. */
export function fencingBegun(
  { record, life }: Found,
  instance: string,
  fencing: Fencing,
  self: ProcessIdentity,
): ServiceRecord | undefined {
  if (!record || life !== "silent" || record.slot.instance !== instance) return undefined;
  return withRegistrant({ ...record, slot: { ...record.slot, fencing } }, self);
}

/**
 * TR3, TR5. `begun` is what fencingBegun() gave; `failure`: it is not confirmed. Undefined: the slot is
 * another's by now.
 */
export function fencingEnded(
  { record, at }: Pick<Found, "record" | "at">,
  begun: ServiceRecord,
  failure: string | undefined,
): ServiceRecord | undefined {
  const { holder } = record?.slot ?? {};
  const { fencing, beat } = begun.slot;
  if (!record?.spec || !holder || !fencing || record.slot.fencing?.id !== fencing.id) return undefined;
  const isAwake = reservesDevices(record.spec.fencing) && record.slot.beat?.seq !== beat?.seq;
  const why = failure ?? (isAwake ? "it has given a sign again meanwhile" : undefined);
  if (why === undefined)
    return { ...record, slot: vacantSlot(`${holder.host} was fenced by ${fencing.host}`, at) };
  return {
    ...record,
    slot: { ...record.slot, fencing: null, reason: `${holder.host} is not fenced: ${why}` },
  };
}

/** INVALID_ARGUMENT where it can't go there. */
export function moved(service: string, { record, life }: Found, to: string): ServiceRecord {
  const wrong = (why: string) => new CsnapError("INVALID_ARGUMENT", `${service} can't be moved: ${why}`);
  if (!record?.slot.holder || life !== "alive")
    throw wrong(`nobody serves it: \`csnap volume explain ${service}\` says why`);
  if (record.slot.holder.host === to) throw wrong(`it is on ${to} already`);
  if (!record.agents.some((agent) => agent.host === to))
    throw wrong(`no agent on ${to} offers to serve it: start \`csnap agent\` there`);
  return { ...record, slot: { ...record.slot, move_to: to } };
}

function claimReason(former: Slot, found: Found): string {
  if (former.holder === null || isHeld(found) || former.state === "vacant") return "starting";
  return `starting; process ${former.holder.pid}, which had it before, is gone`;
}

export function claimedSlot({
  reason,
  since,
  ...claim
}: Pick<Slot, "instance" | "holder" | "purpose" | "reason" | "beat" | "since">): Slot {
  return { ...vacantSlot(reason, since), state: "claimed", ...claim };
}

function otherVolume(service: string, spec: ServiceSpec, uuid: string): CsnapError {
  return new CsnapError(
    "INVALID_ARGUMENT",
    `${service}: another volume of this name is declared (uuid ${spec.volumeUuid}, not ${uuid}): \`csnap volume define ${service}\` declares this one`,
  );
}

/** FENCED. A server that stood still between its order and its claim may find a newer order, or none. */
function withdrawnError(service: string): CsnapError {
  return new CsnapError(
    "FENCED",
    `${service}: the agent's order was withdrawn before this server took it over: the agents see to the next one`,
  );
}

/** BUSY, in words. */
export function heldError(service: string, { slot, epoch }: ServiceRecord, life: Life): CsnapError {
  const { holder } = slot;
  if (life === "silent" && holder)
    return new CsnapError(
      "BUSY",
      `${service}: nothing is heard of ${holder.host}, which has epoch ${epoch} and may still write: bring it back, or, once it is off for certain, \`csnap volume fence-confirm ${service} --epoch ${epoch}\``,
    );
  // Beside other hosts, a number of a process says little.
  const who = slot.beat && holder ? `${holder.pid} of ${holder.host}` : holder?.pid;
  const use = slot.ordered
    ? "the agent, which is starting its server: wait for it"
    : slot.purpose === "command"
      ? "a command that changes it: wait until that is done"
      : `which serves it with epoch ${epoch}: stop that one first`;
  return new CsnapError("BUSY", `${service}: in use by process ${who}, ${use}`);
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

function withSlot(record: ServiceRecord, change: Partial<Slot>): ServiceRecord {
  return { ...record, slot: { ...record.slot, suspect: null, ...change } };
}

export function published(record: ServiceRecord, address: Address, since: string): ServiceRecord {
  return withSlot(record, { state: "published", ordered: false, address, reason: "serving", since });
}

export function withdrawn(record: ServiceRecord, reason: string, since: string): ServiceRecord {
  return withSlot(record, { state: "claimed", address: null, reason, since });
}

export function released(
  record: ServiceRecord,
  reason: string,
  failure: string | undefined,
  since: string,
): ServiceRecord {
  const slot = { ...vacantSlot(failure ?? reason, since), move_to: record.slot.move_to };
  return { ...record, slot: failure === undefined ? slot : { ...slot, state: "failed" } };
}
