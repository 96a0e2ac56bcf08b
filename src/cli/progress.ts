// Progress of long work: a bar on a terminal, nothing on a pipe, JSON lines with `--progress json`.
// Always on stderr, so that results stay clean.
import { Option } from "commander";
import { formatSize } from "../volume/sizes.js";
import { grouped } from "./output.js";

export type ProgressMode = "bar" | "none" | "json";

export function progressOption(): Option {
  return new Option("--progress <how>", "bar, none or json (default: bar on a terminal)").choices([
    "bar",
    "none",
    "json",
  ]);
}

export interface Progress {
  update(done: number, total: number): void;
  /** Removes the bar; called on success and failure. */
  end(): void;
}

/** A bar is redrawn, and a JSON line written, at most this often. */
const updateIntervalMs = 100;
const barCells = 30;

export function startProgress(
  what: string,
  mode: ProgressMode | undefined,
  unit: "bytes" | "items",
): Progress {
  const effective = mode ?? (process.stderr.isTTY ? "bar" : "none");
  if (effective === "none") return { update: () => {}, end: () => {} };
  const show = effective === "bar" ? drawBar : writeJson;
  let last = Number.NEGATIVE_INFINITY;
  let drawn = false;
  return {
    update: (done, total) => {
      const now = performance.now();
      if (done < total && now - last < updateIntervalMs) return;
      last = now;
      drawn = true;
      show(what, done, total, unit);
    },
    end: () => {
      if (drawn && effective === "bar") process.stderr.write("\r\u001b[K");
    },
  };
}

function drawBar(what: string, done: number, total: number, unit: "bytes" | "items"): void {
  const share = total > 0 ? Math.min(1, done / total) : 1;
  const filled = Math.round(share * barCells);
  const figure = unit === "bytes" ? formatSize : grouped;
  const bar = `${"#".repeat(filled)}${".".repeat(barCells - filled)}`;
  const percent = String(Math.floor(share * 100)).padStart(3);
  process.stderr.write(`\r\u001b[K${what} [${bar}] ${percent} % ${figure(done)} of ${figure(total)}`);
}

function writeJson(what: string, done: number, total: number, unit: "bytes" | "items"): void {
  process.stderr.write(`${JSON.stringify({ progress: { what, done, total, unit } })}\n`);
}
