// Sizes, durations and times as people write and read them: `4096`, `16k`, `1G` (powers of 1024),
// `10s`, ISO 8601 UTC.
import { usageError } from "./errors.js";

const units = ["", "k", "M", "G", "T", "P"] as const;

/** Bytes of a size like `16k`. `what` names the option in the message. */
export function parseSize(text: string, what: string): number {
  const match = /^([0-9]+)([kKmMgGtTpP]?)(?:i?[bB])?$/.exec(text);
  if (!match?.[1]) {
    throw usageError(
      `${what} '${text}' is not a size: write bytes or a number with k, M, G, T or P, like 16k or 1G`,
    );
  }
  const power = units.findIndex((unit) => unit.toLowerCase() === (match[2] ?? "").toLowerCase());
  const bytes = Number(match[1]) * 1024 ** power;
  if (!Number.isSafeInteger(bytes))
    throw usageError(`${what} '${text}' is too large: the limit is just below 8P`);
  return bytes;
}

/** `1.5 GiB`; exact bytes below one KiB. */
export function formatSize(bytes: number): string {
  let value = bytes;
  let power = 0;
  while (value >= 1024 && power < units.length - 1) {
    value /= 1024;
    power += 1;
  }
  if (power === 0) return `${bytes} B`;
  const digits = value < 10 ? 2 : value < 100 ? 1 : 0;
  return `${value.toFixed(digits)} ${(units[power] ?? "").toUpperCase()}iB`;
}

/** A size in the form that parseSize takes back exactly: `16k`, `1G`, `4097`. */
export function sizeArgument(bytes: number): string {
  let value = bytes;
  let power = 0;
  while (value > 0 && value % 1024 === 0 && power < units.length - 1) {
    value /= 1024;
    power += 1;
  }
  return `${value}${units[power] ?? ""}`;
}

const durationUnits: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 };

/** Milliseconds of `500ms`, `10s`, `2m`; a bare number is seconds. */
export function parseDuration(text: string, what: string): number {
  const match = /^([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)?$/.exec(text);
  const factor = durationUnits[match?.[2] ?? "s"];
  const milliseconds = match && factor ? Math.round(Number(match[1]) * factor) : 0;
  if (milliseconds <= 0)
    throw usageError(`${what} '${text}' is not a time: write a number with ms, s, m or h, like 10s`);
  return milliseconds;
}

export function formatDuration(milliseconds: number): string {
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  if (milliseconds < 100_000) return `${(milliseconds / 1000).toFixed(2)} s`;
  return `${Math.floor(milliseconds / 60_000)} min ${Math.round((milliseconds % 60_000) / 1000)} s`;
}

/** ISO 8601 UTC of Unix nanoseconds, to the millisecond. */
export function isoTime(nanoseconds: bigint): string {
  return new Date(Number(nanoseconds / 1_000_000n)).toISOString();
}
