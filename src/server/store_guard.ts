// Answers the core when the store runs low (design §8): the policy decides here, the core drops. If
// anything goes wrong the core follows the policy by itself.
import type { NativeVolume } from "../native.js";
import { messageOf } from "../volume/errors.js";
import { chooseDrop } from "../volume/policy.js";

export class StoreGuard {
  private deciding = false;
  private askedAgain = false;

  constructor(
    private readonly native: Pick<NativeVolume, "info" | "snapshots" | "decideDrop">,
    private readonly log: (line: string) => void,
  ) {}

  /** On 'low-water'. One decision at a time: the next one must see what the last one dropped. */
  async lowWater(): Promise<void> {
    this.askedAgain = this.deciding;
    if (this.deciding) return;
    this.deciding = true;
    try {
      do {
        this.askedAgain = false;
        await this.decide();
      } while (this.askedAgain);
    } finally {
      this.deciding = false;
    }
  }

  private async decide(): Promise<void> {
    try {
      const chosen = chooseDrop(this.native.info().onFull, await this.native.snapshots());
      if (chosen)
        this.log(`the store runs low: dropping @${chosen.name} (priority ${chosen.priority}, not pinned)`);
      this.native.decideDrop(chosen?.uuid ?? "");
    } catch (error) {
      this.log(`no snapshot to drop could be chosen (${messageOf(error)}): the core decides`);
      this.native.decideDrop("");
    }
  }
}
