// The rules that a simulated world is held to, at each event, by what is true and not by what any
// process believes.
import type { StartOrder } from "../../../src/broker/broker.js";
import { defaultTiming } from "../../../src/broker/lease.js";
import type { Fencing, ServiceRecord } from "../../../src/broker/record.js";
import type { SimProcess, Universe } from "./machine.js";
import type { SimServer } from "./server.js";

const fenceLeftAloneMs = 54_000;

export class Rules {
  /** the first that was broken */
  violation: string | undefined;
  readonly servers = new Set<SimServer>();
  stamped: () => bigint = () => 0n;
  latest: () => ServiceRecord | undefined = () => undefined;
  takeovers = 0;
  acks = 0;
  /** BOOTTIME of a term's holder when its last renewal was stored, by epoch */
  private readonly renewedMs = new Map<bigint, number>();
  private readonly holders = new Map<bigint, string>();
  private readonly orders = new Set<string>();
  private readonly probed = new Set<string>();
  private lastHost = "";
  /** when the fence that the record tells of began */
  private fencingMs = 0;

  constructor(private readonly universe: Universe) {}

  broken(rule: string, what: string): void {
    if (this.violation !== undefined) return;
    this.violation = `${rule}: ${what}`;
    this.universe.trace(`VIOLATION ${this.violation}`);
  }

  must(condition: boolean, rule: string, what: () => string): void {
    if (!condition) this.broken(rule, what());
  }

  /** A change of the record is stored. */
  committed(before: ServiceRecord | undefined, after: ServiceRecord, by: SimProcess): void {
    const { slot, epoch } = after;
    this.must(epoch >= (before?.epoch ?? 0n), "F1", () => `the epoch fell from ${before?.epoch} to ${epoch}`);
    // Each term counts from 1: a claim right after another's has the same number.
    if (slot.beat && (slot.beat.seq !== before?.slot.beat?.seq || epoch !== before.epoch))
      this.renewedMs.set(epoch, by.host.boottimeMs());
    if (slot.state !== before?.slot.state || slot.instance !== before?.slot.instance)
      this.universe.trace(
        `record: ${slot.state} ${slot.instance} epoch ${epoch} by ${by.name} (${slot.reason})`,
      );
    this.fencing(before?.slot.fencing ?? null, slot.fencing, by);
    if (slot.holder !== null && (epoch !== before?.epoch || slot.instance !== before.slot.instance))
      this.claimed(before, after, by);
    if (slot.state === "published" && before?.slot.state !== "published")
      this.must(
        this.probed.has(`${slot.instance} ${epoch}`),
        "F4",
        () => `${by.name} published epoch ${epoch}, which no probe had found ready`,
      );
  }

  /** AR6: on clocks that run a fifth faster, 65 s are 54. */
  private fencing(before: Fencing | null, after: Fencing | null, by: SimProcess): void {
    if (after === null || after.id === before?.id) return;
    const { nowMs } = this.universe.time;
    const sinceMs = nowMs - this.fencingMs;
    this.must(
      before === null || sinceMs >= fenceLeftAloneMs,
      "AR6",
      () => `${by.name} fences ${sinceMs} ms after ${before?.host} began to`,
    );
    this.fencingMs = nowMs;
  }

  /** F4: a server answered its own probe; what it wants to publish may arrive when it is gone. */
  answered({ instance, epoch, isRecovered, stamped, process }: SimServer): void {
    this.must(
      isRecovered && stamped === 2 && this.stamped() === epoch,
      "F4",
      () => `${process.name} answers with ${epoch} before its stamp and recovery`,
    );
    this.probed.add(`${instance} ${epoch}`);
  }

  private claimed(before: ServiceRecord | undefined, { slot, epoch, admin }: ServiceRecord, by: SimProcess) {
    this.must(epoch === (before?.epoch ?? 0n) + 1n && epoch > this.stamped(), "F1", () => {
      return `${by.name} claimed ${epoch} after ${before?.epoch}, the store has ${this.stamped()}`;
    });
    this.must(admin !== "disabled", "F7", () => `${by.name} claimed ${epoch} of a disabled service`);
    if (slot.ordered) this.orders.add(`${slot.instance} ${epoch}`);
    // Every server here is an agent's; one whose claim was written and not answered claims once more.
    this.must(
      slot.ordered || before?.slot.instance === slot.instance,
      "F7",
      () => `${by.name} claimed ${epoch} without its order`,
    );
    const former = this.holders.get(epoch);
    this.must(former === undefined || former === slot.instance, "F1", () => `epoch ${epoch} came twice`);
    this.holders.set(epoch, slot.instance);
    for (const server of this.servers)
      this.must(!server.mayWrite, "F8", () => {
        return `${by.name} claimed ${epoch} while ${server.process.name} with ${server.epoch} may still write`;
      });
    if (this.lastHost !== "" && this.lastHost !== by.host.name) this.takeovers++;
    this.lastHost = by.host.name;
  }

  /** F7: an agent tells a spare to serve. */
  activated({ instance, epoch }: StartOrder, by: SimProcess): void {
    this.must(
      this.orders.has(`${instance} ${epoch}`),
      "F7",
      () => `${by.name} was started for epoch ${epoch}, which no claim had`,
    );
  }

  /** A write lands on the device. */
  landed(epoch: bigint, by: SimProcess): void {
    this.must(
      epoch >= this.stamped(),
      "F8",
      () => `a write of ${by.name} with ${epoch} landed after the first I/O of ${this.stamped()}`,
    );
  }

  /** A reply leaves a server. */
  acknowledged(server: SimServer): void {
    this.acks++;
    const record = this.latest();
    const { name } = server.process;
    this.must(
      record?.epoch === server.epoch && record?.slot.instance === server.instance,
      "F1",
      () => `${name} acknowledged with ${server.epoch}, and ${record?.epoch} is granted`,
    );
    this.must(
      this.stamped() === server.epoch && server.isRecovered && server.stamped === 2,
      "F3",
      () => `${name} acknowledged with ${server.epoch}, the store has ${this.stamped()}`,
    );
    this.inTime(server, "acknowledged");
  }

  /** A write is given to the device. */
  issued(server: SimServer): void {
    this.inTime(server, "issued a write");
  }

  /** The grant counts from before a renewal was sent, so it ends before this. */
  private inTime({ epoch, process }: SimServer, what: string): void {
    const sinceMs = process.host.boottimeMs() - (this.renewedMs.get(epoch) ?? Number.NEGATIVE_INFINITY);
    this.must(
      sinceMs < defaultTiming.grantMs,
      "F2",
      () => `${process.name} ${what} ${sinceMs.toFixed(0)} ms after its last renewal was stored`,
    );
  }
}
