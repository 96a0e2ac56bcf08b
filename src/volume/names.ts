// Names of volumes and snapshots, and the `volume@snapshot` form (cli.md). Called by every command,
// the control API and the export directory.
import { usageError } from "./errors.js";

const namePattern = /^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$/;
const nameRule = "a name is 1 to 128 of A-Z a-z 0-9 . _ : - and starts with a letter or digit";

export function isName(text: string): boolean {
  return namePattern.test(text);
}

export function checkVolumeName(text: string): string {
  if (text.includes("@")) {
    throw usageError(`'${text}' names a snapshot, but a volume is asked for: leave out '@' and what follows`);
  }
  if (!isName(text)) throw usageError(`volume name '${text}' is not allowed: ${nameRule}`);
  return text;
}

export function checkSnapshotName(text: string): string {
  if (!isName(text)) throw usageError(`snapshot name '${text}' is not allowed: ${nameRule}`);
  return text;
}

export interface SnapshotName {
  readonly volume: string;
  readonly snapshot: string;
}

/** `VOLUME@SNAP`, both needed. */
export function parseSnapshotName(text: string): SnapshotName {
  const at = text.indexOf("@");
  if (at < 0) throw usageError(`'${text}' names no snapshot: write VOLUME@NAME`);
  return {
    volume: checkVolumeName(text.slice(0, at)),
    snapshot: checkSnapshotName(text.slice(at + 1)),
  };
}

/** `VOLUME` or `VOLUME@SNAP`. */
export function parseObjectName(text: string): { readonly volume: string; readonly snapshot?: string } {
  return text.includes("@") ? parseSnapshotName(text) : { volume: checkVolumeName(text) };
}

const labelKeyPattern = /^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$/;
const labelValueLimitBytes = 255;

/** `K=V` of --label and label.K=V of `csnap set`. An empty value is allowed where it removes a label. */
export function checkLabel(key: string, value: string): void {
  if (!labelKeyPattern.test(key)) {
    throw usageError(
      `label '${key}' is not allowed: a label's key is 1 to 63 of A-Z a-z 0-9 . _ / - and starts with a letter or digit`,
    );
  }
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is refused
  if (/[\u0000-\u001f\u007f]/.test(value) || Buffer.byteLength(value) > labelValueLimitBytes) {
    throw usageError(
      `label '${key}': its value must be at most ${labelValueLimitBytes} bytes of printable text`,
    );
  }
}

export function checkPriority(priority: number): number {
  if (!Number.isInteger(priority) || priority < 0 || priority > 100) {
    throw usageError(`priority '${priority}' is not allowed: it is a whole number from 0 to 100`);
  }
  return priority;
}

const uuidPattern = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

export function isUuid(text: string): boolean {
  return uuidPattern.test(text);
}
