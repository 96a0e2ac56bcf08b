// What the agent shows of a device: the JSON of `csnap devices` and of its control API.
import type { Phase } from "./attachment.js";

export interface DeviceRecord {
  /** /dev/nbdN, or null where there is none (yet) */
  readonly device: string | null;
  readonly volume: string;
  readonly snapshot: string | null;
  /** uuid */
  readonly attachment: string;
  readonly state: Phase;
  /** why it is not attached, or null */
  readonly reason: string | null;
  readonly read_only: boolean;
  /** bytes */
  readonly size: number;
  readonly epoch: number;
  /** `hang`, or `error:SECONDSs` */
  readonly on_lost: string;
  /** ISO 8601 */
  readonly since: string;
  readonly in_flight: number;
  readonly mounts: readonly string[];
}
