// Makes a volume: checks origin and store as `csnap init` is given them, lets the core write the
// store, and writes the definition.
//
// CR1 Nothing is written before every check has passed.
// CR2 If making the store fails, files that this call made are removed again; others are never.
import { closeSync, ftruncateSync, openSync, statfsSync, unlinkSync } from "node:fs";
import { dirname, resolve } from "node:path";
import type { NativeBinding, OnFull, StoreSummary } from "../native.js";
import {
  checkNameIsFree,
  listDefinitions,
  loadDefinition,
  type VolumeDefinition,
  writeDefinition,
} from "./definition.js";
import { CsnapError, codeOf, messageOf, systemText, usageError } from "./errors.js";
import { holdsData, hostView, inspectTarget, needOrigin, refuseUsed, type Target } from "./inspect.js";
import { checkVolumeName } from "./names.js";
import { checkParentDirectory } from "./paths.js";
import { formatSize, sizeArgument } from "./sizes.js";

export interface CreateRequest {
  readonly name: string;
  readonly origin: string;
  readonly store: string;
  /** of an origin file to make */
  readonly originBytes?: number;
  readonly storeBytes?: number;
  readonly chunkBytes: number;
  readonly onFull: OnFull;
  readonly force: boolean;
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
}

export const defaultChunkBytes = 16 * 1024;
const chunkLimits = { least: 4096, most: 1024 * 1024 };
const originUnitBytes = 4096;
const minimalDefaultStoreBytes = 1024 ** 3;
const defaultStoreShare = 0.2;

export function checkChunkSize(bytes: number): number {
  const isPower = Number.isInteger(Math.log2(bytes));
  if (!isPower || bytes < chunkLimits.least || bytes > chunkLimits.most) {
    throw usageError(
      `--chunk-size ${sizeArgument(bytes)} is not allowed: it is a power of two from 4k to 1M`,
    );
  }
  return bytes;
}

export function checkNewOriginSize(bytes: number): number {
  if (bytes === 0 || bytes % originUnitBytes !== 0) {
    const next = Math.max(1, Math.ceil(bytes / originUnitBytes)) * originUnitBytes;
    throw usageError(`--size ${bytes} is not a multiple of ${originUnitBytes}: use ${sizeArgument(next)}`);
  }
  return bytes;
}

/** Design: 20 % of the origin, at least 1 GiB where that fits into `freeBytes`; whole MiB. */
export function defaultStoreBytes(originBytes: number, freeBytes: number): number {
  const share = roundUpMiB(originBytes * defaultStoreShare);
  return share < minimalDefaultStoreBytes && minimalDefaultStoreBytes <= freeBytes
    ? minimalDefaultStoreBytes
    : share;
}

function roundUpMiB(bytes: number): number {
  return Math.ceil(bytes / 1024 ** 2) * 1024 ** 2;
}

export async function createVolume(
  loadNative: () => Promise<NativeBinding>,
  stateDir: string,
  request: CreateRequest,
): Promise<StoreSummary> {
  checkVolumeName(request.name);
  checkNameIsFree(stateDir, request.name);
  const originPath = resolve(request.origin);
  const storePath = resolve(request.store);
  if (originPath === storePath) throw sameTarget(originPath);
  const foundOrigin = checkOrigin(originPath, request.originBytes);
  const foundStore = inspectTarget(storePath, "store");
  if (foundStore) checkFoundStore(foundStore, request);
  else checkParentDirectory(storePath, "store");
  if (foundOrigin && foundOrigin.identity === foundStore?.identity) throw sameTarget(originPath);
  checkUnclaimed(stateDir, originPath, foundOrigin, "origin");
  checkUnclaimed(stateDir, storePath, foundStore, "store");
  const originBytes = foundOrigin?.sizeBytes ?? request.originBytes ?? 0;
  const storeBytes = chooseStoreBytes(request, storePath, foundStore, originBytes);

  const native = await loadNative();
  if (!foundOrigin) makeSparseFile(originPath, originBytes);
  try {
    const { chunkBytes, onFull, force, onProgress } = request;
    const summary = await native.createStore({
      volumeName: request.name,
      originPath,
      storePath,
      storeBytes,
      chunkBytes,
      onFull,
      force,
      ...(onProgress && { onProgress }),
    });
    const uuid = summary.volumeUuid;
    writeDefinition(stateDir, { name: request.name, uuid, origin: originPath, store: storePath, serve: {} });
    return summary;
  } catch (error) {
    if (!foundOrigin) removeQuietly(originPath);
    if (!foundStore) removeQuietly(storePath);
    if (error instanceof CsnapError) throw error;
    const message = messageOf(error);
    const named = message.includes(storePath) || message.includes(originPath);
    throw new CsnapError(codeOf(error), named ? message : `store ${storePath} can't be made: ${message}`);
  }
}

function sameTarget(path: string): CsnapError {
  return new CsnapError(
    "INVALID_ARGUMENT",
    `origin and store are the same, ${path}: the store needs a file or device of its own`,
  );
}

function checkOrigin(path: string, newBytes: number | undefined): Target | undefined {
  const host = hostView();
  if (newBytes === undefined) {
    const target = needOrigin(path, "check the path, or have a sparse file made with --size SIZE");
    refuseUsed(target, "origin", host);
    return target;
  }
  checkNewOriginSize(newBytes);
  const found = inspectTarget(path, "origin");
  if (found) {
    throw new CsnapError(
      "ALREADY_EXISTS",
      `origin ${path} exists already (${formatSize(found.sizeBytes)}): leave out --size to use it as it is`,
    );
  }
  checkParentDirectory(path, "origin");
  return undefined;
}

/** A store that is there is overwritten only if it is empty, or with --force. */
function checkFoundStore(found: Target, { force, storeBytes }: CreateRequest): void {
  refuseUsed(found, "store", hostView());
  if (found.kind === "device" && storeBytes !== undefined) {
    throw usageError(`--store-size is for files: the device ${found.path} is used whole, leave it out`);
  }
  let hasData: boolean;
  try {
    hasData = holdsData(found.path);
  } catch (error) {
    throw new CsnapError(codeOf(error), `store can't be read: ${systemText(error)}`);
  }
  if (hasData && !force) {
    throw new CsnapError(
      "STORE_IN_USE",
      `store ${found.path} holds data already (perhaps another volume's store): choose another path, or overwrite it with --force`,
    );
  }
}

function checkUnclaimed(
  stateDir: string,
  path: string,
  found: Target | undefined,
  what: "origin" | "store",
): void {
  for (const other of otherDefinitions(stateDir)) {
    for (const use of ["origin", "store"] as const) {
      const isSame =
        other[use] === path || (found && inspectQuietly(other[use])?.identity === found.identity);
      if (isSame) {
        throw new CsnapError(
          "ALREADY_EXISTS",
          `${what} ${path} is the ${use} of volume '${other.name}' already: choose another, or \`csnap remove ${other.name}\` first`,
        );
      }
    }
  }
}

/** A broken definition of another volume must not keep this one from being made. */
function otherDefinitions(stateDir: string): VolumeDefinition[] {
  return listDefinitions(stateDir).flatMap((name) => {
    try {
      return [loadDefinition(stateDir, name)];
    } catch {
      return [];
    }
  });
}

function inspectQuietly(path: string): Target | undefined {
  try {
    return inspectTarget(path, "store");
  } catch {
    return undefined;
  }
}

/** 0 for a device, which is used whole. */
function chooseStoreBytes(
  request: CreateRequest,
  storePath: string,
  found: Target | undefined,
  originBytes: number,
): number {
  if (found?.kind === "device") return 0;
  const { bavail, bsize } = statfsSync(dirname(storePath));
  const freeBytes = bavail * bsize + (found?.sizeBytes ?? 0);
  const bytes = request.storeBytes ?? defaultStoreBytes(originBytes, freeBytes);
  if (bytes > freeBytes) {
    throw new CsnapError(
      "NO_SPACE",
      `store ${storePath} needs ${formatSize(bytes)}, and its file system has ${formatSize(freeBytes)} free: choose another place or a smaller --store-size`,
    );
  }
  return bytes;
}

function makeSparseFile(path: string, bytes: number): void {
  try {
    const fd = openSync(path, "wx", 0o600);
    try {
      ftruncateSync(fd, bytes);
    } finally {
      closeSync(fd);
    }
  } catch (error) {
    removeQuietly(path);
    throw new CsnapError(codeOf(error), `origin can't be made: ${systemText(error)}`);
  }
}

function removeQuietly(path: string): void {
  try {
    unlinkSync(path);
  } catch {
    // It was never made, or is beyond reach; the first error is the one to report.
  }
}
