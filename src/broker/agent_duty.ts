// What the jobs of one registered agent share (agent_runner.ts), and the rules for whether this host
// is to do anything.
//
// AR3 Nothing is started for a service that is disabled, failed (W9), held, declared with min 0, or not
//     for this host.
import type { AgentRegistration, InstanceAgent } from "./broker.js";
import type { ServiceRecord } from "./record.js";
import type { RecordBroker } from "./record_broker.js";
import { reservesDevices } from "./reservation.js";
import { type Found, isHeld } from "./transitions.js";

export interface AgentDuty {
  /** of this registration */
  readonly id: string;
  readonly registration: AgentRegistration;
  readonly broker: RecordBroker;
  readonly agent: InstanceAgent;
  /** The registration is being withdrawn: nothing new is begun. */
  readonly ending: AbortSignal;
  /** How the service stood at the last look. */
  readonly latest: () => Found | undefined;
  /** What a change found, which is newer than what was seen before. */
  readonly found: (found: Found) => void;
}

/** Whether this host is one that keeps the service running. */
export function mayRun({ spec, admin }: ServiceRecord, host: string): boolean {
  if (!spec || spec.instances.min === 0 || admin === "disabled") return false;
  return spec.hosts.length === 0 || spec.hosts.includes(host);
}

/** Nobody has it, and this host may. */
export function mayOrder(found: Found, host: string): boolean {
  const { record } = found;
  if (record === undefined || record.slot.state === "failed") return false;
  return mayRun(record, host) && !isHeld(found);
}

/** The holder is silent, and it can be cut off from here. */
export function mayFence({ record, life }: Found, host: string): boolean {
  if (life !== "silent" || !record?.spec || record.slot.purpose !== "serve") return false;
  const { fencing } = record.spec;
  const hasWay = fencing.policy === "command" || reservesDevices(fencing);
  return hasWay && record.slot.state !== "failed" && mayRun(record, host);
}
