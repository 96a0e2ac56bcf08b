// Cuts the host of a silent holder off, so that its slot becomes free (F8).
//
// AR6 A silent holder's host is fenced by one agent at a time; the next tries when that one has been
//     silent for as long as a fence may take. Only a confirmed fence frees the slot (F8). A device may
//     take longer to answer; two that reserve at once do no harm (native/io/reservation.h RV4).
import { messageOf } from "../volume/errors.js";
import { type AgentDuty, mayFence } from "./agent_duty.js";
import { fenceLimitMs } from "./fence.js";
import type { ServiceRecord } from "./record.js";
import { reservationOf } from "./reservation.js";
import { type Found, fencingBegun, fencingEnded } from "./transitions.js";

const fenceRetryMs = 5_000;

export class HolderFence {
  /** monotonicMs() before which a fence that failed is not tried again */
  private againMs = 0;

  constructor(private readonly duty: AgentDuty) {}

  /** ms; 0 or less: this agent may fence now. AR6. */
  waitMs({ record, fencingMs = 0 }: Found): number {
    const { id, broker } = this.duty;
    const fencing = record?.slot.fencing ?? null;
    const isOther = fencing !== null && fencing.id !== id;
    const othersMs = isOther ? fenceLimitMs + fenceRetryMs - fencingMs : 0;
    return Math.max(othersMs, this.againMs - broker.runtime.monotonicMs());
  }

  /** AR6. @param seen instance of the silent holder */
  async fenceHolder(seen: string): Promise<void> {
    const { id, broker, agent, ending, registration, found: tell } = this.duty;
    const { service, host } = registration;
    const record = await broker.change<ServiceRecord | undefined>(service, (found) => {
      tell(found);
      if (ending.aborted || !mayFence(found, host) || this.waitMs(found) > 0) return { value: undefined };
      const begun = fencingBegun(found, seen, { id, host }, broker.self);
      return begun ? { record: begun, value: begun } : { value: undefined };
    });
    if (!record?.spec) return;
    const failure = await this.fenceBy(record);
    agent.fenced?.(service, record.spec.fencing.policy, failure === undefined);
    if (failure !== undefined) this.againMs = broker.runtime.monotonicMs() + fenceRetryMs;
    await broker.change(service, (found) => {
      const ended = fencingEnded(found, record, failure);
      return ended ? { record: ended, value: undefined } : { value: undefined };
    });
  }

  /** By the declared way. Undefined: confirmed. Else why not, in one line. */
  private async fenceBy(record: ServiceRecord): Promise<string | undefined> {
    const { broker, agent, registration } = this.duty;
    const { service } = registration;
    const { command } = record.spec?.fencing ?? {};
    const { holder } = record.slot;
    if (!holder) return "nobody holds it";
    if (command !== undefined)
      return broker.runFence(command, {
        service,
        host: holder.host,
        bootId: holder.boot_id,
        epoch: record.epoch,
      });
    const reservation = reservationOf(record, broker.self);
    if (!reservation) return "no fence is declared";
    return agent.fence(service, reservation).then(() => undefined, messageOf);
  }
}
