// Cuts the host of a silent holder off, so that its slot becomes free (F8).
//
// AR6 A silent holder's host is fenced by one agent at a time; the next tries when that one has been
//     silent for as long as a fence may take. Only a confirmed fence frees the slot (F8).
import { type AgentDuty, mayFence } from "./agent_duty.js";
import { fenceLimitMs } from "./fence.js";
import type { ServiceRecord } from "./record.js";
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
    const fencing = { id, host };
    const record = await broker.change<ServiceRecord | undefined>(service, (found) => {
      tell(found);
      if (ending.aborted || !mayFence(found, host)) return { value: undefined };
      const begun = fencingBegun(found, seen, fencing);
      return begun ? { record: begun, value: begun } : { value: undefined };
    });
    const { holder } = record?.slot ?? {};
    if (!record || !holder || record.spec?.fencing.command === undefined) return;
    const target = { service, host: holder.host, bootId: holder.boot_id, epoch: record.epoch };
    const { command, policy } = record.spec.fencing;
    const failure = await broker.runFence(command, target);
    agent.fenced?.(service, policy, failure === undefined);
    if (failure !== undefined) this.againMs = broker.runtime.monotonicMs() + fenceRetryMs;
    await broker.change(service, (found) => {
      const ended = fencingEnded(found, fencing, failure);
      return ended ? { record: ended, value: undefined } : { value: undefined };
    });
  }
}
