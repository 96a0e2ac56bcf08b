// `csnap demo`: the main job on files in a temporary directory, shown step by step. Every figure is
// measured, every snapshot is read back through an NBD client and compared file by file.
import { copyFileSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import type { Command } from "commander";
import tmp from "tmp";
import { formatDuration, formatSize } from "../../volume/sizes.js";
import { examples } from "../context.js";
import {
  changedExtents,
  editImage,
  makeFileSystem,
  readThroughNbd,
  verifyImage,
  writeThroughNbd,
} from "../demo/disk.js";
import { DemoCsnap } from "../demo/server.js";
import { mustRun, needTools } from "../demo/tools.js";
import { changeTree, copyRealTree, type Manifest, manifestOf } from "../demo/tree.js";
import { grouped, print, styled } from "../output.js";

export function registerDemo(program: Command): void {
  const command = program
    .command("demo")
    .summary("show the main job on files in a temporary directory")
    .description(
      "Makes a disk image with a real file tree, serves it, takes two snapshots with changes between, and verifies every file of every snapshot through an NBD client. Works in a temporary directory below $TMPDIR, needs no root, leaves nothing behind.",
    )
    .option("--keep", "leave the files of the demo where they are")
    .action((options: { keep?: boolean }) => demo(options.keep ?? false));
  examples(command, "csnap demo", "TMPDIR=/data csnap demo --keep");
}

async function demo(keep: boolean): Promise<void> {
  await needTools();
  tmp.setGracefulCleanup();
  const scratch = tmp.dirSync({ prefix: "csnap-demo-", keep, unsafeCleanup: true });
  const csnap = new DemoCsnap(scratch.name);
  const interrupted = () => {
    csnap.kill();
    process.exit(130); // removes the files through tmp's exit handler
  };
  process.once("SIGINT", interrupted);
  try {
    await new Demo(scratch.name, csnap).tell();
    if (keep) print(`\nThe files are in ${scratch.name}.`);
  } finally {
    process.off("SIGINT", interrupted);
    csnap.kill();
    if (!keep) scratch.removeCallback();
  }
}

/** One run of the demo, its steps in the order they happen. */
class Demo {
  private readonly tree: string;
  private readonly origin: string;
  private readonly working: string;
  private uri = "";
  /** export → what its files must be */
  private readonly expected = new Map<string, Manifest>();

  constructor(
    private readonly directory: string,
    private readonly csnap: DemoCsnap,
  ) {
    this.tree = join(directory, "tree");
    this.origin = join(directory, "origin.img");
    this.working = join(directory, "working.img");
  }

  async tell(): Promise<void> {
    const started = performance.now();
    print(`csnap demo in ${this.directory}`);
    await this.makeOrigin();
    await this.makeVolume();
    await this.takeSnapshot("before");
    await this.change(1, 9);
    await this.takeSnapshot("after");
    await this.change(2, 7);
    await this.verify();
    await this.showSpace();
    await this.stop();
    print(`\nAll of this took ${formatDuration(performance.now() - started)}.`);
    this.tellHowTo();
  }

  private async makeOrigin(): Promise<void> {
    title("1. A disk image with a real file tree: the origin");
    const tree = copyRealTree(this.tree);
    const bytes = Math.ceil((tree.sizeBytes * 2.5 + (32 << 20)) / (1 << 20)) * (1 << 20);
    await timed(`mkfs.ext4 -d ${tree.source} origin.img`, () =>
      makeFileSystem(this.tree, this.origin, bytes),
    );
    print(
      `   ${grouped(tree.fileCount)} files, ${formatSize(tree.sizeBytes)}, on a disk of ${formatSize(bytes)}`,
    );
  }

  private async makeVolume(): Promise<void> {
    title("2. A snapshot store for it, and a server");
    const store = join(this.directory, "demo.store");
    await timed("csnap init demo --origin origin.img --store demo.store --store-size 256M", () =>
      this.csnap.run("init", "demo", "--origin", this.origin, "--store", store, "--store-size", "256M"),
    );
    this.uri = await timed("csnap serve demo", () => this.csnap.serve("demo"));
    print(`   ready: ${this.uri}`);
    await timed("nbdcopy demo working.img   (the disk as its user sees it)", () =>
      readThroughNbd(this.exportUri("demo"), this.working),
    );
  }

  private async takeSnapshot(name: string): Promise<void> {
    title(`${name === "before" ? 3 : 5}. A snapshot: demo@${name}`);
    this.expected.set(`demo@${name}`, manifestOf(this.tree));
    await timed(`csnap snapshot demo@${name}`, () => this.csnap.run("snapshot", `demo@${name}`));
  }

  /** Edits files with the file system's own tool and writes the changed blocks through NBD. */
  private async change(round: number, stride: number): Promise<void> {
    title(`${round === 1 ? 4 : 6}. Changes on the live disk, written through NBD`);
    const former = join(this.directory, "former.img");
    copyFileSync(this.working, former);
    const { edits, newDirectory } = changeTree(this.tree, round, stride);
    await editImage(this.working, this.tree, newDirectory, edits, join(this.directory, "edits"));
    const extents = changedExtents(former, this.working);
    const bytes = extents.reduce((sum, extent) => sum + extent.length, 0);
    await timed(`${grouped(extents.length)} writes, ${formatSize(bytes)}, then a flush`, () =>
      writeThroughNbd(this.exportUri("demo"), this.working, extents),
    );
    const removed = edits.filter((edit) => edit.kind === "remove").length;
    print(`   ${edits.length - removed} files written, ${removed} removed`);
    this.expected.delete("demo"); // the live disk comes last
    this.expected.set("demo", manifestOf(this.tree));
  }

  private async verify(): Promise<void> {
    title("7. Every snapshot and the live disk, read back through NBD: fsck, then every file by SHA-256");
    for (const [name, manifest] of this.expected) {
      const image = join(this.directory, "read.img");
      const unpacked = join(this.directory, `files-${name}`);
      mkdirSync(unpacked);
      const files = await timed(`nbdcopy ${name}, e2fsck, compare`, async () => {
        await readThroughNbd(this.exportUri(name), image);
        return verifyImage(image, unpacked, manifest);
      });
      print(`   ${styled("ok", "green")}: ${name} is clean, all ${grouped(files)} files are as they were`);
    }
  }

  private async showSpace(): Promise<void> {
    title("8. Space, and a check of the whole store");
    print("   $ csnap list demo");
    print(indent(await this.csnap.run("list", "demo")));
    print("   $ csnap check demo --data");
    print(indent(await this.csnap.run("check", "demo", "--data")));
  }

  private async stop(): Promise<void> {
    title("9. Stop the server: the origin alone is current");
    await timed("SIGTERM", () => this.csnap.stop());
    await mustRun("cmp", this.origin, this.working);
    print(`   ${styled("ok", "green")}: origin.img is byte for byte the live disk`);
  }

  private tellHowTo(): void {
    print(`
The same on your own disk (it must not be mounted; mount it through NBD instead):

  csnap init disk1 --origin /dev/sdX --store /var/lib/disk1.store
  csnap serve disk1                     # prints the URI; keep it running
  nbd-client -unix /run/csnap/disk1.sock /dev/nbd0 -N disk1 -b 512
  mount /dev/nbd0 /mnt                  # as root, after modprobe nbd
  csnap snapshot disk1@monday
  csnap list disk1`);
  }

  private exportUri(name: string): string {
    return this.uri.replace(":///?", `:///${name}?`);
  }
}

function title(text: string): void {
  print(`\n${styled(text, "bold")}`);
}

async function timed<T>(what: string, work: () => Promise<T>): Promise<T> {
  const started = performance.now();
  const result = await work();
  print(`   $ ${what.padEnd(72)} ${formatDuration(performance.now() - started).padStart(8)}`);
  return result;
}

function indent(text: string): string {
  return text.trimEnd().replace(/^/gm, "     ");
}
