/**
 * Asks every server, all the time and whether or not it answers, how long its grant lasts: `server.grant_remaining_ms` of
 * its control API, over the unix socket, which no partition cuts. Two servers with valid grants would show (I1): one that
 * was stopped answers when it goes on, and counts as of then.
 */
import { setTimeout as pause } from "node:timers/promises";
import { ControlClient } from "../../src/control/client.js";
import { monotonicMs, TermSpans } from "./term-spans.js";

const PACE_MS = 150;
/** Servers accept 256 connections at a time. */
const OUTSTANDING_MAX = 80;

export class GrantWatch {
  /** Terms whose servers said that their grants are valid. */
  readonly valid = new TermSpans();
  /** Answers that said that the grant has ended. */
  ended = 0;
  readonly #stopping = new AbortController();
  readonly #done: Promise<unknown>;

  constructor(controlSockets: readonly string[], volume: string) {
    this.#done = Promise.all(controlSockets.map((path) => this.#watch(new ControlClient(path, volume))));
  }

  async stop(): Promise<void> {
    this.#stopping.abort();
    await this.#done;
  }

  async #watch(client: ControlClient): Promise<void> {
    let outstanding = 0;
    while (!this.#stopping.signal.aborted) {
      if (outstanding < OUTSTANDING_MAX) {
        outstanding++;
        this.#ask(client)
          // No server there, or it ends.
          .catch(() => {})
          .finally(() => outstanding--);
      }
      await pause(PACE_MS);
    }
  }

  async #ask(client: ControlClient): Promise<void> {
    const askedMs = monotonicMs();
    const { epoch, server } = await client.status();
    const remainingMs = server?.grant_remaining_ms ?? 0;
    if (remainingMs > 0) this.valid.saw(epoch, askedMs, monotonicMs());
    else this.ended++;
  }
}
