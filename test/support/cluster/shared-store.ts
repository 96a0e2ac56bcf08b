// The simulated device that all hosts reach: a superblock of two slots, and what was written to it.
//
// SS1 An I/O that was issued is carried out whatever becomes of its process, sooner or much later,
//     until its host's power is cut: what has not landed by then never does (F8).
import type { SimHost, SimProcess, Universe } from "./machine.js";

export interface Written {
  readonly version: number;
  readonly epoch: bigint;
}

export class SharedStore {
  /** epochs, each slot stamped by an I/O of its own */
  readonly slots: [bigint, bigint] = [0n, 0n];
  readonly data = new Map<string, Written>();
  /** of hosts whose way here stands still */
  private readonly stalled: { readonly host: SimHost; readonly land: () => void }[] = [];

  constructor(
    private readonly universe: Universe,
    /** A write of this epoch lands now. */
    private readonly landed: (epoch: bigint, by: SimProcess) => void,
  ) {}

  get epoch(): bigint {
    const [first, second] = this.slots;
    if (first < second) return second;
    return first;
  }

  async readEpoch(process: SimProcess): Promise<bigint> {
    let epoch = 0n;
    await this.io(process, () => {
      epoch = this.epoch;
    });
    return epoch;
  }

  /** One of the slots, synced. */
  stamp(process: SimProcess, slot: 0 | 1, epoch: bigint): Promise<void> {
    return this.io(process, () => {
      this.landed(epoch, process);
      this.slots[slot] = epoch;
    });
  }

  write(process: SimProcess, key: string, written: Written): Promise<void> {
    return this.io(process, () => {
      this.landed(written.epoch, process);
      this.data.set(key, written);
    });
  }

  /** Resolves on the process's native threads. */
  io(process: SimProcess, carryOut: () => void): Promise<void> {
    const { time, chance } = this.universe;
    const { host } = process;
    const { boots } = host;
    process.ioBegins();
    return new Promise((resolve) => {
      const land = () => {
        if (!host.isOn || host.boots !== boots) return;
        if (host.storeHangs) {
          this.stalled.push({ host, land });
          return;
        }
        carryOut();
        process.data.run(resolve);
        process.ioEnds();
      };
      time.after(chance.is(0.01) ? chance.between(200, 9000) : chance.between(0.1, 8), land);
    });
  }

  /** The host's way is free again. */
  flows(host: SimHost): void {
    host.storeHangs = false;
    const all = this.stalled.splice(0);
    for (const entry of all) {
      if (entry.host !== host) this.stalled.push(entry);
      else this.universe.time.after(this.universe.chance.between(0, 5), entry.land);
    }
  }
}
