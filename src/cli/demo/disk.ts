// The demo's disk as its user has it: an ext4 image that is changed, and the changed blocks written
// through NBD as a page cache would write them back.
import { closeSync, openSync, readSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { CsnapError, oneLine } from "../../volume/errors.js";
import { mustRun, runTool } from "./tools.js";
import { differences, type Edit, type Manifest, manifestOf } from "./tree.js";

const blockBytes = 4096;

export async function makeFileSystem(tree: string, image: string, bytes: number): Promise<void> {
  await mustRun("mkfs.ext4", "-q", "-F", "-L", "csnap-demo", "-d", tree, image, `${bytes / 1024}k`);
}

/** Repeats the edits of a tree on an image, with the file system's own tool. */
export async function editImage(
  image: string,
  tree: string,
  newDirectory: string,
  edits: readonly Edit[],
  scriptPath: string,
): Promise<void> {
  const lines = [`mkdir /${newDirectory}`];
  for (const { kind, path } of edits) {
    // debugfs takes the directory of `/NAME` for the current one: always go there first.
    lines.push(`cd /${dirname(path)}`);
    if (dirname(path) !== newDirectory) lines.push(`rm ${basename(path)}`);
    if (kind === "write") lines.push(`write ${join(tree, path)} ${basename(path)}`);
  }
  writeFileSync(scriptPath, `${lines.join("\n")}\n`);
  await mustRun("debugfs", "-w", "-f", scriptPath, image);
  await mustRun("e2fsck", "-fn", image);
}

export interface Extent {
  readonly offset: number;
  readonly length: number;
}

/** Where two images of one size differ, in whole blocks, neighbours joined. */
export function changedExtents(before: string, after: string): Extent[] {
  const step = 1 << 20;
  const extents: { offset: number; length: number }[] = [];
  const [a, b] = [openSync(before, "r"), openSync(after, "r")];
  const [left, right] = [Buffer.alloc(step), Buffer.alloc(step)];
  try {
    for (let base = 0; ; base += step) {
      const length = readSync(b, right, 0, step, base);
      if (length === 0) return extents;
      readSync(a, left, 0, step, base);
      for (let at = 0; at < length; at += blockBytes) {
        const end = Math.min(at + blockBytes, length);
        if (left.compare(right, at, end, at, end) === 0) continue;
        const last = extents.at(-1);
        if (last && last.offset + last.length === base + at) last.length += end - at;
        else extents.push({ offset: base + at, length: end - at });
      }
    }
  } finally {
    closeSync(a);
    closeSync(b);
  }
}

/** What nbdsh runs: writes the extents from the image, then flushes. */
const writeScript = `
import json, os
with open(os.environ["CSNAP_DEMO_EXTENTS"]) as f:
    extents = json.load(f)
with open(os.environ["CSNAP_DEMO_IMAGE"], "rb") as image:
    for extent in extents:
        offset, left = extent["offset"], extent["length"]
        while left > 0:
            image.seek(offset)
            data = image.read(min(left, 1 << 20))
            h.pwrite(data, offset)
            offset, left = offset + len(data), left - len(data)
h.flush()
h.shutdown()
`;

export async function writeThroughNbd(uri: string, image: string, extents: readonly Extent[]): Promise<void> {
  const list = `${image}.extents`;
  writeFileSync(list, JSON.stringify(extents));
  const { status, stderr } = await runTool(
    "env",
    `CSNAP_DEMO_EXTENTS=${list}`,
    `CSNAP_DEMO_IMAGE=${image}`,
    "nbdsh",
    "-u",
    uri,
    "-c",
    writeScript,
  );
  if (status !== 0) throw new CsnapError("FAILED", `demo: writing to ${uri} failed: ${oneLine(stderr)}`);
}

export async function readThroughNbd(uri: string, target: string): Promise<void> {
  await mustRun("nbdcopy", uri, target);
}

/** The file system in an image is sound and holds exactly the expected files. Returns how many. */
export async function verifyImage(image: string, unpacked: string, expected: Manifest): Promise<number> {
  await mustRun("e2fsck", "-fn", image);
  await mustRun("debugfs", "-R", `rdump / ${unpacked}`, image);
  const wrong = differences(expected, manifestOf(unpacked));
  if (wrong.length === 0) return expected.size;
  throw new CsnapError(
    "CORRUPT",
    `demo: ${image}: ${wrong.length} files are not as they were, such as: ${wrong[0]}`,
  );
}
