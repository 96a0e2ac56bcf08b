// Fencing by persistent reservations (F8): which services are fenced so, and under which keys hosts
// are registered at the devices. What is done with the keys, and why that is enough, is in
// native/io/reservation.h (RV1-RV5).
//
// PR1 A key is a host's for one volume, and follows from names that the broker's record holds: who
//     fences need not ask the host that is silent. It is not a term's: a device knows hosts only, so
//     the keys of terms that crashed before they registered would have to be kept for ever.
// PR2 A host stands in the record before it registers, and stays there: one that is registered and
//     that nobody knows could not be preempted. That the list only grows costs a command for each
//     host that ever served.
import { createHash } from "node:crypto";
import type { FencePolicy, Reservation } from "./broker.js";
import type { Registrant, ServiceRecord } from "./record.js";

/** Either name: the kernel's calls are the same for SCSI and NVMe, and its driver knows which it is. */
export function reservesDevices({ policy }: FencePolicy): boolean {
  return policy === "scsi-pr" || policy === "nvme-resv";
}

/** PR1. The first 64 bits of a SHA-256; 0 would mean "none" to a device. */
export function reservationKey(volumeUuid: string, { host, machine }: Registrant): bigint {
  const text = JSON.stringify(["csnap", volumeUuid, host, machine]);
  return createHash("sha256").update(text).digest().readBigUInt64BE() || 1n;
}

/** PR2: the record with this host among those that may be registered, where its service is fenced so. */
export function withRegistrant(record: ServiceRecord, { host, machine }: Registrant): ServiceRecord {
  if (!record.spec || !reservesDevices(record.spec.fencing)) return record;
  if (record.registrants.some((each) => each.host === host && each.machine === machine)) return record;
  return { ...record, registrants: [...record.registrants, { host, machine }] };
}

/** What this host takes the service's devices with; undefined: they are not reserved. */
export function reservationOf(
  { spec, registrants }: ServiceRecord,
  self: Registrant,
): Reservation | undefined {
  if (!spec || !reservesDevices(spec.fencing)) return undefined;
  const key = reservationKey(spec.volumeUuid, self);
  const others = registrants.map((each) => reservationKey(spec.volumeUuid, each));
  return { key, others: others.filter((other) => other !== key) };
}
