// `csnap check`: verifies a volume's metadata, with --data every checksum too.
import type { Command } from "commander";
import { CsnapError } from "../../volume/errors.js";
import type { CheckRecord } from "../../volume/model.js";
import { checkVolumeName } from "../../volume/names.js";
import { formatDuration, formatSize } from "../../volume/sizes.js";
import { withVolume } from "../access.js";
import { type Context, contextOf, examples, jsonOption } from "../context.js";
import { counted, print, printJson } from "../output.js";
import { type ProgressMode, progressOption, startProgress } from "../progress.js";

interface CheckOptions {
  readonly data?: boolean;
  readonly json?: boolean;
  readonly progress?: ProgressMode;
}

export function registerCheck(program: Command): void {
  const command = program
    .command("check")
    .summary("verify a volume")
    .description(
      "Verifies the store's metadata, whether the volume is served or not; writes nothing. Exit status 1 if anything is wrong.",
    )
    .argument("<volume>", "the volume")
    .option("--data", "verify the checksum of every stored chunk too")
    .addOption(progressOption())
    .addOption(jsonOption())
    .action((name: string, options: CheckOptions) =>
      check(contextOf(command), checkVolumeName(name), options),
    );
  examples(command, "csnap check disk1", "csnap check disk1 --data --json");
}

async function check(context: Context, name: string, options: CheckOptions): Promise<void> {
  const started = performance.now();
  const progress = startProgress("checking", options.progress, "items");
  let report: CheckRecord;
  try {
    report = await withVolume(context, name, "look", ({ operations }) =>
      operations.check({ data: options.data ?? false, onProgress: progress.update }),
    );
  } finally {
    progress.end();
  }
  if (options.json) printJson(report);
  else print(describe(report, performance.now() - started));
  if (!report.clean) {
    throw new CsnapError(
      "CORRUPT",
      `${name}: the check found ${counted(report.problem_count, "problem")}: keep the store as it is, copy what is still readable from the exports`,
    );
  }
}

function describe(report: CheckRecord, elapsedMs: number): string {
  const verified = report.chunks_verified > 0 ? `, ${counted(report.chunks_verified, "chunk")} verified` : "";
  const lost =
    report.lost_entries > 0 ? `, ${counted(report.lost_entries, "chunk")} known to be lost (EIO)` : "";
  const lines = report.problems.map((problem) => `  ${problem}`);
  if (report.problem_count > report.problems.length) {
    lines.push(`  … and ${counted(report.problem_count - report.problems.length, "problem")} more`);
  }
  const verdict = report.clean ? "clean" : counted(report.problem_count, "problem");
  return [
    `${report.volume}: ${verdict}: ${counted(report.snapshots, "snapshot")}, ${counted(report.entries, "exception")}, ${counted(report.index_nodes, "index node")}, ${formatSize(report.used)} in use${verified}${lost} (${formatDuration(elapsedMs)})`,
    ...lines,
  ].join("\n");
}
