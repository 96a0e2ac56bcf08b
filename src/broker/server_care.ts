// An agent's care for the server that runs on its host: a suspicion is looked into, and a server that
// answers nothing is stopped.
//
// AR5 Only the agent of the holder's own host probes and stops a server: what another host can't reach
//     may well be alive.
import type { AgentDuty } from "./agent_duty.js";
import type { StartOrder } from "./broker.js";
import { isOfThisHost } from "./process_identity.js";
import { type ServiceRecord, vacantSlot } from "./record.js";

const stopGraceMs = 30_000;
/** For one that answers no probe: it would not drain either. */
const hungGraceMs = 2_000;

export class ServerCare {
  private probing = false;

  constructor(private readonly duty: AgentDuty) {}

  /** AR5. Undefined: there is nothing to look into. */
  consider({ slot, epoch }: ServiceRecord): Promise<void> | undefined {
    if (this.probing || slot.suspect === null || slot.state !== "published") return undefined;
    if (!slot.holder || !isOfThisHost(slot.holder, this.duty.broker.self)) return undefined;
    this.probing = true;
    const order = { service: this.duty.registration.service, instance: slot.instance, epoch };
    return this.probe(order, slot.suspect).finally(() => {
      this.probing = false;
    });
  }

  private async probe(order: StartOrder, suspicion: string): Promise<void> {
    const { agent, broker } = this.duty;
    if (!(await agent.probe(order).catch(() => false))) return this.stop(order, suspicion, hungGraceMs);
    await broker.change(order.service, ({ record }) => {
      if (record?.slot.instance !== order.instance || record.slot.suspect === null)
        return { value: undefined };
      return { record: { ...record, slot: { ...record.slot, suspect: null } }, value: undefined };
    });
  }

  /** A process that can't be stopped keeps its slot: nothing else is started on hope. */
  async stop(order: StartOrder, why: string, graceMs = stopGraceMs): Promise<void> {
    const { agent, broker } = this.duty;
    const outcome = await agent.stop(order, graceMs).catch(() => "unknown" as const);
    await broker.change(order.service, ({ record, at }) => {
      if (record?.slot.instance !== order.instance) return { value: undefined };
      const slot =
        outcome === "unknown"
          ? { ...record.slot, reason: `${why}; its process does not end, so no other can be started` }
          : vacantSlot(why, at);
      return { record: { ...record, slot }, value: undefined };
    });
  }
}
