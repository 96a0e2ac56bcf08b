// What commands print: JSON, tables, notes, colour.
//
// OU1 Results go to stdout; notes, progress and errors to stderr.
// OU2 Colour only on a terminal and never with NO_COLOR.
import { oneLine } from "../volume/errors.js";

export function print(text: string): void {
  process.stdout.write(`${text}\n`);
}

export function printJson(value: unknown): void {
  print(JSON.stringify(value, null, 2));
}

/** A line on stderr that is no error. */
export function note(text: string): void {
  process.stderr.write(`csnap: ${oneLine(text)}\n`);
}

const styles = { bold: 1, red: 31, green: 32, yellow: 33 } as const;

export function styled(text: string, style: keyof typeof styles): string {
  return useColour() ? `\u001b[${styles[style]}m${text}\u001b[0m` : text;
}

function useColour(): boolean {
  const { NO_COLOR, TERM } = process.env;
  return process.stdout.isTTY === true && !NO_COLOR && TERM !== "dumb";
}

export interface Column<T> {
  readonly title: string;
  readonly right?: boolean;
  readonly cell: (row: T) => string;
}

/** Lines of a table: titles, then rows, columns two blanks apart. */
export function tableLines<T>(columns: readonly Column<T>[], rows: readonly T[]): string[] {
  const cells = rows.map((row) => columns.map((column) => column.cell(row)));
  const widths = columns.map((column, i) =>
    Math.max(column.title.length, ...cells.map((row) => row[i]?.length ?? 0)),
  );
  const line = (texts: readonly string[]) =>
    texts
      .map((text, i) => (columns[i]?.right ? text.padStart(widths[i] ?? 0) : text.padEnd(widths[i] ?? 0)))
      .join("  ")
      .trimEnd();
  return [line(columns.map((column) => column.title)), ...cells.map(line)];
}

export function printTable<T>(columns: readonly Column<T>[], rows: readonly T[]): void {
  const [titles = "", ...lines] = tableLines(columns, rows);
  print(styled(titles, "bold"));
  for (const line of lines) print(line);
}

/** `1,234,567` */
export function grouped(count: number): string {
  return String(count).replace(/\B(?=(\d{3})+(?!\d))/g, ",");
}

/** `3 snapshots`, `1 snapshot` */
export function counted(count: number, noun: string, plural = `${noun}s`): string {
  return `${grouped(count)} ${count === 1 ? noun : plural}`;
}

/** Seconds are enough for a person. */
export function shortTime(iso: string): string {
  return iso.replace(/\.\d+Z$/, "Z");
}
