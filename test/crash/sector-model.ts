/**
 * What every sector of a volume may hold, for loads whose requests overlap and may be cut off: used by the kill -9
 * test. A written sector carries the number of the operation that wrote it and its own place.
 *
 * 1. Time is a counter that grows with every issue and every acknowledgement, as this client saw them: an operation
 *    issued before it is sent and acknowledged after its reply came. So "A was over before B began" is never claimed
 *    wrongly.
 * 2. A sector may hold what Y left there unless an acknowledged X began after Y was over. An operation that was never
 *    acknowledged may have happened or not, sector by sector.
 * 3. A snapshot is a cut: if it holds anything of an operation issued at time T, it holds all that was acknowledged
 *    before T; T is at least the call of its creation. Nothing issued after the return is in it.
 * 4. A trim may leave zeros or what was there: it adds a possibility and rules none out.
 * 5. A read may find a sector half written by a change that is under way meanwhile: the page cache promises no more
 *    (two threads that pread and pwrite one sector of a file see it within a second). Such a sector holds words of
 *    what is possible there, and nothing else; a sector at rest is never torn, nor one of a snapshot.
 */
export const SECTOR = 512;
const MAGIC = 0x6b396f70;
const ZEROS = Buffer.alloc(SECTOR);
const NEVER = Number.POSITIVE_INFINITY;

export type Kind = "write" | "zero" | "trim";

export interface Operation {
  /** What the sectors hold that it wrote; 0: zeros. */
  readonly value: number;
  readonly kind: Kind;
  readonly first: number;
  readonly count: number;
  readonly issued: number;
  acked: number;
}

/** What a snapshot may hold whose creation began here. */
export interface Cut {
  readonly called: number;
  readonly before: readonly (readonly Operation[])[];
  /** Issued between call and return. */
  readonly during: Operation[];
}

export class SectorModel {
  #clock = 0;
  #nextValue = 1;
  readonly #possible: (readonly Operation[])[];
  readonly #cuts = new Set<Cut>();
  /** What was issued during each read that is under way. */
  readonly #reads = new Set<Operation[]>();

  constructor(readonly sectors: number) {
    const nothing: Operation = { value: 0, kind: "zero", first: 0, count: sectors, issued: 0, acked: 0 };
    this.#possible = Array.from({ length: sectors }, () => [nothing]);
  }

  issue(kind: Kind, first: number, count: number): Operation {
    const value = kind === "write" ? this.#nextValue++ : 0;
    const operation: Operation = { value, kind, first, count, issued: ++this.#clock, acked: NEVER };
    for (let sector = first; sector < first + count; sector++)
      this.#possible[sector] = [...this.at(sector), operation];
    for (const cut of this.#cuts) cut.during.push(operation);
    for (const read of this.#reads) read.push(operation);
    return operation;
  }

  acknowledge(operation: Operation): void {
    operation.acked = ++this.#clock;
    if (operation.kind === "trim") return;
    const { first, count, issued } = operation;
    for (let sector = first; sector < first + count; sector++)
      this.#possible[sector] = this.at(sector).filter(({ acked }) => acked > issued);
  }

  at(sector: number): readonly Operation[] {
    return this.#possible[sector] as readonly Operation[];
  }

  /** What may be read from now on; check what was read with it after the reply. */
  beginRead(first: number, count: number): (data: Buffer) => void {
    const began = ++this.#clock;
    const before = this.#possible.slice(first, first + count);
    // Also what came and was overwritten again before the reply.
    const during: Operation[] = [];
    this.#reads.add(during);
    return (data) => {
      this.#reads.delete(during);
      for (let i = 0; i < count; i++) {
        const place = first + i;
        const sector = data.subarray(i * SECTOR, (i + 1) * SECTOR);
        const meanwhile = during.filter((op) => op.first <= place && place < op.first + op.count);
        const possible = [...(before[i] ?? []), ...meanwhile];
        if (possible.some(({ acked }) => acked > began) && isMixed(sector, place, possible)) continue;
        const value = readValue(sector, place);
        if (!possible.some((operation) => operation.value === value))
          throw new Error(wrongSector(place, value, possible));
      }
    };
  }

  /** After a restart: checks the whole volume, and what it holds is what it must hold from now on. */
  settle(content: Buffer): void {
    const now = ++this.#clock;
    readValues(content, 0).forEach((value, sector) => {
      const possible = this.at(sector);
      const found = possible.find((operation) => operation.value === value);
      if (found === undefined) throw new Error(wrongSector(sector, value, possible));
      this.#possible[sector] = [{ ...found, issued: now, acked: now }];
    });
  }

  beginCut(): Cut {
    const cut: Cut = { called: ++this.#clock, before: this.#possible.slice(), during: [] };
    this.#cuts.add(cut);
    return cut;
  }

  /** The creation returned, or its server is dead. */
  endCut(cut: Cut): void {
    this.#cuts.delete(cut);
  }

  checkCut(cut: Cut, content: Buffer): void {
    const values = readValues(content, 0);
    const seen = new Set(values);
    const since = cut.during.filter(({ value }) => value !== 0 && seen.has(value));
    const time = Math.max(cut.called, ...since.map(({ issued }) => issued));
    const during = new Map<number, Operation[]>();
    for (const operation of cut.during) {
      for (let sector = operation.first; sector < operation.first + operation.count; sector++)
        during.set(sector, [...(during.get(sector) ?? []), operation]);
    }
    values.forEach((value, sector) => {
      const all = [...(cut.before[sector] ?? []), ...(during.get(sector) ?? [])];
      const ruledOut = (old: Operation) =>
        all.some((newer) => newer.kind !== "trim" && newer.acked < time && newer.issued > old.acked);
      if (!all.some((operation) => operation.value === value && !ruledOut(operation)))
        throw new Error(`as of time ${time} (called at ${cut.called}): ${wrongSector(sector, value, all)}`);
    });
  }
}

/** The content of a write. */
export function contentOf({ value, first, count }: Operation): Buffer {
  const data = Buffer.alloc(count * SECTOR);
  for (let i = 0; i < count; i++) data.fill(tag(value, first + i), i * SECTOR, (i + 1) * SECTOR);
  return data;
}

function tag(value: number, sector: number): Buffer {
  const bytes = Buffer.alloc(16);
  bytes.writeUInt32BE(MAGIC, 0);
  bytes.writeUInt32BE(value, 4);
  bytes.writeBigUInt64BE(BigInt(sector), 8);
  return bytes;
}

/** Throws for a sector that is torn, of another place, or neither zeros nor written by an operation. */
export function readValues(data: Buffer, first: number): number[] {
  return Array.from({ length: data.length / SECTOR }, (_, i) =>
    readValue(data.subarray(i * SECTOR, (i + 1) * SECTOR), first + i),
  );
}

function readValue(sector: Buffer, place: number): number {
  if (sector.equals(ZEROS)) return 0;
  const value = sector.readUInt32BE(4);
  if (!sector.equals(Buffer.alloc(SECTOR, tag(value, place))))
    throw new Error(`sector ${place} holds what nobody wrote there: ${sector.toString("hex")}`);
  return value;
}

/** Whether every word of 8 bytes is one that a possible operation left there. */
function isMixed(sector: Buffer, place: number, possible: readonly Operation[]): boolean {
  const left = possible.map(({ value }) => (value === 0 ? ZEROS.subarray(0, 16) : tag(value, place)));
  for (let at = 0; at < SECTOR; at += 8) {
    const word = sector.subarray(at, at + 8);
    if (!left.some((bytes) => bytes.subarray(at % 16, (at % 16) + 8).equals(word))) return false;
  }
  return true;
}

function wrongSector(sector: number, value: number, possible: readonly Operation[]): string {
  const shown = possible.map(
    ({ value: v, kind, issued, acked }) => `${v} (${kind}, ${issued} to ${acked === NEVER ? "?" : acked})`,
  );
  return `sector ${sector} holds ${value}, but only these are possible: ${shown.join(", ")}`;
}
