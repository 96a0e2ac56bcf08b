// Keeps a service's server running through a registered agent: sees how the service stands, and
// decides which of the agent's jobs is due. One for each registerAgent(). The jobs, with their rules:
// agent_presence.ts, order_delay.ts, ordered_server.ts, holder_fence.ts, server_care.ts.
import { messageOf } from "../volume/errors.js";
import { type AgentDuty, mayFence, mayOrder, mayRun } from "./agent_duty.js";
import { AgentPresence } from "./agent_presence.js";
import type { AgentRegistration, InstanceAgent } from "./broker.js";
import { HolderFence } from "./holder_fence.js";
import { OrderDelay } from "./order_delay.js";
import { OrderedServer } from "./ordered_server.js";
import type { RecordBroker } from "./record_broker.js";
import type { Timer } from "./runtime.js";
import { ServerCare } from "./server_care.js";
import type { Sight } from "./service_feed.js";
import type { TicketState } from "./ticket.js";
import type { Found } from "./transitions.js";

export class AgentRunner {
  private readonly presence: AgentPresence;
  private readonly delay: OrderDelay;
  private readonly server: OrderedServer;
  private readonly fence: HolderFence;
  private readonly care: ServerCare;
  private readonly ending = new AbortController();
  private latest: Found | undefined;
  private running: Promise<void> | undefined;
  private retry: Timer | undefined;
  private finishing: Promise<void> | undefined;
  private work: Promise<unknown> = Promise.resolve();

  constructor(
    private readonly broker: RecordBroker,
    private readonly registration: AgentRegistration,
    private readonly agent: InstanceAgent,
    private readonly tell: (state: TicketState) => void,
  ) {
    const duty: AgentDuty = {
      id: broker.runtime.uniqueId(),
      registration,
      broker,
      agent,
      ending: this.ending.signal,
      latest: () => this.latest,
      found: (found) => {
        this.latest = found;
      },
    };
    this.presence = new AgentPresence(duty);
    this.care = new ServerCare(duty);
    this.delay = new OrderDelay(registration.host, broker.runtime);
    this.fence = new HolderFence(duty);
    this.server = new OrderedServer(duty, this.care);
  }

  seen({ found, holder, fencingMs, at }: Sight): void {
    if (this.ending.signal.aborted) return;
    const record = found?.record;
    if (!this.presence.isIn(record)) {
      this.follow(this.presence.register());
      return;
    }
    if (!record.spec) {
      this.tell({ type: "pending", reason: "undefined" });
      return;
    }
    this.tell({ type: "registered", host: this.registration.host });
    this.latest = { record, life: holder, fencingMs, at };
    if (mayRun(record, this.registration.host)) this.agent.prepare?.(this.registration.service);
    this.considerStart();
    const probe = this.care.consider(record);
    if (probe) this.follow(probe);
  }

  /** The registration is withdrawn; a server that runs goes on. */
  finished(): Promise<void> {
    this.finishing ??= this.finish();
    return this.finishing;
  }

  private async finish(): Promise<void> {
    this.ending.abort();
    this.retry?.cancel();
    await this.work.catch(() => {});
    await this.presence.withdraw();
  }

  /** Its failure is told on the ticket; the feed's next look tries again. */
  private follow(work: Promise<unknown>): void {
    this.work = work.catch((error: unknown) =>
      this.tell({ type: "failed", code: "BROKER", detail: messageOf(error), final: false }),
    );
  }

  /** By what was seen last; the jobs decide by what is there. */
  private considerStart(): void {
    const { latest } = this;
    const { host } = this.registration;
    if (this.running || this.ending.signal.aborted || !latest?.record) return;
    const fences = mayFence(latest, host);
    if (!fences && !mayOrder(latest, host)) return;
    const waitMs = fences ? this.fence.waitMs(latest) : this.delay.leftMs(latest.record.slot);
    this.retry?.cancel();
    if (waitMs > 0) {
      this.retry = this.broker.runtime.after(waitMs, () => this.considerStart());
      return;
    }
    const job = fences ? this.fence.fenceHolder(latest.record.slot.instance) : this.server.run();
    this.running = job.finally(() => {
      this.running = undefined;
      // What was seen meanwhile was not acted on.
      this.broker.runtime.soon(() => this.considerStart());
    });
    this.follow(this.running);
  }
}
