// The local backend's storage: for each service a directory `broker/NAME` in the state directory
// with one file for each revision of its record, the highest counts. Compare-and-swap is link(2), so
// there is no lock that a stopped or killed process could keep.
//
// Why this is right, crashes included:
// RS1 A revision's file is written and synced under a temporary name, then linked as r.(N+1), made
//     from r.N. link(2) fails where the name exists, so of several writers one wins. A crash before
//     the link leaves a temporary file, which later writers remove; after it, the change is made.
// RS2 Old revisions are removed, the highest never: so the highest number only grows. A writer that
//     stood still since it read r.N may link an r.(N+1) whose name was freed meanwhile. So it lists
//     the directory after the link: its number is the highest, then it was so at the link too, N was
//     the highest before, and the swap counts. A higher one exists: then r.(N+2) tells by its
//     `previous` token on whose r.(N+1) it was built. If even that is gone, the answer is "lost";
//     who asks reads again and finds what came of it.
// RS3 A listing is one getdents of a short directory, which the kernel makes under the directory's
//     lock; entries that are there throughout are never missed in any case (readdir(3)), and the
//     newest `keptRevisions` are.
// RS4 One operation at a time, so that storage that hangs holds one thread of the pool and leaves the
//     others to the rest of the process.
// RS5 swap() returns after the directory's sync: what it says survives a power loss. A reader may
//     see a revision a moment before; whoever builds on it syncs the same directory.
import { randomBytes } from "node:crypto";
import { link, mkdir, open, readdir, readFile, stat, unlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { CsnapError, codeOf, systemText } from "../volume/errors.js";
import { DirectoryWatch } from "./directory_watch.js";
import { decodeRecord, encodeRecord, type ServiceRecord, type Versioned } from "./record.js";
import type { RecordStore } from "./records.js";

const keptRevisions = 32;
/** A temporary file older than this belongs to a writer that crashed; one that only slept tries again. */
const temporaryAgeMs = 60_000;
const readAttemptsMax = 100;
const revisionPattern = /^r\.(\d{16})$/;

export class FileRecords implements RecordStore {
  private queue: Promise<unknown> = Promise.resolve();

  constructor(private readonly directory: string) {}

  directoryOf(service: string): string {
    return join(this.directory, service);
  }

  /** The latest record; undefined: there never was one. CORRUPT, NEWER_FORMAT, ACCESS, IO_ERROR. */
  read(service: string): Promise<Versioned | undefined> {
    return this.inTurn(() => this.readLatest(service));
  }

  private async readLatest(service: string): Promise<Versioned | undefined> {
    for (let attempt = 0; attempt < readAttemptsMax; attempt++) {
      const highest = (await this.revisions(service)).at(-1);
      if (highest === undefined) return undefined;
      const found = await this.readRevision(service, highest);
      if (found) return found;
      // Removed since the listing: there are newer ones.
    }
    throw new CsnapError(
      "IO_ERROR",
      `the broker's records of ${service} change faster than they can be read`,
    );
  }

  /** Replaces `base`, or makes the first record. Undefined: somebody was faster; read again. */
  swap(service: string, base: Versioned | undefined, record: ServiceRecord): Promise<Versioned | undefined> {
    return this.inTurn(() => this.swapNow(service, base, record));
  }

  private async swapNow(
    service: string,
    base: Versioned | undefined,
    record: ServiceRecord,
  ): Promise<Versioned | undefined> {
    const revision = (base?.revision ?? 0) + 1;
    const token = randomBytes(16).toString("hex");
    try {
      if (!base) await this.makeDirectory(service);
      const text = encodeRecord({ revision, token, previous: base?.token ?? "" }, record);
      if (!(await this.linkRevision(service, revision, text))) return undefined;
      const revisions = await this.revisions(service);
      if (!(await this.counts(service, revision, token, revisions))) return undefined;
      await this.removeOld(service, revisions);
      return { revision, token, record };
    } catch (error) {
      throw unwritable(error, service);
    }
  }

  watch(service: string, changed: () => void): () => void {
    const watch = new DirectoryWatch(this.directoryOf(service), changed, () =>
      this.inTurn(() => this.makeDirectory(service)),
    );
    return () => watch.end();
  }

  /** Nothing of it outlives an operation. */
  close(): void {}

  /** RS4 */
  private inTurn<T>(operation: () => Promise<T>): Promise<T> {
    const result = this.queue.then(operation);
    this.queue = result.catch(() => {});
    return result;
  }

  private async makeDirectory(service: string): Promise<void> {
    const directory = this.directoryOf(service);
    const first = await mkdir(directory, { recursive: true, mode: 0o755 });
    if (first === undefined) return;
    for (let made = directory; ; made = dirname(made)) {
      await syncDirectory(dirname(made));
      if (made === first) return;
    }
  }

  /** RS1. False: the name was taken, or the temporary file was removed under a writer that slept. */
  private async linkRevision(service: string, revision: number, text: string): Promise<boolean> {
    const directory = this.directoryOf(service);
    const temporary = join(directory, `.new.${randomBytes(8).toString("hex")}`);
    const file = await open(temporary, "wx", 0o644);
    try {
      await file.writeFile(text);
      await file.sync();
      await file.close();
      await link(temporary, this.fileOf(service, revision));
    } catch (error) {
      await file.close().catch(() => {});
      await unlink(temporary).catch(() => {});
      const code = codeOf(error);
      if (code === "ALREADY_EXISTS" || code === "NOT_FOUND") return false;
      throw error;
    }
    await unlink(temporary).catch(() => {});
    await syncDirectory(directory);
    return true;
  }

  /** RS2 */
  private async counts(
    service: string,
    revision: number,
    token: string,
    revisions: readonly number[],
  ): Promise<boolean> {
    if (revisions.at(-1) === revision) return true;
    const next = await this.readRevision(service, revision + 1);
    return next?.previous === token;
  }

  private async readRevision(service: string, revision: number) {
    const file = this.fileOf(service, revision);
    let text: string;
    try {
      text = await readFile(file, "utf8");
    } catch (error) {
      if (codeOf(error) === "NOT_FOUND") return undefined;
      throw unreadable(error);
    }
    const found = decodeRecord(text, file);
    if (found.revision === revision) return found;
    throw new CsnapError(
      "CORRUPT",
      `the broker's record ${file} says that it is revision ${found.revision}: remove the file, it was copied or renamed`,
    );
  }

  private async revisions(service: string): Promise<number[]> {
    let names: string[];
    try {
      names = await readdir(this.directoryOf(service));
    } catch (error) {
      if (codeOf(error) === "NOT_FOUND") return [];
      throw unreadable(error);
    }
    return names
      .flatMap((name) => {
        const digits = revisionPattern.exec(name)?.[1];
        return digits === undefined ? [] : [Number(digits)];
      })
      .sort((a, b) => a - b);
  }

  private async removeOld(service: string, revisions: readonly number[]): Promise<void> {
    const highest = revisions.at(-1) ?? 0;
    for (const revision of revisions) {
      if (revision <= highest - keptRevisions) await unlink(this.fileOf(service, revision)).catch(() => {});
    }
    if (highest % keptRevisions === 0) await this.removeTemporary(service);
  }

  private async removeTemporary(service: string): Promise<void> {
    const directory = this.directoryOf(service);
    for (const name of await readdir(directory)) {
      if (!name.startsWith(".new.")) continue;
      const path = join(directory, name);
      const age = await stat(path).then(
        ({ mtimeMs }) => Date.now() - mtimeMs,
        () => 0,
      );
      if (age > temporaryAgeMs) await unlink(path).catch(() => {});
    }
  }

  private fileOf(service: string, revision: number): string {
    return join(this.directoryOf(service), `r.${String(revision).padStart(16, "0")}`);
  }
}

async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, "r");
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}

function unreadable(error: unknown): unknown {
  if (error instanceof CsnapError) return error;
  return new CsnapError(
    codeOf(error),
    `the broker's record can't be read: ${systemText(error)}: check the state directory`,
  );
}

function unwritable(error: unknown, service: string): unknown {
  if (error instanceof CsnapError) return error;
  return new CsnapError(
    codeOf(error),
    `${service}: the broker's record can't be written: ${systemText(error)}: check the state directory, or choose another with --state-dir`,
  );
}
