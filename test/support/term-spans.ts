/**
 * When each term was seen to act, by all who saw it: the ground for "no acknowledgement under a stale epoch" and "never two
 * servers with valid grants" (I1). Times are CLOCK_MONOTONIC, which every process of this machine shares.
 */

/** ms of CLOCK_MONOTONIC. */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}

export interface TermSpan {
  readonly epoch: number;
  /** the first time the term had answered */
  firstAnsweredMs: number;
  /** the last time anything was asked that the term answered */
  lastAskedMs: number;
  answers: number;
}

export class TermSpans {
  readonly #spans = new Map<number, TermSpan>();

  saw(epoch: number, askedMs: number, answeredMs: number): void {
    this.add({ epoch, firstAnsweredMs: answeredMs, lastAskedMs: askedMs, answers: 1 });
  }

  add({ epoch, firstAnsweredMs, lastAskedMs, answers }: TermSpan): void {
    const known = this.#spans.get(epoch);
    if (!known) {
      this.#spans.set(epoch, { epoch, firstAnsweredMs, lastAskedMs, answers });
      return;
    }
    known.firstAnsweredMs = Math.min(known.firstAnsweredMs, firstAnsweredMs);
    known.lastAskedMs = Math.max(known.lastAskedMs, lastAskedMs);
    known.answers += answers;
  }

  get answers(): number {
    return [...this.#spans.values()].reduce((sum, { answers }) => sum + answers, 0);
  }

  /** By epoch. */
  list(): TermSpan[] {
    return [...this.#spans.values()].sort((a, b) => a.epoch - b.epoch);
  }

  /**
   * Terms that acted after a newer one had: asked then, and answered by the older. That the question came later is what
   * makes it certain: an answer by itself may have been long on its way.
   */
  stale(what: string): string[] {
    const found: string[] = [];
    let newer: TermSpan | undefined;
    for (const span of this.list().reverse()) {
      if (newer && span.lastAskedMs > newer.firstAnsweredMs)
        found.push(
          `${what}: epoch ${span.epoch} ${Math.round(span.lastAskedMs - newer.firstAnsweredMs)} ms after epoch ${newer.epoch} had begun`,
        );
      if (!newer || span.firstAnsweredMs < newer.firstAnsweredMs) newer = span;
    }
    return found;
  }
}
