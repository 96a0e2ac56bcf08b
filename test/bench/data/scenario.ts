/** What is no steady rate: something happens while a load goes on. */
import type { Csnap } from "./csnap.js";
import type { Offsets } from "./workload.js";

export interface Circumstances {
  /** Nobody serves it yet; it has been prepared. */
  readonly csnap: Csnap;
  /** For files of the run. */
  readonly directory: string;
  readonly offsets: Offsets;
  readonly rounds: number;
  /** Length of a run of a load. */
  readonly seconds: number;
}

export interface Scenario {
  readonly name: string;
  /** The contestant that it happens to, a Csnap. */
  readonly ours: string;
  /** The rows. */
  run(circumstances: Circumstances): Promise<readonly object[]>;
}
