// The store-full policy of design §8: which snapshot goes when space is low. Pure; the server calls
// it when the core reports 'low-water'.
//
// P1 Only live, unpinned snapshots are ever chosen (W10).
// P2 The lowest priority goes first, within it the oldest; the order is total, so that the core's
//    own fallback and this function never disagree on equal input.
import type { NativeSnapshot, OnFull } from "../native.js";

export type DropCandidate = Pick<
  NativeSnapshot,
  "uuid" | "name" | "state" | "pinned" | "priority" | "generation"
>;

/** The snapshot to drop now, or undefined where the policy or the pins leave none. */
export function chooseDrop<T extends DropCandidate>(onFull: OnFull, snapshots: readonly T[]): T | undefined {
  if (onFull !== "drop-snapshots") return undefined;
  let chosen: T | undefined;
  for (const snapshot of snapshots) {
    if (snapshot.state !== "live" || snapshot.pinned) continue;
    if (chosen === undefined || goesBefore(snapshot, chosen)) chosen = snapshot;
  }
  return chosen;
}

/** By generation, not by clock: a clock may step back, a generation never does. */
function goesBefore(a: DropCandidate, b: DropCandidate): boolean {
  if (a.priority !== b.priority) return a.priority < b.priority;
  return a.generation < b.generation;
}
