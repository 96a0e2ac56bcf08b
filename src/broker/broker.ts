// The broker: who serves a volume, and where. One interface for all backends; `openBroker` chooses
// by URL. Called by `csnap serve` (claim, publish, withdraw), the agent (request, registerAgent),
// commands that open a store offline, and `csnap volume`.
//
// BR1 No call waits: tickets and promises are there at once, whatever the backend's storage or
//     network does; answers come as events.
// BR2 An epoch is granted at most once per service, and each is greater than all before, crashes and
//     forgotten services included (F1).
// BR3 An address comes with its epoch; after one of epoch e no ticket tells one of a smaller epoch
//     (F4).
// BR4 "Exactly one" stands in the ServiceSpec, which exists before any request. A request only
//     compares (SPEC_CONFLICT), and never starts a server (F7).
// BR5 The broker promises at most one valid epoch; what keeps a second writer off the store is the
//     store's lock and the epoch stamped into it.
import type { NativeErrorCode } from "../native.js";

/** Fencing number of one server term. Only grows; never reused. */
export type Epoch = bigint;

export type AdminState = "enabled" | "disabled";

export interface FencePolicy {
  readonly policy: "none" | "scsi-pr" | "nvme-resv" | "command";
  /** of policy 'command' */
  readonly command?: string;
  /** claim C3: writes of a former server may still land after a takeover */
  readonly acceptStaleWrites?: boolean;
}

/** The key of this host at the service's devices, and those of hosts that must be shut out (F8). */
export interface Reservation {
  readonly key: bigint;
  readonly others: readonly bigint[];
}

/** What is declared of a service before anybody asks for it. */
export interface ServiceSpec {
  /** the volume's name */
  readonly service: string;
  readonly kind: "csnap";
  /** `max` is 1 for kind csnap. `min` 1: a registered agent is told to keep one running. */
  readonly instances: { readonly max: number; readonly min: 0 | 1 };
  readonly volumeUuid: string;
  readonly storeClass: "local" | "shared-block" | "nfs4";
  readonly fencing: FencePolicy;
  /** hosts that may serve; empty: any that reaches the store */
  readonly hosts: readonly string[];
}

/** The spec of a volume that nobody has declared: served by hand, on this host. */
export function defaultSpec(service: string, volumeUuid: string): ServiceSpec {
  return {
    service,
    kind: "csnap",
    instances: { max: 1, min: 0 },
    volumeUuid,
    storeClass: "local",
    fencing: { policy: "none" },
    hosts: [],
  };
}

export interface Address {
  /** NBD URIs of the server's listeners, without an export name */
  readonly uris: readonly string[];
  /** the server's control socket; only of use on its host */
  readonly controlSocket?: string;
}

/** connected: as it should be. degraded: answers are late. unreachable: it answers with errors. */
export type BrokerState = "connected" | "degraded" | "unreachable";

export type PendingReason =
  /** the first look is under way */
  | "looking"
  /** the service is not declared */
  | "undefined"
  /** nobody serves it, and no agent is registered that could */
  | "no-agent"
  /** a server has claimed it and recovers, or an agent is being told */
  | "starting"
  /** an agent failed to start it and waits before the next try */
  | "backoff"
  /** an administrator has disabled it */
  | "disabled";

export type FailureCode =
  /** the request or definition contradicts what is declared */
  | "SPEC_CONFLICT"
  /** the spec is not one that this backend can hold to */
  | "DENIED"
  /** no address before the request's deadline */
  | "DEADLINE"
  /** the service's server stopped after an error (W9); no agent starts it again */
  | "SERVICE_FAILED"
  /** a record of the backend is damaged or can't be read */
  | "BROKER";

export type BrokerEvent =
  | { readonly type: "pending"; readonly reason: PendingReason }
  | ({
      readonly type: "address";
      readonly epoch: Epoch;
      readonly instance: string;
      readonly host: string;
    } & Address)
  /** Connections to this epoch's server are worth nothing any more; hold I/O and wait. */
  | { readonly type: "withdrawn"; readonly epoch: Epoch; readonly reason: string }
  /** `final`: nothing more will come on this ticket. `detail` is one line for a person. */
  | { readonly type: "failed"; readonly code: FailureCode; readonly detail: string; readonly final: boolean }
  /** answers define() and registerAgent() */
  | { readonly type: "defined"; readonly spec: ServiceSpec }
  | { readonly type: "registered"; readonly host: string }
  /** Events may have been missed; this is how it stands, and the state follows as its own event. */
  | { readonly type: "resync"; readonly view: ServiceView | undefined }
  | { readonly type: "broker"; readonly state: BrokerState; readonly detail: string };

/**
 * One question to the broker. A listener hears the latest state (pending, address, withdrawn, failed,
 * defined, registered) when it is added, and from then on every change; states that change faster
 * than the listener's turn comes are coalesced to the latest. Listeners are called on a later turn
 * of the event loop, never inside on().
 */
export interface Ticket {
  readonly id: string;
  readonly service: string;
  /** Returns what takes the listener off. */
  on(listener: (event: BrokerEvent) => void): () => void;
}

export interface ServiceRequest {
  readonly service: string;
  /** only compared with the spec */
  readonly expect?: { readonly max?: number; readonly volumeUuid?: string };
  /** without an address by then: failed DEADLINE, final */
  readonly deadlineMs?: number;
}

export interface ClaimOptions {
  /** unique for each process that claims; the id an agent was given where it starts the server */
  readonly instance: string;
  /** of the superblock, just read */
  readonly storeEpoch: Epoch;
  readonly volumeUuid: string;
  /** 'command': an offline change, which an administrator's disable does not forbid */
  readonly purpose: "serve" | "command";
  /** An agent's order made the claimant: it takes the slot over by that instance, and no other slot (F7). */
  readonly ordered?: boolean;
}

/** The right to serve one term. */
export interface Grant {
  readonly service: string;
  readonly epoch: Epoch;
  /** After the stamp, recovery and a probe (F4). */
  publish(address: Address): Promise<void>;
  /** Takes the address back before connections end. Keeps the grant. */
  withdraw(reason: string): Promise<void>;
  /** CLOCK_BOOTTIME in ms until which the server may act; Infinity where a kernel lock decides. */
  validUntilMs(): number;
  readonly storeClass: ServiceSpec["storeClass"];
  /** To be taken before the first write; undefined: the service is not fenced so. */
  readonly reservation: Reservation | undefined;
  /** The core's gate that is open until then (NativeBinding.createGate); undefined: for ever. */
  readonly gate: number | undefined;
  /** Somebody else holds a newer epoch: stop at once. At most one call. */
  onLost(listener: (reason: string) => void): void;
  /** An administrator or the agent wants the server to end in order. At most one call. */
  onStopAsked(listener: (reason: string) => void): void;
  /** The term is over; the store is closed. `failure`: the volume has failed (W9). */
  release(failure?: string): Promise<void>;
}

export interface AgentRegistration {
  readonly service: string;
  readonly host: string;
}

/** What a server is started for. The server claims with this instance and gets this epoch. */
export interface StartOrder {
  readonly service: string;
  readonly instance: string;
  readonly epoch: Epoch;
}

export interface StartedInstance {
  /** Resolves, with what is known of the cause, when the process is gone for certain (reaped). */
  readonly ended: Promise<string>;
}

/** The agent's side; every call is idempotent by instance. */
export interface InstanceAgent {
  /** This host may be told to start one soon. Called whenever that is learnt anew. */
  prepare?(service: string): void;
  /** Resolves once the process runs; its server claims and publishes by itself. */
  start(order: StartOrder, signal: AbortSignal): Promise<StartedInstance>;
  /** 'dead' only if provable; 'unknown' blocks the service. */
  stop(order: StartOrder, graceMs: number): Promise<"stopped" | "dead" | "unknown">;
  /** This host's fence of a silent holder has ended. `method` is the declared policy's name. */
  fenced?(service: string, method: string, confirmed: boolean): void;
  /** Shuts the other hosts out of the service's devices. Rejects, with why, if that is not certain. */
  fence(service: string, reservation: Reservation): Promise<void>;
  /** Does the server answer? Asked after reportBad(). */
  probe(order: StartOrder): Promise<boolean>;
}

export interface HolderView {
  readonly host: string;
  /** of ProcessIdentity */
  readonly machine: string;
  readonly bootId: string;
  readonly pid: number;
  /** since boot, in clock ticks: tells it from a later process of this pid */
  readonly startTime: string;
  /** false: the process is gone, the next claim takes over at once */
  readonly alive: boolean;
  /** not alive because nothing is heard of its host: what it does there is not known */
  readonly silent: boolean;
}

export type SlotState =
  /** nobody serves */
  | "vacant"
  /** an epoch is granted; the server is starting, or draining after a withdrawal */
  | "claimed"
  /** the address is valid */
  | "published"
  /** the last server stopped after an error (W9) */
  | "failed";

export interface ServiceView {
  readonly service: string;
  readonly spec: ServiceSpec;
  readonly adminState: AdminState;
  readonly state: SlotState;
  /** the last one granted; 0: none yet */
  readonly epoch: Epoch;
  readonly instance: string | undefined;
  readonly holder: HolderView | undefined;
  readonly address: Address | undefined;
  /** ISO 8601, when the slot last changed */
  readonly since: string;
  /** why the slot is as it is, in words */
  readonly reason: string;
  /** of reportBad(), for this epoch */
  readonly suspect: string | undefined;
  /** hosts whose agents are registered and alive */
  readonly agents: readonly string[];
  /** the backend's revision of what is shown */
  readonly revision: string;
}

export interface Broker {
  readonly state: BrokerState;
  /** Creates or replaces the spec. Events: defined, or failed SPEC_CONFLICT | DENIED. */
  define(spec: ServiceSpec): Ticket;
  /** Where is it? Ends with release(). Never starts anything (F7). */
  request(request: ServiceRequest): Ticket;
  /** The same without a wish: no deadline, nothing compared. */
  watch(service: string): Ticket;
  /** Offers to run the service's server here, until release() or the process ends. */
  registerAgent(registration: AgentRegistration, agent: InstanceAgent): Ticket;
  /**
   * The next epoch: max(broker, store) + 1, durable when the promise resolves. BUSY: a live holder
   * has it. DISABLED: by an administrator. INVALID_ARGUMENT: another volume of this name.
   */
  claim(service: string, options: ClaimOptions): Promise<Grant>;
  /** A hint that the server of this epoch does not answer; never a proof. */
  reportBad(service: string, epoch: Epoch, why: string): void;
  /** 'disabled' asks a running server to stop. NOT_FOUND where the service is not declared. */
  setAdminState(service: string, state: AdminState): Promise<void>;
  /** The running server is asked to stop, and this host's agent starts the next. INVALID_ARGUMENT. */
  move(service: string, to: string): Promise<void>;
  /** An administrator's word that the store's epoch counts, which this broker did not grant (F1). */
  adoptEpoch(service: string, storeEpoch: Epoch): Promise<void>;
  describe(service: string): Promise<ServiceView | undefined>;
  /**
   * An administrator's word that the host which silently holds this epoch can't write any more.
   * INVALID_ARGUMENT where another has it by now, or is not silent.
   */
  confirmFence(service: string, epoch: Epoch, who: string): Promise<void>;
  /** The service is not declared any more; its epochs are never granted again. BUSY while held. */
  forget(service: string): Promise<void>;
  /** Ends a ticket; its listeners hear nothing more. */
  release(ticket: Ticket): void;
  /** Ends all tickets. Grants stay as they are: they end with release() or their process. */
  close(): Promise<void>;
}

/** Codes that claim() and the other promises reject with, as CsnapError. */
export type BrokerErrorCode =
  | Extract<NativeErrorCode, "BUSY" | "NOT_FOUND" | "INVALID_ARGUMENT" | "CORRUPT">
  | "DISABLED";
