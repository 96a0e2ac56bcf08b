// Whether those who stand in a service's record still live. Two ways: by the kernel, where all are
// processes of one host; by silence, where they are not. Used by the feed and by every change.
//
// LI1 "gone" is said of what can't come back: a process that the kernel of this very boot does not
//     know any more, or one of a former boot of this machine, known by its machine id and its name.
// LI2 "silent" is said of another host's holder whose sign has stood still for W since this process
//     first saw it (lease.ts). That ends its right to act, not what its devices still carry out: who
//     takes over needs a fence besides (F8).
// LI3 Presence of agents is no matter of safety: one that has not been heard of for agentSilenceMs
//     is left out.
import { type BoottimeClock, boottimeMs } from "./clock.js";
import { Silence, silenceMs } from "./lease.js";
import { type IsAlive, isAlive, isOfThisHost, type ProcessIdentity } from "./process_identity.js";
import type { Fencing, RegisteredAgent, ServiceRecord, Slot } from "./record.js";

export type Life = "alive" | "gone" | "silent";

/** How the holder stands, and when to look again if nothing is heard until then. */
export interface HolderLife {
  readonly life: Life;
  readonly lookAgainMs?: number;
  /** of a silent one that is being fenced: for how long it has been the same attempt */
  readonly fencingMs?: number;
}

export interface Liveness {
  /** @param record just read; call at once after the answer */
  holder(service: string, record: ServiceRecord): Promise<HolderLife>;
  agent(service: string, agent: RegisteredAgent): Promise<boolean>;
}

export const agentBeatMs = 10_000;
const agentSilenceMs = 3 * agentBeatMs;

/** All who call are processes of this host. */
export class KernelLiveness implements Liveness {
  async holder(_service: string, { slot }: ServiceRecord): Promise<HolderLife> {
    return { life: slot.holder !== null && (await isAlive(slot.holder)) ? "alive" : "gone" };
  }

  agent(_service: string, { process }: RegisteredAgent): Promise<boolean> {
    return isAlive(process);
  }
}

/** Processes of this host by its kernel, others by what is heard of them. */
export class SilenceLiveness implements Liveness {
  private readonly holders = new Map<string, Silence>();
  private readonly fencings = new Map<string, Silence>();
  private readonly agents = new Map<string, Silence>();

  constructor(
    private readonly self: ProcessIdentity,
    private readonly clock: BoottimeClock = boottimeMs,
    private readonly isProcessAlive: IsAlive = isAlive,
  ) {}

  async holder(service: string, { slot, epoch }: ServiceRecord): Promise<HolderLife> {
    const now = this.clock();
    const heard = entry(this.holders, service).saw(signOf(slot, epoch), now);
    const { holder, beat } = slot;
    if (holder === null) return { life: "gone" };
    if (isOfThisHost(holder, this.self))
      return { life: (await this.isProcessAlive(holder)) ? "alive" : "gone" };
    // One without a lease never ends by itself.
    if (!beat) return { life: "alive" };
    const waitMs = silenceMs(beat.grant_ms);
    if (heard < waitMs) return { life: "alive", lookAgainMs: waitMs - heard };
    return { life: "silent", fencingMs: this.fencingMs(service, slot.fencing, now) };
  }

  private fencingMs(service: string, fencing: Fencing | null, now: number): number {
    return fencing === null ? 0 : entry(this.fencings, service).saw(fencing.id, now);
  }

  async agent(service: string, { id, process, beat }: RegisteredAgent): Promise<boolean> {
    if (isOfThisHost(process, this.self)) return this.isProcessAlive(process);
    return entry(this.agents, `${service} ${id}`).saw(String(beat), this.clock()) < agentSilenceMs;
  }
}

function signOf({ instance, beat }: Slot, epoch: bigint): string {
  return `${epoch} ${instance} ${beat?.seq}`;
}

function entry(all: Map<string, Silence>, key: string): Silence {
  let found = all.get(key);
  if (!found) {
    found = new Silence();
    all.set(key, found);
  }
  return found;
}
