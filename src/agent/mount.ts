// Mounting an attached device, for `csnap attach --mount` and `csnap detach DIR`. A snapshot holds a
// file system as a power loss would leave it, and can't be written: it is mounted without replaying
// its journal, and with a uuid that its origin may have mounted at the same time.
import { execFile } from "node:child_process";
import { statSync } from "node:fs";
import { promisify } from "node:util";
import { CsnapError, oneLine } from "../volume/errors.js";

const run = promisify(execFile);

const readOnlyOptions: Readonly<Record<string, string>> = {
  ext3: "ro,noload",
  ext4: "ro,noload",
  xfs: "ro,norecovery,nouuid",
  btrfs: "ro,nologreplay",
};

export async function mountDevice(device: string, directory: string, readOnly: boolean): Promise<void> {
  checkDirectory(directory);
  const type = await fileSystemOf(device);
  if (type === undefined)
    throw new CsnapError(
      "INVALID_ARGUMENT",
      `${device} holds no file system (is it on a partition?): mount what it holds by hand, or make one with mkfs`,
    );
  // _netdev: at shutdown the service manager must unmount it before it ends the agent and servers.
  const options = ["_netdev", ...(readOnly ? [readOnlyOptions[type] ?? "ro"] : [])].join(",");
  await call(
    "mount",
    ["-t", type, "-o", options, device, directory],
    `${device} can't be mounted at ${directory}`,
  );
}

export async function unmount(directory: string): Promise<void> {
  await call("umount", [directory], `${directory} can't be unmounted`);
}

function checkDirectory(directory: string): void {
  const found = statSync(directory, { throwIfNoEntry: false });
  if (!found?.isDirectory())
    throw new CsnapError("NOT_FOUND", `${directory} is no directory: make it first, it is where to mount`);
}

/** Its type as mount(8) knows it, or undefined. */
async function fileSystemOf(device: string): Promise<string | undefined> {
  try {
    const { stdout } = await run("blkid", ["-p", "-o", "value", "-s", "TYPE", device]);
    return stdout.trim() || undefined;
  } catch (error) {
    if ((error as { code?: unknown }).code === 2) return undefined;
    throw failed(error, `${device} can't be looked at`, "blkid");
  }
}

async function call(program: string, args: readonly string[], what: string): Promise<void> {
  try {
    await run(program, args);
  } catch (error) {
    throw failed(error, what, program);
  }
}

function failed(error: unknown, what: string, program: string): CsnapError {
  const { code, stderr } = error as { code?: unknown; stderr?: string };
  if (code === "ENOENT")
    return new CsnapError("MISSING_TOOL", `${what}: there is no ${program}: install the package util-linux`);
  return new CsnapError("FAILED", `${what}: ${oneLine(stderr ?? "") || String(error)}`);
}
