/** Fencing by reservation: the keys that follow from the record, and what counts as a fence (F8). */
import { describe, expect, it } from "vitest";
import type { ServiceSpec } from "../../src/broker/broker.js";
import { ownIdentity, type ProcessIdentity } from "../../src/broker/process_identity.js";
import { decodeRecord, encodeRecord, newRecord, type ServiceRecord } from "../../src/broker/record.js";
import { reservationKey, reservationOf } from "../../src/broker/reservation.js";
import { specProblem } from "../../src/broker/spec_rules.js";
import { claimed, fencingBegun, fencingEnded, renewed, specConflict } from "../../src/broker/transitions.js";
import { OTHER_UUID, spec, UUID } from "../support/broker-backend.js";

const SERVICE = "disk1";
const here: ProcessIdentity = { ...ownIdentity(), host: "here", machine: "m1" };
const there: ProcessIdentity = { host: "there", machine: "m2", boot_id: "b", pid: 1, start_time: "1" };
const fencing = { id: "attempt", host: "here" };
const MAX_KEY = 2n ** 64n;
const AT = "2026-11-23T00:00:00.000Z";

const reserved = (policy: "scsi-pr" | "nvme-resv" = "scsi-pr"): ServiceSpec =>
  spec(SERVICE, { storeClass: "shared-block", fencing: { policy } });

function heldBy(
  holder: ProcessIdentity,
  declared = reserved(),
  record = newRecord(declared, AT),
): ServiceRecord {
  const options = { instance: "old", storeEpoch: 0n, volumeUuid: UUID, purpose: "serve" as const };
  return claimed(SERVICE, { record, life: "gone", at: AT }, options, holder, { grantMs: 4000 });
}

describe("a key", () => {
  it("follows from the volume and the host alone, and is never 0", () => {
    const key = reservationKey(UUID, there);
    expect(key).toBe(reservationKey(UUID, { host: "there", machine: "m2" }));
    expect(key > 0n && key < MAX_KEY).toBe(true);
    // As it was in the first version that had it: hosts of one cluster may run several.
    expect(reservationKey(UUID, { host: "alpha", machine: "" }).toString(16)).toBe("a6135d40d7f309c8");
  });

  it("differs between volumes, hosts, and machines of one name", () => {
    const keys = [
      reservationKey(UUID, there),
      reservationKey(OTHER_UUID, there),
      reservationKey(UUID, { host: "there", machine: "m1" }),
      reservationKey(UUID, { host: "other", machine: "m2" }),
      reservationKey(UUID, { host: "therem", machine: "2" }),
    ];
    expect(new Set(keys).size).toBe(keys.length);
  });
});

describe("the hosts that may be registered", () => {
  it("are those that have claimed, and stay when the term ends", () => {
    const record = heldBy(here, reserved("nvme-resv"), heldBy(there));
    expect(record.registrants.map(({ host }) => host)).toEqual(["there", "here"]);
    expect(heldBy(here, reserved(), record).registrants).toHaveLength(2);
    expect(reservationOf(record, here)).toEqual({
      key: reservationKey(UUID, here),
      others: [reservationKey(UUID, there)],
    });
  });

  it("are nobody's where the service is not fenced so", () => {
    const record = heldBy(there, spec(SERVICE));
    expect(record.registrants).toEqual([]);
    expect(reservationOf(record, there)).toBeUndefined();
  });

  it("stand in the record as it is stored, and an older record has none", () => {
    const envelope = { revision: 1, token: "t", previous: "" };
    const record = heldBy(there);
    expect(decodeRecord(encodeRecord(envelope, record), "file").record).toEqual(record);
    const { registrants: _, ...older } = record;
    const text = encodeRecord(envelope, older as ServiceRecord);
    expect(decodeRecord(text, "file").record.registrants).toEqual([]);
  });
});

describe("a fence by reservation", () => {
  const begun = () =>
    fencingBegun({ record: heldBy(there), life: "silent", at: AT }, "old", fencing, here) as ServiceRecord;

  it("has its own host among those that may be registered before it begins", () => {
    expect(reservationOf(begun(), there)?.others).toEqual([reservationKey(UUID, here)]);
  });

  it("frees the slot of a holder that has been silent since", () => {
    expect(fencingEnded({ record: begun(), at: AT }, begun(), undefined)?.slot).toMatchObject({
      state: "vacant",
      reason: "there was fenced by here",
    });
  });

  it("frees nothing if it failed, or if the holder has given a sign meanwhile (TR5)", () => {
    const awake = renewed(begun(), 7);
    for (const [record, failure, why] of [
      [begun(), "/dev/sda is in use", "/dev/sda is in use"],
      [awake, undefined, "it has given a sign again meanwhile"],
    ] as const)
      expect(fencingEnded({ record, at: AT }, begun(), failure)?.slot).toMatchObject({
        state: "claimed",
        holder: there,
        fencing: null,
        reason: `there is not fenced: ${why}`,
      });
    expect(fencingEnded({ record: heldBy(here), at: AT }, begun(), undefined)).toBeUndefined();
  });
});

describe("a declaration", () => {
  it("of either name is taken between hosts, and on block devices only", () => {
    for (const policy of ["scsi-pr", "nvme-resv"] as const) {
      expect(specProblem(reserved(policy), "here", "cluster")).toBeUndefined();
      expect(specProblem(reserved(policy), "here", "host")).toContain("local: knows this host only");
      const nfs = spec(SERVICE, { storeClass: "nfs4", fencing: { policy } });
      expect(specProblem(nfs, "here", "cluster")).toContain("NFS server");
    }
    const open = spec(SERVICE, { storeClass: "shared-block", fencing: { policy: "none" } });
    expect(specProblem(open, "here", "cluster")).toContain(
      "declare --fence scsi-pr, nvme-resv or command=CMD",
    );
  });

  it("keeps its reservations while it is served", () => {
    const command = spec(SERVICE, {
      storeClass: "shared-block",
      fencing: { policy: "command", command: "true" },
    });
    const found = { record: heldBy(there), life: "alive" as const, at: AT };
    expect(specConflict(found, command)?.code).toBe("BUSY");
    expect(specConflict(found, reserved("nvme-resv"))).toBeUndefined();
    expect(specConflict({ record: heldBy(there, command), life: "alive", at: AT }, reserved())?.code).toBe(
      "BUSY",
    );
  });
});
