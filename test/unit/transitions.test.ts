/** Who may take a slot over, and what a claim writes: between hosts, where a holder is known by its signs only. */
import { describe, expect, it } from "vitest";
import type { ClaimOptions } from "../../src/broker/broker.js";
import { silenceMs } from "../../src/broker/lease.js";
import { type Life, SilenceLiveness } from "../../src/broker/liveness.js";
import { ownIdentity, type ProcessIdentity } from "../../src/broker/process_identity.js";
import { newRecord, type ServiceRecord, vacantSlot } from "../../src/broker/record.js";
import {
  adoptedEpoch,
  behindStore,
  claimed,
  fenceConfirmed,
  renewed,
  specConflict,
} from "../../src/broker/transitions.js";
import { spec, UUID } from "../support/broker-backend.js";

const SERVICE = "disk1";
const TERMS = { grantMs: 4000 };
const AT = "2026-01-01T00:00:00.000Z";
const here: ProcessIdentity = { ...ownIdentity(), host: "here" };
/** Its number says nothing on this kernel. */
const there: ProcessIdentity = { host: "there", machine: "m", boot_id: "another", pid: 1, start_time: "1" };

const options = (changes: Partial<ClaimOptions> = {}): ClaimOptions => ({
  instance: "new",
  storeEpoch: 0n,
  volumeUuid: UUID,
  purpose: "serve",
  ...changes,
});

function heldBy(holder: ProcessIdentity, instance = "old"): ServiceRecord {
  const found = { record: newRecord(spec(SERVICE), AT), life: "gone" as const, at: AT };
  return claimed(SERVICE, found, options({ instance }), holder, TERMS);
}

const claim = (record: ServiceRecord, life: Life, changes: Partial<ClaimOptions> = {}) =>
  claimed(SERVICE, { record, life, at: AT }, options(changes), here, TERMS);

describe("a slot", () => {
  it("of a holder that is gone is taken with the next epoch and a first sign", () => {
    const next = claim(heldBy(here), "gone");
    expect(next.epoch).toBe(2n);
    expect(next.slot).toMatchObject({ instance: "new", holder: here, beat: { seq: 1, grant_ms: 4000 } });
  });

  it("of a holder that is only silent is not: it may still write", () => {
    const record = heldBy(there);
    expect(() => claim(record, "silent")).toThrow(
      /^disk1: nothing is heard of there, which has epoch 1 and may still write: .*fence-confirm disk1 --epoch 1`/,
    );
    const confirmed = fenceConfirmed(SERVICE, { record, life: "silent", at: AT }, 1n, "root on here");
    expect(confirmed.slot.reason).toBe("root on here confirmed that there can't write any more");
    expect(claim(confirmed, "gone").epoch).toBe(2n);
  });

  it("that another term has by now is not freed by a word about the former one", () => {
    const found = { record: { ...heldBy(there), epoch: 2n }, life: "silent" as const, at: AT };
    expect(() => fenceConfirmed(SERVICE, found, 1n, "root")).toThrow(
      /^disk1: nothing to confirm for epoch 1: there has epoch 2 by now: .*explain disk1/,
    );
  });

  it("of one that is alive or gone has nothing to confirm", () => {
    for (const life of ["alive", "gone"] as const)
      expect(() => fenceConfirmed(SERVICE, { record: heldBy(there), life, at: AT }, 1n, "root")).toThrow(
        /nothing to confirm/,
      );
  });

  it("that an agent has ordered is taken over in the same term, and no number comes twice in it", () => {
    const ordered = heldBy(here);
    const renewedOnce = renewed({ ...ordered, slot: { ...ordered.slot, ordered: true } }, 7);
    const taken = claim(renewedOnce, "alive", { instance: "old" });
    expect(taken.epoch).toBe(ordered.epoch);
    expect(taken.slot.beat?.seq).toBe(8);
  });

  it("is not for a server whose order was withdrawn, even if nobody has it", () => {
    const vacant = { ...heldBy(here), slot: vacantSlot("", AT) };
    expect(() => claim(vacant, "gone", { instance: "old", ordered: true })).toThrow(
      /^disk1: the agent's order was withdrawn before this server took it over/,
    );
    expect(claim(vacant, "gone", { instance: "old" }).epoch).toBe(2n);
    // Its own claim, whose answer was lost, is found again.
    const own = { ...heldBy(here) };
    expect(claim(own, "alive", { instance: "old", ordered: true }).slot.instance).toBe("old");
  });

  it("in a cluster names the host that has it", () => {
    expect(() => claim(heldBy(there), "alive")).toThrow(/in use by process \d+ of there, which serves it/);
  });
});

describe("a broker that is behind the store", () => {
  const shared = (record: ServiceRecord): ServiceRecord => ({
    ...record,
    spec: spec(SERVICE, { storeClass: "shared-block", fencing: { policy: "command", command: "true" } }),
  });

  it("is not believed, and an agent's next order does not wear that down", () => {
    const ordered = heldBy(here);
    const record = shared({ ...ordered, slot: { ...ordered.slot, ordered: true } });
    const refused = behindStore(SERVICE, { record, at: AT }, options({ instance: "old", storeEpoch: 9n }));
    expect(refused?.error.message).toMatch(/served with epoch 9, .* knows of 0 only: .*enable --adopt-epoch/);
    expect(refused?.record).toMatchObject({ epoch: 1n, slot: { state: "failed", holder: null } });
    // One behind is behind: an order counts itself.
    const judged = (storeEpoch: bigint) =>
      behindStore(SERVICE, { record, at: AT }, options({ instance: "old", storeEpoch }));
    expect(judged(1n)?.error.code).toBe("FENCED");
    expect(judged(0n)).toBeUndefined();
    // By hand there is nothing to stop.
    expect(
      behindStore(SERVICE, { record: shared(newRecord(null, AT)), at: AT }, options({ storeEpoch: 9n }))
        ?.record,
    ).toBeUndefined();
    const adopted = adoptedEpoch(refused?.record ?? record, 9n, AT);
    expect(adopted).toMatchObject({ epoch: 9n, slot: { state: "vacant" } });
    expect(behindStore(SERVICE, { record: adopted, at: AT }, options({ storeEpoch: 9n }))).toBeUndefined();
  });

  it("is believed where no other host reaches the store: its lock decides", () => {
    expect(
      behindStore(SERVICE, { record: heldBy(here), at: AT }, options({ storeEpoch: 9n })),
    ).toBeUndefined();
  });
});

describe("a declaration", () => {
  it("can't say that other hosts reach a store which is being served as if they did not", () => {
    const record = heldBy(here);
    const shared = { ...spec(SERVICE), storeClass: "shared-block" as const };
    expect(specConflict({ record, life: "alive", at: AT }, shared)?.code).toBe("BUSY");
    expect(specConflict({ record, life: "silent", at: AT }, shared)?.code).toBe("BUSY");
    expect(specConflict({ record, life: "gone", at: AT }, shared)).toBeUndefined();
    const other = spec(SERVICE, { instances: { max: 1, min: 1 }, hosts: ["here"] });
    expect(specConflict({ record, life: "alive", at: AT }, other)).toBeUndefined();
  });
});

describe("another host's holder", () => {
  let now = 0;
  const liveness = () => new SilenceLiveness(here, () => now);

  it("is silent when its sign has stood still for W since it was first seen, not before", async () => {
    const look = liveness();
    const record = heldBy(there);
    const waitMs = silenceMs(TERMS.grantMs);
    now = 1_000_000;
    expect(await look.holder(SERVICE, record)).toEqual({ life: "alive", lookAgainMs: waitMs });
    now += waitMs - 1;
    expect((await look.holder(SERVICE, record)).life).toBe("alive");
    now += 1;
    expect((await look.holder(SERVICE, record)).life).toBe("silent");
    // A sign is a sign, however late.
    expect((await look.holder(SERVICE, renewed(record, 2))).life).toBe("alive");
    now += waitMs;
    expect((await look.holder(SERVICE, renewed(record, 2))).life).toBe("silent");
  });

  it("that claims anew is alive from then on, be its number the same", async () => {
    const look = liveness();
    const record = heldBy(there);
    await look.holder(SERVICE, record);
    now += silenceMs(TERMS.grantMs);
    const again = claimed(
      SERVICE,
      { record, life: "gone", at: AT },
      options({ instance: "again" }),
      there,
      TERMS,
    );
    expect(again.slot.beat?.seq).toBe(record.slot.beat?.seq);
    expect((await look.holder(SERVICE, again)).life).toBe("alive");
  });

  it("on this host is asked of the kernel, whatever its signs", async () => {
    const look = liveness();
    const record = heldBy(here);
    await look.holder(SERVICE, record);
    now += 10 * silenceMs(TERMS.grantMs);
    expect((await look.holder(SERVICE, record)).life).toBe("alive");
    const dead = heldBy({ ...here, start_time: "1" });
    expect((await look.holder(SERVICE, dead)).life).toBe("gone");
    // Of a former boot of this machine.
    expect((await look.holder(SERVICE, heldBy({ ...here, boot_id: "former" }))).life).toBe("gone");
  });

  it("of this host's name on another machine is another host's", async () => {
    const look = liveness();
    const clone = heldBy({ ...here, boot_id: "other", machine: "other" });
    expect((await look.holder(SERVICE, clone)).life).toBe("alive");
    now += silenceMs(TERMS.grantMs);
    expect((await look.holder(SERVICE, clone)).life).toBe("silent");
  });
});
