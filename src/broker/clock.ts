// The only clock that a grant's arithmetic uses: CLOCK_BOOTTIME, which counts while the host sleeps
// and never jumps. Node's own monotonic clock stands still during suspend.
import { readFileSync } from "node:fs";

export type BoottimeClock = () => number;

/**
 * CLOCK_BOOTTIME in ms, up to 10 ms behind it (proc_uptime(5)): a holder that counts from it ends
 * its term that much earlier, a candidate looks at differences only and has slack for it.
 */
export function boottimeMs(): number {
  return Number.parseFloat(readFileSync("/proc/uptime", "latin1")) * 1000;
}
