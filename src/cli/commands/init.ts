// `csnap init`: makes the store for an origin and defines the volume.
import { type Command, Option } from "commander";
import { checkChunkSize, createVolume, defaultChunkBytes } from "../../volume/create.js";
import { loadNative } from "../../volume/load_native.js";
import { formatSize, isoTime, parseSize } from "../../volume/sizes.js";
import { contextOf, examples, jsonOption } from "../context.js";
import { print, printJson } from "../output.js";
import { type ProgressMode, progressOption, startProgress } from "../progress.js";

interface InitOptions {
  readonly origin: string;
  readonly store: string;
  readonly size?: string;
  readonly storeSize?: string;
  readonly chunkSize?: string;
  readonly onFull?: "drop-snapshots" | "refuse-writes";
  readonly force?: boolean;
  readonly json?: boolean;
  readonly progress?: ProgressMode;
}

export function registerInit(program: Command): void {
  const command = program
    .command("init")
    .summary("make the snapshot store for a disk image or device")
    .description(
      "Makes the snapshot store for an origin (a disk image or block device), allocated in full. The origin stays where and as it is.",
    )
    .argument("<volume>", "name of the new volume")
    .requiredOption("--origin <path>", "disk image or block device")
    .requiredOption("--store <path>", "file to make, or block device, for the snapshot store")
    .option("--size <size>", "make a missing origin: a sparse file of this size")
    .option(
      "--store-size <size>",
      "size of a store file (default: 20 % of the origin, at least 1 GiB where that fits)",
    )
    .option("--chunk-size <size>", "unit of copying, a power of two from 4k to 1M (default: 16k)")
    .addOption(
      new Option("--on-full <policy>", "when the store fills (default: drop-snapshots)").choices([
        "drop-snapshots",
        "refuse-writes",
      ]),
    )
    .option("--force", "overwrite what the store path holds")
    .addOption(progressOption())
    .addOption(jsonOption())
    .action((name: string, options: InitOptions) => init(command, name, options));
  examples(
    command,
    "csnap init disk1 --origin /data/disk1.img --store /data/disk1.store",
    "csnap init db --origin /dev/vg0/db --store /dev/vg0/db-store --on-full refuse-writes",
  );
}

async function init(command: Command, name: string, options: InitOptions): Promise<void> {
  const context = contextOf(command);
  const defaults = context.settings.init;
  const chunkText = options.chunkSize ?? defaults.chunkSize;
  const request = {
    name,
    origin: options.origin,
    store: options.store,
    ...(options.size !== undefined && { originBytes: parseSize(options.size, "--size") }),
    ...(options.storeSize !== undefined && { storeBytes: parseSize(options.storeSize, "--store-size") }),
    chunkBytes:
      chunkText === undefined ? defaultChunkBytes : checkChunkSize(parseSize(chunkText, "--chunk-size")),
    onFull: options.onFull ?? defaults.onFull ?? ("drop-snapshots" as const),
    force: options.force ?? false,
  };
  const progress = startProgress("allocating", options.progress, "bytes");
  try {
    const made = await createVolume(loadNative, context.stateDir, {
      ...request,
      onProgress: progress.update,
    });
    progress.end();
    if (options.json) {
      printJson({
        volume: name,
        uuid: made.volumeUuid,
        created: isoTime(made.createdNs),
        origin: { path: made.originPath, size: made.originBytes },
        store: { path: request.store, uuid: made.storeUuid, size: made.storeBytes },
        chunk_size: made.chunkBytes,
        on_full: request.onFull,
      });
      return;
    }
    print(`volume ${name}: origin ${request.origin} (${formatSize(made.originBytes)})`);
    print(
      `store ${request.store} (${formatSize(made.storeBytes)}, chunks of ${formatSize(made.chunkBytes)})`,
    );
    print(`Serve it with \`csnap serve ${name}\`.`);
  } finally {
    progress.end();
  }
}
