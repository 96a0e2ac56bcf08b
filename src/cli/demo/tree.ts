// The real file tree that the demo puts on its disk, the changes it makes, and checksums of all files.
import { createHash } from "node:crypto";
import {
  appendFileSync,
  cpSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { CsnapError } from "../../volume/errors.js";

export interface Tree {
  readonly source: string;
  readonly root: string;
  readonly fileCount: number;
  readonly sizeBytes: number;
}

/** Path below the root → SHA-256 of the content. */
export type Manifest = ReadonlyMap<string, string>;

const leastBytes = 4 << 20;
const mostBytes = 160 << 20;

/** Trees that are there wherever csnap is: Node's headers, else documentation, else csnap itself. */
function candidates(): string[] {
  const prefix = join(dirname(process.execPath), "..");
  const ownPackage = fileURLToPath(new URL("../../..", import.meta.url));
  return [
    join(prefix, "include/node"),
    "/usr/include/node",
    "/usr/include/nodejs",
    join(prefix, "lib/node_modules/npm"),
    "/usr/include",
    "/usr/share/doc",
    ownPackage,
  ];
}

/** Copies the first fitting tree to `root`. */
export function copyRealTree(root: string): Tree {
  for (const source of candidates()) {
    const files = listFiles(source);
    const sizeBytes = files.reduce((sum, file) => sum + lstatSync(join(source, file)).size, 0);
    if (sizeBytes < leastBytes || sizeBytes > mostBytes) continue;
    for (const file of files) {
      const target = join(root, file);
      mkdirSync(dirname(target), { recursive: true });
      cpSync(join(source, file), target);
    }
    return { source, root, fileCount: files.length, sizeBytes };
  }
  throw new CsnapError(
    "NOT_FOUND",
    `demo: no file tree of 4 to 160 MiB was found in ${candidates().join(", ")}`,
  );
}

/** Regular files below a directory, sorted; names that debugfs can't take in a script are left out. */
export function listFiles(directory: string): string[] {
  let names: string[];
  try {
    names = readdirSync(directory, { recursive: true, encoding: "utf8" });
  } catch {
    return [];
  }
  return names.filter((name) => /^[\w./+@-]+$/.test(name) && isReadableFile(join(directory, name))).sort();
}

function isReadableFile(path: string): boolean {
  const stat = lstatSync(path, { throwIfNoEntry: false });
  return stat?.isFile() === true && (stat.mode & 0o444) === 0o444;
}

export function manifestOf(directory: string): Manifest {
  const files = readdirSync(directory, { recursive: true, encoding: "utf8", withFileTypes: true });
  const manifest = new Map<string, string>();
  for (const file of files) {
    if (!file.isFile()) continue;
    const path = join(file.parentPath, file.name);
    manifest.set(
      path.slice(directory.length + 1),
      createHash("sha256").update(readFileSync(path)).digest("hex"),
    );
  }
  return manifest;
}

/** The first differences in words, empty if the trees are equal. */
export function differences(expected: Manifest, found: Manifest): string[] {
  const result: string[] = [];
  for (const [path, sum] of expected) {
    const other = found.get(path);
    if (other === undefined) result.push(`${path} is missing`);
    else if (other !== sum) result.push(`${path} differs`);
  }
  for (const path of found.keys()) if (!expected.has(path)) result.push(`${path} should not be there`);
  return result;
}

export interface Edit {
  readonly kind: "write" | "remove";
  /** below the root */
  readonly path: string;
}

/**
 * Changes the tree on the host as an upgrade would: every `stride`-th file gets new content, some are
 * removed, one directory is new. Returns what was done, to be repeated on the disk.
 */
export function changeTree(
  root: string,
  round: number,
  stride: number,
): { edits: Edit[]; newDirectory: string } {
  const edits: Edit[] = [];
  for (const [i, path] of listFiles(root).entries()) {
    if (i % stride !== round % stride) continue;
    if (i % (stride * 5) === round % stride) {
      rmSync(join(root, path));
      edits.push({ kind: "remove", path });
    } else {
      appendFileSync(join(root, path), `\nchanged in round ${round}\n`);
      edits.push({ kind: "write", path });
    }
  }
  const newDirectory = `new-in-round-${round}`;
  mkdirSync(join(root, newDirectory));
  for (let i = 0; i < 20; i += 1) {
    const path = `${newDirectory}/file-${i}`;
    writeFileSync(join(root, path), `file ${i} of round ${round}\n`.repeat(500 * (i + 1)));
    edits.push({ kind: "write", path });
  }
  return { edits, newDirectory };
}
