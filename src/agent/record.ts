// The agent's durable record of wanted attachments, one file each in the state directory.
//
// RE1 A record is on stable storage before the kernel is told of its attachment, and goes only when
//     the kernel has none of it: a killed agent finds every device again (AT5).
// RE2 A file is replaced as a whole; what can't be read is told in one line and never overwritten.
import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { CsnapError, codeOf, systemText } from "../volume/errors.js";
import type { OnLost } from "./attachment.js";
import type { Identity } from "./dial.js";

const version = 1;

export interface AttachmentRecord {
  readonly uuid: string;
  readonly volume: string;
  /** name of a snapshot, or null for the origin */
  readonly snapshot: string | null;
  readonly readOnly: boolean;
  readonly onLost: OnLost;
  /** asked for by the user, or null */
  readonly wantedDevice: number | null;
  /** ISO 8601 */
  readonly since: string;
  /** failed for good: kept to be shown until it is detached */
  readonly failure: string | null;
  /** a detach has begun: it is to be finished */
  readonly ending: boolean;
  /** a server may have given it a hold, which is to be ended with it; never unset */
  readonly mayHold: boolean;
  readonly device: number | null;
  readonly identity: Identity | null;
  readonly epoch: string;
}

export class RecordStore {
  private readonly directory: string;

  constructor(stateDir: string) {
    this.directory = join(stateDir, "attachments");
  }

  /** A number that grows with each call, over restarts: the high half of every TRY of this run. */
  nextRun(): number {
    const path = join(this.directory, "run");
    const last = existsSync(path) ? Number(readFileSync(path, "utf8")) : 0;
    const next = (Number.isSafeInteger(last) && last >= 0 ? last : 0) + 1;
    this.replace(path, `${next}\n`);
    return next;
  }

  load(tell: (line: string) => void): AttachmentRecord[] {
    if (!existsSync(this.directory)) return [];
    return readdirSync(this.directory)
      .filter((name) => name.endsWith(".json") && !name.startsWith("."))
      .flatMap((name) => {
        const path = join(this.directory, name);
        try {
          return [parseRecord(readFileSync(path, "utf8"))];
        } catch (error) {
          tell(`${path} is no attachment's record (${systemText(error)}): it is left alone; look at it`);
          return [];
        }
      });
  }

  save(record: AttachmentRecord): void {
    this.replace(
      join(this.directory, `${record.uuid}.json`),
      `${JSON.stringify({ version, ...record }, null, 2)}\n`,
    );
  }

  remove(uuid: string): void {
    const path = join(this.directory, `${uuid}.json`);
    if (!existsSync(path)) return;
    unlinkSync(path);
    this.syncDirectory();
  }

  private replace(path: string, text: string): void {
    const temporary = `${path}.new`;
    try {
      mkdirSync(this.directory, { recursive: true, mode: 0o755 });
      const fd = openSync(temporary, "w", 0o644);
      try {
        writeSync(fd, text);
        fsyncSync(fd);
      } finally {
        closeSync(fd);
      }
      renameSync(temporary, path);
      this.syncDirectory();
    } catch (error) {
      throw new CsnapError(
        codeOf(error),
        `the agent's record ${path} can't be written: ${systemText(error)}: make room, or choose another state directory`,
      );
    }
  }

  private syncDirectory(): void {
    const fd = openSync(this.directory, "r");
    try {
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
  }
}

function parseRecord(text: string): AttachmentRecord {
  const { version: found, ...record } = JSON.parse(text) as AttachmentRecord & { version: number };
  if (found !== version) throw new Error(`its version is ${found}, known is ${version}`);
  const whole =
    typeof record.uuid === "string" &&
    typeof record.volume === "string" &&
    typeof record.readOnly === "boolean" &&
    typeof record.mayHold === "boolean" &&
    typeof record.onLost?.mode === "string" &&
    (record.device === null || Number.isSafeInteger(record.device)) &&
    /^\d+$/.test(record.epoch);
  if (!whole) throw new Error("it is not complete");
  return record;
}
