// What /sys and /proc tell of the kernel's NBD devices, and who uses one. Read by the agent; only
// set() writes. Nothing here opens a block device: a dead one would hang.
import { existsSync, readdirSync, readFileSync, readlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const blockDirectory = "/sys/block";
export const sectorBytes = 512;

export function devicePath(index: number): string {
  return `/dev/nbd${index}`;
}

/** The index of /dev/nbdN or nbdN, or undefined. */
export function deviceIndex(path: string): number | undefined {
  const match = /^(?:\/dev\/)?nbd(0|[1-9][0-9]{0,4})$/.exec(path);
  return match ? Number(match[1]) : undefined;
}

function readAttribute(index: number, name: string): string | undefined {
  try {
    return readFileSync(join(blockDirectory, `nbd${index}`, name), "utf8").trim();
  } catch {
    return undefined;
  }
}

/** The backend identifier, the uuid of the attachment; undefined where the device is not configured. */
export function backendOf(index: number): string | undefined {
  // `pid` is there while the device is configured.
  return readAttribute(index, "pid") === undefined ? undefined : (readAttribute(index, "backend") ?? "");
}

export function sizeBytesOf(index: number): number {
  return Number(readAttribute(index, "size") ?? 0) * sectorBytes;
}

/** Requests under way. */
export function inFlightOf(index: number): number {
  return (readAttribute(index, "inflight") ?? "0 0")
    .split(/\s+/)
    .reduce((sum, count) => sum + Number(count), 0);
}

/** Every configured NBD device, also those that are not ours. */
export function configuredDevices(): { readonly index: number; readonly backend: string }[] {
  if (!existsSync(blockDirectory)) return [];
  return readdirSync(blockDirectory)
    .flatMap((name) => deviceIndex(name) ?? [])
    .flatMap((index) => {
      const backend = backendOf(index);
      return backend === undefined ? [] : [{ index, backend }];
    })
    .sort((a, b) => a.index - b.index);
}

/** Writes a queue attribute; false where the kernel has none or refuses the value. */
export function setQueue(index: number, name: "io_timeout" | "max_sectors_kb", value: number): boolean {
  try {
    writeFileSync(join(blockDirectory, `nbd${index}`, "queue", name), String(value));
    return Number(queueValue(index, name)) === value;
  } catch {
    return false;
  }
}

export function queueValue(index: number, name: string): string | undefined {
  return readAttribute(index, join("queue", name));
}

/** Has this process CAP_SYS_ADMIN, which the kernel asks for where devices are made? */
export function mayAdminister(): boolean {
  const line = readLines("/proc/self/status").find((each) => each.startsWith("CapEff:"));
  const capSysAdmin = 1n << 21n;
  return line !== undefined && (BigInt(`0x${line.slice("CapEff:".length).trim()}`) & capSysAdmin) !== 0n;
}

/** One line a user of the device or of a partition of it, as far as this host can tell. */
export function usersOf(index: number): string[] {
  const own = `nbd${index}`;
  const nodes = [own, ...partitionsOf(own)];
  const numbers = new Map(nodes.map((node) => [readNumber(node), `/dev/${node}`]));
  return [...mountsOf(numbers), ...swapsOf(nodes), ...holdersOf(nodes), ...openersOf(nodes)];
}

export function partitionsOf(device: string): string[] {
  try {
    return readdirSync(join(blockDirectory, device)).filter((name) => name.startsWith(`${device}p`));
  } catch {
    return [];
  }
}

function readNumber(node: string): string {
  const device = /^nbd\d+/.exec(node)?.[0] ?? node;
  const path = node === device ? [device] : [device, node];
  try {
    return readFileSync(join(blockDirectory, ...path, "dev"), "utf8").trim();
  } catch {
    return "";
  }
}

export interface Mount {
  readonly device: string;
  readonly directory: string;
}

/** Mounts of these devices (by "major:minor"), newest last. */
export function findMounts(numbers: ReadonlyMap<string, string>): Mount[] {
  return readLines("/proc/self/mountinfo").flatMap((line) => {
    const fields = line.split(" ");
    const device = numbers.get(fields[2] ?? "");
    return device === undefined ? [] : [{ device, directory: unescapeMount(fields[4] ?? "") }];
  });
}

/** Where the device or a partition of it is mounted. */
export function mountsOfDevice(index: number): Mount[] {
  const own = `nbd${index}`;
  return findMounts(new Map([own, ...partitionsOf(own)].map((node) => [readNumber(node), `/dev/${node}`])));
}

function mountsOf(numbers: ReadonlyMap<string, string>): string[] {
  return findMounts(numbers).map(({ device, directory }) => `${device} is mounted at ${directory}`);
}

function swapsOf(nodes: readonly string[]): string[] {
  return readLines("/proc/swaps").flatMap((line) => {
    const path = line.split(/\s+/)[0] ?? "";
    return nodes.some((node) => path === `/dev/${node}`) ? [`${path} is used for swap`] : [];
  });
}

/** Device-mapper, md and the like. */
function holdersOf(nodes: readonly string[]): string[] {
  return nodes.flatMap((node) => {
    const device = /^nbd\d+/.exec(node)?.[0] ?? node;
    const directory = join(blockDirectory, ...(node === device ? [device] : [device, node]), "holders");
    try {
      return readdirSync(directory).map((holder) => `${holder} is built on /dev/${node}`);
    } catch {
      return [];
    }
  });
}

function openersOf(nodes: readonly string[]): string[] {
  const paths = new Set(nodes.map((node) => `/dev/${node}`));
  return readdirSync("/proc").flatMap((pid) => {
    if (!/^\d+$/.test(pid)) return [];
    try {
      const open = readdirSync(`/proc/${pid}/fd`).some((fd) => {
        try {
          return paths.has(readlinkSync(`/proc/${pid}/fd/${fd}`));
        } catch {
          return false;
        }
      });
      if (!open) return [];
      return [`process ${pid} (${readFileSync(`/proc/${pid}/comm`, "utf8").trim()}) has it open`];
    } catch {
      return [];
    }
  });
}

function readLines(path: string): string[] {
  try {
    return readFileSync(path, "utf8").trimEnd().split("\n");
  } catch {
    return [];
  }
}

/** mountinfo writes blanks and the like as \ooo. */
function unescapeMount(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_all, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  );
}
