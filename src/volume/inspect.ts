// What a path given as origin or store is on this host: file or block device, how large, and who
// uses it already (mounted, swap, behind a loop device, under device-mapper or md). Called by init,
// import and serve before anything is opened. The core's locks are the authority; this gives the
// line that names the mount point.
import {
  closeSync,
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  realpathSync,
  statSync,
} from "node:fs";
import { join } from "node:path";
import { CsnapError, codeOf, systemText } from "./errors.js";

const sectorBytes = 512;

export interface Target {
  readonly kind: "file" | "device";
  /** as given, made absolute by the caller */
  readonly path: string;
  readonly realPath: string;
  readonly sizeBytes: number;
  /** of a file: its file system and inode; of a device: its number. Equal iff the same object. */
  readonly identity: string;
  /** MAJOR:MINOR of a device, or of the file system that holds the file */
  readonly deviceNumber: string;
}

/** `what` is 'origin' or 'store'. Undefined: nothing is there. */
export function inspectTarget(path: string, what: string): Target | undefined {
  try {
    const stat = statSync(path);
    const realPath = realpathSync(path);
    if (stat.isBlockDevice()) {
      const deviceNumber = deviceText(stat.rdev);
      const sizeBytes = deviceBytes(deviceNumber);
      return { kind: "device", path, realPath, sizeBytes, identity: `b${deviceNumber}`, deviceNumber };
    }
    if (stat.isFile()) {
      const deviceNumber = deviceText(stat.dev);
      return {
        kind: "file",
        path,
        realPath,
        sizeBytes: stat.size,
        identity: `f${deviceNumber}:${stat.ino}`,
        deviceNumber,
      };
    }
    const kind = stat.isDirectory() ? "a directory" : "neither a file nor a block device";
    throw new CsnapError(
      "INVALID_ARGUMENT",
      `${what} ${path} is ${kind}: name a disk image or a block device`,
    );
  } catch (error) {
    if (error instanceof CsnapError) throw error;
    if (codeOf(error) === "NOT_FOUND") return undefined;
    throw new CsnapError(codeOf(error), `${what} can't be used: ${systemText(error)}`);
  }
}

/** The origin must be there and hold at least one sector. */
export function needOrigin(path: string, remedy: string): Target {
  const target = inspectTarget(path, "origin");
  if (!target) throw new CsnapError("NOT_FOUND", `origin ${path} does not exist: ${remedy}`);
  if (target.sizeBytes < sectorBytes) {
    throw new CsnapError(
      "INVALID_ARGUMENT",
      `origin ${path} has ${target.sizeBytes} bytes, less than one sector of ${sectorBytes}: name a disk image or device that holds data`,
    );
  }
  return target;
}

export interface HostView {
  /** text of /proc/self/mountinfo */
  readonly mountinfo: string;
  /** text of /proc/swaps */
  readonly swaps: string;
  /** /sys, or a copy in tests */
  readonly sysfs: string;
}

export function hostView(): HostView {
  return { mountinfo: readText("/proc/self/mountinfo"), swaps: readText("/proc/swaps"), sysfs: "/sys" };
}

/** Throws the line that says who uses the target. */
export function refuseUsed(target: Target, what: string, host: HostView): void {
  const use = target.kind === "device" ? deviceUse(target, host) : fileUse(target, host);
  if (use !== undefined) throw new CsnapError("BUSY", `${what} ${target.path} ${use}`);
}

function deviceUse(target: Target, host: HostView): string | undefined {
  for (const number of [target.deviceNumber, ...partitionNumbers(target.deviceNumber, host.sysfs)]) {
    const who = number === target.deviceNumber ? "" : `has a partition (${number}) that `;
    const mounted = mountPointOf(number, host.mountinfo);
    if (mounted !== undefined) return `${who}is mounted on ${mounted}: unmount it first`;
    const [holder] = holdersOf(number, host.sysfs);
    if (holder !== undefined) return `${who}belongs to ${holder}: take that out of use first`;
  }
  return swapUse(target, host);
}

function swapUse(target: Target, host: HostView): string | undefined {
  return swapPaths(host.swaps).includes(target.realPath)
    ? `is swap space: swapoff ${target.realPath} first`
    : undefined;
}

function fileUse(target: Target, host: HostView): string | undefined {
  const loop = loopDeviceOf(target, host.sysfs);
  if (loop) {
    const mounted = mountPointOf(loop.number, host.mountinfo);
    const where = mounted === undefined ? "" : `, which is mounted on ${mounted}`;
    const undo = mounted === undefined ? "" : `umount ${mounted} and `;
    return `is behind the loop device /dev/${loop.name}${where}: ${undo}losetup -d /dev/${loop.name} first`;
  }
  return swapUse(target, host);
}

/** Where the block device MAJOR:MINOR is mounted, after mountinfo(5). */
export function mountPointOf(deviceNumber: string, mountinfo: string): string | undefined {
  for (const line of mountinfo.split("\n")) {
    const fields = line.split(" ");
    if (fields[2] === deviceNumber && fields[4] !== undefined) return unescapeMount(fields[4]);
  }
  return undefined;
}

/** True if `path` itself is a mount point. */
export function isMountPoint(path: string, mountinfo: string): boolean {
  return mountinfo.split("\n").some((line) => {
    const field = line.split(" ")[4];
    return field !== undefined && unescapeMount(field) === path;
  });
}

/** Blanks, tabs, newlines and backslashes are octal in mountinfo. */
function unescapeMount(field: string): string {
  return field.replace(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  );
}

function swapPaths(swaps: string): string[] {
  return swaps
    .split("\n")
    .slice(1)
    .map((line) => unescapeMount(line.split(/\s+/)[0] ?? ""))
    .filter((path) => path !== "");
}

function partitionNumbers(deviceNumber: string, sysfs: string): string[] {
  const directory = join(sysfs, "dev/block", deviceNumber);
  return entries(directory)
    .filter((entry) => existsSync(join(directory, entry, "partition")))
    .map((entry) => readText(join(directory, entry, "dev")).trim());
}

function holdersOf(deviceNumber: string, sysfs: string): string[] {
  return entries(join(sysfs, "dev/block", deviceNumber, "holders")).map((name) => `/dev/${name}`);
}

function loopDeviceOf(target: Target, sysfs: string): { name: string; number: string } | undefined {
  for (const name of entries(join(sysfs, "block")).filter((entry) => entry.startsWith("loop"))) {
    const backing = readText(join(sysfs, "block", name, "loop/backing_file")).replace(/\n$/, "");
    if (backing === "") continue;
    if (backing === target.realPath || sameFile(backing, target)) {
      return { name, number: readText(join(sysfs, "block", name, "dev")).trim() };
    }
  }
  return undefined;
}

function sameFile(path: string, target: Target): boolean {
  try {
    const stat = statSync(path);
    return `f${deviceText(stat.dev)}:${stat.ino}` === target.identity;
  } catch {
    return false; // another mount namespace's path, or a deleted file
  }
}

function entries(directory: string): string[] {
  return existsSync(directory) ? readdirSync(directory) : [];
}

function readText(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return ""; // without /proc or /sys nothing can be said
  }
}

/** Linux's dev_t as glibc splits it. */
function deviceText(device: number): string {
  const value = BigInt(device);
  const major = ((value >> 8n) & 0xfffn) | ((value >> 32n) & ~0xfffn);
  const minor = (value & 0xffn) | ((value >> 12n) & 0xffffff00n);
  return `${major}:${minor}`;
}

function deviceBytes(deviceNumber: string): number {
  const sectors = Number(readText(`/sys/dev/block/${deviceNumber}/size`).trim() || "0");
  return sectors * sectorBytes;
}

const signatureAreaBytes = 1 << 20;

/** True if the first MiB holds anything but zeros: somebody's data. */
export function holdsData(path: string): boolean {
  const fd = openSync(path, "r");
  try {
    const area = Buffer.alloc(signatureAreaBytes);
    const length = readSync(fd, area, 0, signatureAreaBytes, 0);
    return area.subarray(0, length).some((byte) => byte !== 0);
  } finally {
    closeSync(fd);
  }
}
