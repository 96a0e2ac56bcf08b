// What a broker stores of one service: the declared spec, the admin's word, and the slot, which says
// who holds the last epoch. One record for each service, so that every change of it is one
// compare-and-swap. Written and read by the backends.
//
// RC1 `epoch` never falls from one record to the next, a forgotten service's included.
// RC2 A record is only believed whole: version, checksum and every field are checked on reading.
import { createHash } from "node:crypto";
import { CsnapError } from "../volume/errors.js";
import type { Address, AdminState, Epoch, ServiceSpec, SlotState } from "./broker.js";
import type { ProcessIdentity } from "./process_identity.js";

export interface Beat {
  /** grows with each renewal, and starts with 1 in each claim */
  readonly seq: number;
  /** T, which the holder counts and candidates wait for */
  readonly grant_ms: number;
}

/** One candidate's attempt; others wait for it. */
export interface Fencing {
  readonly id: string;
  readonly host: string;
}

export interface Slot {
  readonly state: SlotState;
  readonly instance: string;
  readonly holder: ProcessIdentity | null;
  readonly purpose: "serve" | "command";
  /** the sign of life between hosts (lease.ts); null where the kernel says who lives */
  readonly beat: Beat | null;
  /** claimed by an agent that is starting the server, which takes the slot over by `instance` */
  readonly ordered: boolean;
  readonly address: Address | null;
  /** ISO 8601 */
  readonly since: string;
  readonly reason: string;
  readonly suspect: string | null;
  /** ISO 8601: no agent starts a server before; null: at once */
  readonly retry_at: string | null;
  /** who is fencing the silent holder's host */
  readonly fencing: Fencing | null;
  /** an administrator moves the service: the host that shall have it */
  readonly move_to: string | null;
}

/** A host that may be registered at the service's devices (reservation.ts). */
export interface Registrant {
  readonly host: string;
  /** of ProcessIdentity */
  readonly machine: string;
}

export interface RegisteredAgent {
  readonly id: string;
  readonly host: string;
  readonly process: ProcessIdentity;
  /** grows every now and then; 0 where the kernel says who lives */
  readonly beat: number;
}

export interface ServiceRecord {
  /** null: forgotten, or only registered for */
  readonly spec: ServiceSpec | null;
  readonly admin: AdminState;
  readonly epoch: Epoch;
  readonly slot: Slot;
  readonly agents: readonly RegisteredAgent[];
  readonly registrants: readonly Registrant[];
}

/** A record as found: its place in the order of changes, and what tells it from all others. */
export interface Versioned {
  readonly revision: number;
  readonly token: string;
  readonly record: ServiceRecord;
}

/** @param at ISO 8601 */
export function vacantSlot(reason: string, at: string, retryAt: string | null = null): Slot {
  return {
    state: "vacant",
    instance: "",
    holder: null,
    purpose: "serve",
    beat: null,
    ordered: false,
    address: null,
    since: at,
    reason,
    suspect: null,
    retry_at: retryAt,
    fencing: null,
    move_to: null,
  };
}

/** @param at ISO 8601 */
export function newRecord(spec: ServiceSpec | null, at: string): ServiceRecord {
  const slot = vacantSlot("never served", at);
  return { spec, admin: "enabled", epoch: 0n, slot, agents: [], registrants: [] };
}

const magic = "csnap-broker";
const version = 1;

interface Envelope {
  readonly revision: number;
  readonly token: string;
  /** token of the record this one was made from; '' for the first */
  readonly previous: string;
}

/** `csnap-broker VERSION SHA256`, then the record as JSON: a person can read it. */
export function encodeRecord(envelope: Envelope, record: ServiceRecord): string {
  const body = `${JSON.stringify({ ...envelope, ...record, epoch: record.epoch.toString() }, null, 1)}\n`;
  return `${magic} ${version} ${digest(body)}\n${body}`;
}

function digest(body: string): string {
  return createHash("sha256").update(body).digest("hex");
}

/** RC2. CORRUPT, NEWER_FORMAT; `file` is for the message. */
export function decodeRecord(text: string, file: string): Versioned & { readonly previous: string } {
  const end = text.indexOf("\n");
  const match = new RegExp(`^${magic} (\\d+) ([0-9a-f]{64})$`).exec(text.slice(0, Math.max(end, 0)));
  if (!match) throw damaged(file, "it is no broker record");
  if (Number(match[1]) !== version) {
    throw new CsnapError(
      "NEWER_FORMAT",
      `the broker's record ${file} is of version ${match[1]}, and this csnap knows ${version}: upgrade csnap`,
    );
  }
  const body = text.slice(end + 1);
  if (digest(body) !== match[2]) throw damaged(file, "it does not match its checksum");
  const found = JSON.parse(body) as Omit<ServiceRecord, "epoch"> & Envelope & { readonly epoch: string };
  // Earlier csnaps wrote no registrants, and had none.
  const { revision, token, previous, epoch, spec, admin, slot, agents, registrants = [] } = found;
  if (!Number.isSafeInteger(revision) || !/^\d+$/.test(epoch) || !slot || !Array.isArray(agents))
    throw damaged(file, "it misses a field");
  if (!Array.isArray(registrants)) throw damaged(file, "its registrants are no list");
  return {
    revision,
    token,
    previous,
    record: { spec, admin, epoch: BigInt(epoch), slot, agents, registrants },
  };
}

/** Going on without it loses no safety: the store's superblock knows the epoch as well. */
function damaged(file: string, how: string): CsnapError {
  return new CsnapError(
    "CORRUPT",
    `the broker's record ${file} is damaged (${how}): stop the volume's server if one runs and remove the file; the next server takes its epoch from the store`,
  );
}
