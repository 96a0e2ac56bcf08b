// Where csnap keeps its state and its sockets (cli.md), and how the sockets of a volume are called.
//
// PA1 Two volumes never share a socket path: `NAME.sock` is always NBD, `NAME.control` always
//     control, and both end with their own suffix whatever NAME is.
import { existsSync, statSync } from "node:fs";
import { homedir } from "node:os";
import { join, resolve } from "node:path";
import { CsnapError, usageError } from "./errors.js";

export interface Directories {
  readonly stateDir: string;
  readonly runDir: string;
}

export interface DirectorySources {
  /** --state-dir */
  readonly stateDirOption?: string | undefined;
  /** of csnap.toml */
  readonly configStateDir?: string | undefined;
  readonly configRunDir?: string | undefined;
  readonly env: NodeJS.ProcessEnv;
  readonly isRoot: boolean;
}

export function findDirectories(sources: DirectorySources): Directories {
  const { env, isRoot } = sources;
  const stateDir =
    nonEmpty(sources.stateDirOption) ??
    nonEmpty(env.CSNAP_STATE_DIR) ??
    sources.configStateDir ??
    (isRoot
      ? "/var/lib/csnap"
      : join(nonEmpty(env.XDG_STATE_HOME) ?? join(homeOf(env), ".local/state"), "csnap"));
  const runDir = nonEmpty(env.CSNAP_RUN_DIR) ?? sources.configRunDir ?? defaultRunDir(sources, stateDir);
  return { stateDir: resolve(stateDir), runDir: resolve(runDir) };
}

/** Without $XDG_RUNTIME_DIR (cron, su) sockets live in the state directory: it is the user's own. */
function defaultRunDir({ env, isRoot }: DirectorySources, stateDir: string): string {
  if (isRoot) return "/run/csnap";
  const runtime = nonEmpty(env.XDG_RUNTIME_DIR);
  return runtime === undefined ? join(stateDir, "run") : join(runtime, "csnap");
}

function homeOf(env: NodeJS.ProcessEnv): string {
  return nonEmpty(env.HOME) ?? homedir();
}

function nonEmpty(text: string | undefined): string | undefined {
  return text === "" ? undefined : text;
}

export function nbdSocketPath(runDir: string, volume: string): string {
  return join(runDir, `${volume}.sock`);
}

export function controlSocketPath(runDir: string, volume: string): string {
  return join(runDir, `${volume}.control`);
}

/** sun_path of unix(7), without the closing NUL. */
const socketPathLimitBytes = 107;

export function checkSocketPath(path: string): string {
  const length = Buffer.byteLength(path);
  if (length > socketPathLimitBytes) {
    throw usageError(
      `socket path ${path} has ${length} bytes, and Linux allows ${socketPathLimitBytes}: choose a shorter run directory with $CSNAP_RUN_DIR`,
    );
  }
  return path;
}

/** The socket at `path` is there (alive or left behind). */
export function socketExists(path: string): boolean {
  return existsSync(path) && statSync(path).isSocket();
}

/** A path's directory must be there before a file is made in it. */
export function checkParentDirectory(path: string, what: string): void {
  const parent = resolve(path, "..");
  const found = existsSync(parent) ? statSync(parent) : undefined;
  if (!found?.isDirectory()) {
    throw new CsnapError(
      "NOT_FOUND",
      `${what} ${path}: the directory ${parent} does not exist: make it first`,
    );
  }
}
