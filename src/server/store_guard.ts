// Answers the core when the store runs low (design §8): the policy decides here, the core drops. If
// anything goes wrong the core follows the policy by itself.
//
// SG1 An answer never outlives what it was made for: if the core has dropped a snapshot meanwhile
//     (a write could not wait), the choice is taken back, or one snapshot too many would go.
import type { NativeVolume } from "../native.js";
import { messageOf } from "../volume/errors.js";
import { chooseDrop } from "../volume/policy.js";

export class StoreGuard {
  /** Changes whenever the core dropped a snapshot or has room again. */
  private situation = 0;

  constructor(
    private readonly native: Pick<NativeVolume, "info" | "snapshots" | "decideDrop">,
    private readonly log: (line: string) => void,
  ) {}

  /** On 'low-water'. */
  async lowWater(): Promise<void> {
    this.situation += 1;
    const asked = this.situation;
    try {
      const chosen = chooseDrop(this.native.info().onFull, await this.native.snapshots());
      if (asked !== this.situation) return;
      if (chosen) this.log(`the store runs low: @${chosen.name} (priority ${chosen.priority}) goes next`);
      this.native.decideDrop(chosen?.uuid ?? "");
    } catch (error) {
      this.log(`no snapshot to drop could be chosen (${messageOf(error)}): the core decides`);
      this.native.decideDrop("");
    }
  }

  /** On 'snapshot-dropped' and 'high-water' (SG1). */
  overtaken(): void {
    this.situation += 1;
  }
}
