// What a look at a service's record means to those who ask: the state of a request, the view of an
// administrator. Pure; used by the local backend.
//
// SI1 An address is told only while its holder lives (LB2).
import type { ServiceView } from "./broker.js";
import type { Sight } from "./service_feed.js";
import type { TicketState } from "./ticket.js";

export function stateOf(
  service: string,
  { found, holder: life, agents }: Sight,
  wallMs: number,
): TicketState {
  if (!found?.record.spec) return { type: "pending", reason: "undefined" };
  const { slot, epoch, admin, spec } = found.record;
  const isHeld = slot.holder !== null && life === "alive";
  if (isHeld && slot.state === "published" && slot.address && slot.holder) {
    const { instance, holder, address } = slot;
    return { type: "address", epoch, instance, host: holder.host, ...address };
  }
  if (slot.state === "failed") {
    const detail = `${service} stopped after an error: ${slot.reason}: \`csnap check ${service}\` says what is left`;
    return { type: "failed", code: "SERVICE_FAILED", detail, final: false };
  }
  if (admin === "disabled") return { type: "pending", reason: "disabled" };
  if (isHeld && slot.purpose === "serve") return { type: "pending", reason: "starting" };
  if (spec.instances.min === 0 || agents.length === 0) return { type: "pending", reason: "no-agent" };
  const isWaiting = slot.retry_at !== null && Date.parse(slot.retry_at) > wallMs;
  return { type: "pending", reason: isWaiting ? "backoff" : "starting" };
}

/** Of an address that was told before this sight. */
export function whyNotValid({ found, holder: life }: Sight): string {
  if (!found?.record.spec) return "the service is not declared any more";
  const { slot } = found.record;
  if (slot.holder && life === "silent") return `nothing is heard of it on ${slot.holder.host}`;
  if (slot.holder && life === "gone") return `its process ${slot.holder.pid} is gone`;
  return slot.reason;
}

/** The record must have a spec. */
export function viewOf({ found, holder: life, agents }: Omit<Sight, "at">): ServiceView | undefined {
  const spec = found?.record.spec;
  if (!found || !spec) return undefined;
  const { slot, epoch, admin } = found.record;
  const { holder } = slot;
  return {
    service: spec.service,
    spec,
    adminState: admin,
    state: slot.state,
    epoch,
    instance: slot.instance === "" ? undefined : slot.instance,
    holder: holder
      ? {
          host: holder.host,
          machine: holder.machine,
          bootId: holder.boot_id,
          pid: holder.pid,
          startTime: holder.start_time,
          alive: life === "alive",
          silent: life === "silent",
        }
      : undefined,
    address: slot.address ?? undefined,
    since: slot.since,
    reason: slot.reason,
    suspect: slot.suspect ?? undefined,
    agents,
    revision: String(found.revision),
  };
}
