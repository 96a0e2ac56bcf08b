// `csnap attach`: asks the host's agent for a device, and mounts it where --mount says.
import { type Command, InvalidArgumentError } from "commander";
import type { DeviceRecord } from "../../agent/model.js";
import { mountDevice } from "../../agent/mount.js";
import { AgentClient, type AttachBody, agentSocketPath } from "../../agent/service.js";
import { deviceIndex } from "../../agent/sysfs.js";
import { parseObjectName } from "../../volume/names.js";
import { parseDuration } from "../../volume/sizes.js";
import { type Context, contextOf, examples, jsonOption } from "../context.js";
import { print, printJson } from "../output.js";

interface AttachOptions {
  readonly device?: number;
  readonly readOnly?: boolean;
  readonly mount?: string;
  readonly onLost?: number | "hang";
  readonly connections?: number;
  readonly json?: boolean;
}

const defaultErrorMs = 60_000;

export function registerAttach(program: Command): void {
  const command = program
    .command("attach")
    .summary("attach a volume or snapshot as /dev/nbdX")
    .description(
      "Asks this host's agent (`csnap agent`) to attach an export as a block device, and prints the device's path once it is usable. The device waits while its server restarts or moves. A snapshot is read-only.",
    )
    .argument("<volume[@snapshot]>", "what to attach")
    .option("--device <path>", "this device, such as /dev/nbd3 (default: a free one)", parseDevice)
    .option("--read-only", "attach the origin for reading only")
    .option("--mount <dir>", "mount its file system there (a snapshot: read-only, its journal left alone)")
    .option(
      "--on-lost <what>",
      "while no server is there: hang, or error[:TIME] for I/O errors after TIME (60s) (default: hang)",
      parseOnLost,
    )
    .option(
      "--connections <n>",
      "connections to the server; the kernel's client needs exactly 1",
      parseConnections,
    )
    .addOption(jsonOption())
    .action((name: string, options: AttachOptions) => attach(contextOf(command), name, options));
  examples(command, "csnap attach disk1", "csnap attach disk1@monday --mount /mnt/monday");
}

async function attach(context: Context, name: string, options: AttachOptions): Promise<void> {
  const { volume, snapshot } = parseObjectName(name);
  const client = new AgentClient(agentSocketPath(context.runDir));
  const body: AttachBody = {
    volume,
    snapshot: snapshot ?? null,
    read_only: options.readOnly ?? false,
    device: options.device ?? null,
    error_after_ms: typeof options.onLost === "number" ? options.onLost : null,
  };
  const record = await client.attach(body);
  if (options.mount !== undefined) await mountIt(client, record, options.mount);
  if (options.json) printJson(record);
  else print(record.device ?? "");
}

/** A device that can't be mounted is of no use to who asked for a mount. */
async function mountIt(client: AgentClient, record: DeviceRecord, directory: string): Promise<void> {
  try {
    await mountDevice(record.device ?? "", directory, record.read_only);
  } catch (error) {
    await client.detach(record.attachment, false).catch(() => {});
    throw error;
  }
}

function parseDevice(text: string): number {
  const index = deviceIndex(text);
  if (index === undefined || index > 32767) throw new InvalidArgumentError("it must be like /dev/nbd3");
  return index;
}

/** Milliseconds, or "hang" (commander takes a null for no value). */
function parseOnLost(text: string): number | "hang" {
  if (text === "hang") return "hang";
  if (text === "error") return defaultErrorMs;
  if (!text.startsWith("error:"))
    throw new InvalidArgumentError("it must be hang, error, or error:TIME as in error:90s");
  return parseDuration(text.slice("error:".length), "--on-lost error");
}

function parseConnections(text: string): number {
  if (text !== "1")
    throw new InvalidArgumentError(
      "it must be 1: with more, the kernel cuts a server that is merely slow, or waits 30 s after a crash",
    );
  return 1;
}
