// The control API's contract, shared by server and client: HTTP + JSON over a unix socket.
//
//     GET    /v1/status                     VolumeRecord
//     GET    /v1/snapshots                  SnapshotRecord[]
//     POST   /v1/snapshots                  CreateSnapshotRequest -> 201 SnapshotRecord
//     GET    /v1/snapshots/ID               SnapshotRecord; ID is a name or a uuid
//     PATCH  /v1/snapshots/ID               SnapshotChanges -> SnapshotRecord
//     DELETE /v1/snapshots/ID               DeleteResult
//     POST   /v1/snapshots/delete           {snapshots: ID[], dry_run} -> DeleteResult
//     DELETE /v1/hold?attachment=UUID       {ended: HoldRecord | null}: ends that attachment's hold
//     DELETE /v1/hold?force=1               the same, whosever the hold is (&attachment=UUID: only if it is
//                                           that one's), and the attachment is refused from then on
//     PATCH  /v1/properties                 PropertyChanges -> VolumeRecord
//     GET    /v1/events                     server-sent events, one EventRecord each
//     POST   /v1/check                      {data} -> JSON lines: {progress}, then {report} or {error}
//     GET    /v1/dump                       JSON lines
//
// Errors: 4xx or 5xx with {code, message}; `code` is stable, `message` is the line for a person.
//
// A1 A request's body is bounded by requestLimitBytes and is refused before it is read whole.
// A2 Unknown keys are refused, so that a misspelt one is never silently ignored.
import type { ErrorCode } from "../volume/errors.js";
import { CsnapError } from "../volume/errors.js";
import type { HoldRecord } from "../volume/model.js";
import { checkLabel, checkPriority, checkSnapshotName } from "../volume/names.js";
import type {
  CreateSnapshotRequest,
  EndHoldRequest,
  PropertyChanges,
  SnapshotChanges,
} from "../volume/operations.js";

export const requestLimitBytes = 64 * 1024;

export interface ErrorBody {
  readonly code: ErrorCode;
  readonly message: string;
}

const statuses: Partial<Record<ErrorCode, number>> = {
  USAGE: 400,
  INVALID_ARGUMENT: 400,
  OUT_OF_RANGE: 400,
  READ_ONLY: 403,
  ACCESS: 403,
  NOT_FOUND: 404,
  SNAPSHOT_DELETED: 404,
  ALREADY_EXISTS: 409,
  BUSY: 409,
  LIMIT: 409,
  NOT_SUPPORTED: 501,
  SHUTTING_DOWN: 503,
  NO_SPACE: 507,
};

export function httpStatus(code: ErrorCode): number {
  return statuses[code] ?? 500;
}

type JsonObject = Record<string, unknown>;

export function jsonObject(value: unknown, keys: readonly string[]): JsonObject {
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw badRequest("the body must be a JSON object");
  for (const key of Object.keys(value)) {
    if (!keys.includes(key)) throw badRequest(`unknown key '${key}': allowed are ${keys.join(", ")}`);
  }
  return value as JsonObject;
}

export function badRequest(message: string): CsnapError {
  return new CsnapError("USAGE", message);
}

function text(value: unknown, key: string): string {
  if (typeof value !== "string") throw badRequest(`'${key}' must be a text`);
  return value;
}

function flag(value: unknown, key: string): boolean {
  if (typeof value !== "boolean") throw badRequest(`'${key}' must be true or false`);
  return value;
}

function bytes(value: unknown, key: string): number {
  if (typeof value !== "number" || !Number.isSafeInteger(value) || value < 0) {
    throw badRequest(`'${key}' must be a number of bytes`);
  }
  return value;
}

function priority(value: unknown): number {
  if (typeof value !== "number") throw badRequest("'priority' must be a number");
  return checkPriority(value);
}

const labelLimit = 64;

function labels(value: unknown): Record<string, string> {
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw badRequest("'labels' must be an object");
  const found = Object.entries(value as JsonObject);
  if (found.length > labelLimit) throw badRequest(`'labels' holds more than ${labelLimit} labels`);
  return Object.fromEntries(
    found.map(([key, label]) => {
      const labelText = text(label, `labels.${key}`);
      checkLabel(key, labelText);
      return [key, labelText];
    }),
  );
}

export function parseCreateSnapshot(body: unknown): CreateSnapshotRequest {
  const value = jsonObject(body, ["name", "pinned", "priority", "labels"]);
  return {
    name: checkSnapshotName(text(value.name, "name")),
    pinned: value.pinned === undefined ? false : flag(value.pinned, "pinned"),
    priority: value.priority === undefined ? defaultPriority : priority(value.priority),
    labels: value.labels === undefined ? {} : labels(value.labels),
  };
}

/** Of a snapshot made without --priority: in the middle, so that others can be set apart both ways. */
export const defaultPriority = 50;

export function parseSnapshotChanges(body: unknown): SnapshotChanges {
  const value = jsonObject(body, ["pinned", "priority", "labels"]);
  return {
    ...(value.pinned !== undefined && { pinned: flag(value.pinned, "pinned") }),
    ...(value.priority !== undefined && { priority: priority(value.priority) }),
    ...(value.labels !== undefined && { labels: labels(value.labels) }),
  };
}

export function parsePropertyChanges(body: unknown): PropertyChanges {
  const value = jsonObject(body, ["on_full", "staged_limit", "cache_limit", "reclaim_rate"]);
  const onFull = value.on_full;
  if (onFull !== undefined && onFull !== "drop-snapshots" && onFull !== "refuse-writes") {
    throw badRequest("'on_full' must be drop-snapshots or refuse-writes");
  }
  return {
    ...(onFull !== undefined && { on_full: onFull }),
    ...(value.staged_limit !== undefined && { staged_limit: bytes(value.staged_limit, "staged_limit") }),
    ...(value.cache_limit !== undefined && { cache_limit: bytes(value.cache_limit, "cache_limit") }),
    ...(value.reclaim_rate !== undefined && { reclaim_rate: bytes(value.reclaim_rate, "reclaim_rate") }),
  };
}

const deleteLimit = 1000;

export function parseDelete(body: unknown): { readonly ids: string[]; readonly dryRun: boolean } {
  const value = jsonObject(body, ["snapshots", "dry_run"]);
  const ids = value.snapshots;
  if (!Array.isArray(ids) || ids.length === 0 || ids.length > deleteLimit) {
    throw badRequest(`'snapshots' must be a list of 1 to ${deleteLimit} names or uuids`);
  }
  return {
    ids: ids.map((id) => text(id, "snapshots")),
    dryRun: value.dry_run === undefined ? false : flag(value.dry_run, "dry_run"),
  };
}

const uuidPattern = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/** Of DELETE /v1/hold. */
export function parseEndHold(query: URLSearchParams): EndHoldRequest {
  for (const key of query.keys()) {
    if (key !== "attachment" && key !== "force")
      throw badRequest(`unknown key '${key}': allowed are attachment, force`);
  }
  const attachment = query.get("attachment");
  const force = query.get("force");
  if (force !== null && force !== "1") throw badRequest("'force' must be 1");
  if (attachment === null && force === null) throw badRequest("give attachment=UUID, force=1 or both");
  if (attachment !== null && !uuidPattern.test(attachment)) throw badRequest("'attachment' must be a uuid");
  return { force: force !== null, ...(attachment !== null && { attachment }) };
}

export interface EndHoldAnswer {
  readonly ended: HoldRecord | null;
}

export function parseCheck(body: unknown): { readonly data: boolean } {
  const value = jsonObject(body, ["data"]);
  return { data: value.data === undefined ? false : flag(value.data, "data") };
}

export type CheckLine =
  | { readonly progress: { readonly done: number; readonly total: number } }
  | { readonly report: unknown }
  | { readonly error: ErrorBody };
