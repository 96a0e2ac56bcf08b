// An agent's entry among those that offer to run a service: made, kept fresh, and taken out.
//
// AR9 Presence is no matter of safety: what can't be written now is written at the next look or beat.
import type { AgentDuty } from "./agent_duty.js";
import { agentBeatMs } from "./liveness.js";
import { newRecord, type RegisteredAgent, type ServiceRecord } from "./record.js";
import type { Timer } from "./runtime.js";

export class AgentPresence {
  private beating: Timer | undefined;

  constructor(private readonly duty: AgentDuty) {}

  isIn(record: ServiceRecord | undefined): record is ServiceRecord {
    return record?.agents.some(({ id }) => id === this.duty.id) === true;
  }

  /** Rejects where the record can't be written. */
  register(): Promise<void> {
    const { id, broker, ending, registration } = this.duty;
    const { host, service } = registration;
    if (broker.leases) this.beating ??= broker.runtime.every(agentBeatMs, () => this.beat());
    const entry: RegisteredAgent = { id, host, process: broker.self, beat: 0 };
    return broker.change(service, ({ record: found, at }) => {
      if (ending.aborted || this.isIn(found)) return { value: undefined };
      const record = found ?? newRecord(null, at);
      return { record: { ...record, agents: [...record.agents, entry] }, value: undefined };
    });
  }

  /** Never rejects. */
  async withdraw(): Promise<void> {
    this.beating?.cancel();
    await this.changeOwn(() => []);
  }

  /** LI3 */
  private beat(): void {
    void this.changeOwn((entry) => [{ ...entry, beat: entry.beat + 1 }]);
  }

  /** AR9 */
  private changeOwn(edit: (entry: RegisteredAgent) => RegisteredAgent[]): Promise<void> {
    const { id, broker, registration } = this.duty;
    return broker
      .change(registration.service, ({ record }) => {
        if (!this.isIn(record)) return { value: undefined };
        const agents = record.agents.flatMap((entry) => (entry.id === id ? edit(entry) : [entry]));
        return { record: { ...record, agents }, value: undefined };
      })
      .catch(() => {});
  }
}
