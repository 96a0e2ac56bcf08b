// Errors that a person reads. Everything a command, the control API or the server refuses ends here
// or in the addon's NativeError; both carry a stable code and one line of text.
//
// E1 The text is one line that names the object, the cause and the remedy; it never holds a stack.
// E2 This file doesn't load the addon: NativeError is recognised by its name, so that `--help`,
//    usage errors and the control client work without it.
import type { NativeErrorCode } from "../native.js";

/** Codes beside those of native/base/error_codes.def. */
export type ErrorCode =
  | NativeErrorCode
  /** the command line or a request is wrong: exit status 2, HTTP 400 */
  | "USAGE"
  /** no server answers for a volume where one is needed */
  | "NOT_SERVED"
  /** the control API answered something that is not its contract */
  | "PROTOCOL"
  /** the operating system refused access */
  | "ACCESS"
  /** a program that a command needs is missing */
  | "MISSING_TOOL"
  /** an administrator has disabled the service */
  | "DISABLED"
  /** a control socket answers for another volume of this name */
  | "BUSY_NAME";

export class CsnapError extends Error {
  readonly code: ErrorCode;
  constructor(code: ErrorCode, message: string) {
    super(oneLine(message));
    this.name = "CsnapError";
    this.code = code;
  }
}

/** A wrong command line or setting (exit status 2). */
export function usageError(message: string): CsnapError {
  return new CsnapError("USAGE", message);
}

interface SystemError extends Error {
  readonly code: string;
  readonly syscall?: string;
  readonly path?: string;
}

function isSystemError(error: unknown): error is SystemError {
  return error instanceof Error && "syscall" in error && "code" in error && typeof error.code === "string";
}

/** The stable code of any error; IO_ERROR for what the operating system said, FAILED for the rest. */
export function codeOf(error: unknown): ErrorCode {
  if (error instanceof CsnapError) return error.code;
  if (isNativeError(error)) return error.code;
  if (isSystemError(error)) return systemErrorCode(error.code);
  return "FAILED";
}

function systemErrorCode(code: string): ErrorCode {
  if (code === "ENOENT") return "NOT_FOUND";
  if (code === "EEXIST") return "ALREADY_EXISTS";
  if (code === "EACCES" || code === "EPERM") return "ACCESS";
  if (code === "ENOSPC" || code === "EDQUOT" || code === "EFBIG") return "NO_SPACE";
  return "IO_ERROR";
}

export function isNativeError(error: unknown): error is Error & { code: NativeErrorCode; errno: number } {
  return (
    error instanceof Error &&
    error.name === "NativeError" &&
    "code" in error &&
    typeof error.code === "string"
  );
}

const systemTexts: Readonly<Record<string, string>> = {
  ENOENT: "there is no such file or directory",
  EACCES: "permission denied",
  EPERM: "the operation is not permitted",
  EEXIST: "it exists already",
  ENOSPC: "the file system is full",
  EDQUOT: "the disk quota is used up",
  EFBIG: "the file would be too large for its file system",
  EISDIR: "it is a directory",
  ENOTDIR: "a part of the path is not a directory",
  EROFS: "the file system is read-only",
  EADDRINUSE: "the address is in use by another process",
  EADDRNOTAVAIL: "this host has no such address",
  ELOOP: "too many symbolic links",
  EMFILE: "too many open files",
};

/** What the operating system's error means, in words. */
export function systemText(error: unknown): string {
  if (!isSystemError(error)) return oneLine(error instanceof Error ? error.message : String(error));
  const text = systemTexts[error.code] ?? error.code;
  return error.path === undefined ? text : `${error.path}: ${text}`;
}

/** The line for a person, without any prefix. */
export function messageOf(error: unknown): string {
  if (error instanceof CsnapError || isNativeError(error)) return oneLine(error.message);
  return systemText(error);
}

export function oneLine(text: string): string {
  return text.replace(/\s*[\r\n]+\s*/g, " ").trim();
}
