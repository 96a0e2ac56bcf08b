/** The latency of every write of a load that goes on while something else happens, and what of it that delayed. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createReadStream, rmSync } from "node:fs";
import { createInterface } from "node:readline";
import { fioArguments, type Load } from "./fio.js";
import { quantile } from "./statistics.js";

/** In milliseconds, of Date.now(). */
export interface Span {
  readonly from: number;
  readonly to: number;
}

/** fio keeps both to the millisecond; a span is longer by that on either side. */
const CLOCK_MS = 1;

export class LatencyLog {
  /** When each write was answered, the earliest first, and how long after it was submitted; milliseconds. */
  readonly #answered: number[] = [];
  readonly #took: number[] = [];
  #longest = 0;

  /** A line of fio's log, in the order of the answers: time in ms, latency in ns, direction, bytes, offset. */
  add(line: string): void {
    const [answered, took] = line.split(",", 2);
    this.#answered.push(Number(answered));
    const ms = Number(took) / 1e6;
    this.#took.push(ms);
    this.#longest = Math.max(this.#longest, ms);
  }

  get count(): number {
    return this.#took.length;
  }

  /** Latencies of the writes that were under way at some time of the span, in milliseconds. */
  during({ from, to }: Span): number[] {
    const found: number[] = [];
    for (let i = this.#firstAnswered(from - CLOCK_MS); i < this.count; i++) {
      const [answered = 0, took = 0] = [this.#answered[i], this.#took[i]];
      if (answered - this.#longest > to + CLOCK_MS) break;
      if (answered - took <= to + CLOCK_MS) found.push(took);
    }
    return found;
  }

  /** Writes that were answered in the span, by the second. */
  rate({ from, to }: Span): number {
    return ((this.#firstAnswered(to) - this.#firstAnswered(from)) * 1000) / (to - from);
  }

  /** The first that was answered at that time or later. */
  #firstAnswered(at: number): number {
    let [low, high] = [0, this.count];
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.#answered[middle] ?? 0) < at) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** What half of all writes took at most, in milliseconds. */
  usual(): number {
    return quantile(this.#took, 0.5);
  }
}

/** A fio that writes until it is stopped. */
export class LoggedLoad {
  readonly #child: ChildProcess;
  #said = "";

  /** `prefix`: of the files that fio makes for its log. */
  constructor(
    uri: string,
    load: Load,
    sizeBytes: number,
    private readonly prefix: string,
  ) {
    const log = [`--write_lat_log=${prefix}`, "--log_unix_epoch=1", "--disable_slat=1", "--disable_clat=1"];
    const args = [...fioArguments(uri, { ...load, seconds: LONGEST_S, connections: 1 }, sizeBytes), ...log];
    this.#child = spawn("fio", args, { stdio: ["ignore", "ignore", "pipe"] });
    this.#child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.#said += text;
    });
  }

  /** Throws with what fio said where it had ended before. */
  async stop(): Promise<LatencyLog> {
    const path = `${this.prefix}_lat.1.log`;
    if (this.#child.exitCode !== null || this.#child.signalCode !== null)
      throw new Error(`fio ended by itself: ${this.#said}`);
    this.#child.kill("SIGINT");
    await once(this.#child, "exit");
    const log = new LatencyLog();
    for await (const line of createInterface({ input: createReadStream(path) })) log.add(line);
    rmSync(path);
    return log;
  }
}

const LONGEST_S = 3600;
