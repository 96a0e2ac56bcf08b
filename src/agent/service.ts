// The agent's control API: HTTP + JSON over a unix socket, as the volume's server has one.
//
//     GET    /v1/devices        DeviceRecord[]
//     POST   /v1/attachments    AttachBody -> 201 DeviceRecord, once the device is usable
//     POST   /v1/detach         {target, force} -> DeviceRecord[] as they were
//     GET    /v1/status         AgentStatus
//     GET    /v1/events         server-sent events
//
// Errors are those of src/control/api.ts.
import { request } from "node:http";
import { join } from "node:path";
import type { ErrorBody } from "../control/api.js";
import { badRequest, jsonObject } from "../control/api.js";
import type { EventHub } from "../control/events.js";
import { JsonService, sendJson } from "../control/service.js";
import { CsnapError } from "../volume/errors.js";
import { checkSnapshotName, checkVolumeName } from "../volume/names.js";
import type { Agent, AttachRequest } from "./agent.js";
import type { OnLost } from "./attachment.js";
import type { DeviceRecord } from "./model.js";

export interface AgentStatus {
  readonly pid: number;
  readonly version: string;
  readonly broker: string;
  /** precautions against a deadlock that could not be taken, a line each */
  readonly problems: readonly string[];
}

export interface AttachBody {
  readonly volume: string;
  readonly snapshot: string | null;
  readonly read_only: boolean;
  /** N of /dev/nbdN, or null for any */
  readonly device: number | null;
  /** null: requests wait for ever; else I/O errors after so many milliseconds without a server */
  readonly error_after_ms: number | null;
}

/** No volume's socket can have this name: theirs start with a letter or a digit. */
export function agentSocketPath(runDir: string): string {
  return join(runDir, "_agent.control");
}

export class AgentService extends JsonService {
  constructor(socketPath: string, agent: Agent, events: EventHub, status: () => AgentStatus) {
    super({
      socketPath,
      events,
      routes: [
        { path: "v1/status", methods: { GET: (x) => sendJson(x, 200, status()) } },
        { path: "v1/devices", methods: { GET: (x) => sendJson(x, 200, agent.list()) } },
        {
          path: "v1/attachments",
          methods: { POST: async (x) => sendJson(x, 201, await agent.attach(parseAttach(x.body))) },
        },
        {
          path: "v1/detach",
          methods: {
            POST: async (x) => {
              const { target, force } = parseDetach(x.body);
              sendJson(x, 200, await agent.detach(target, force));
            },
          },
        },
      ],
    });
  }
}

function parseAttach(value: unknown): AttachRequest {
  const body = jsonObject(value, ["volume", "snapshot", "read_only", "device", "error_after_ms"]);
  const { volume, snapshot = null, read_only = false, device = null, error_after_ms = null } = body;
  if (typeof volume !== "string") throw badRequest("'volume' must be a name");
  checkVolumeName(volume);
  if (snapshot !== null && typeof snapshot !== "string")
    throw badRequest("'snapshot' must be a name or null");
  if (snapshot !== null) checkSnapshotName(snapshot);
  if (typeof read_only !== "boolean") throw badRequest("'read_only' must be true or false");
  if (device !== null && !isCount(device, 32767))
    throw badRequest("'device' must be the N of /dev/nbdN, or null");
  if (error_after_ms !== null && !isCount(error_after_ms, 366 * 24 * 3600_000))
    throw badRequest("'error_after_ms' must be a number of milliseconds, or null");
  const onLost: OnLost =
    error_after_ms === null ? { mode: "hang" } : { mode: "error", afterMs: error_after_ms };
  return { volume, snapshot, readOnly: read_only, device, onLost };
}

function parseDetach(value: unknown): { target: string; force: boolean } {
  const { target, force = false } = jsonObject(value, ["target", "force"]);
  if (typeof target !== "string" || target === "") throw badRequest("'target' must be a device or a name");
  if (typeof force !== "boolean") throw badRequest("'force' must be true or false");
  return { target, force };
}

function isCount(value: unknown, max: number): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0 && value <= max;
}

/** What commands ask of a running agent. */
export class AgentClient {
  constructor(private readonly socketPath: string) {}

  status(): Promise<AgentStatus> {
    return this.call<AgentStatus>("GET", "/v1/status");
  }
  devices(): Promise<DeviceRecord[]> {
    return this.call<DeviceRecord[]>("GET", "/v1/devices");
  }
  attach(body: AttachBody): Promise<DeviceRecord> {
    return this.call<DeviceRecord>("POST", "/v1/attachments", body);
  }
  detach(target: string, force: boolean): Promise<DeviceRecord[]> {
    return this.call<DeviceRecord[]>("POST", "/v1/detach", { target, force });
  }

  private async call<T>(method: string, path: string, body?: unknown): Promise<T> {
    const text = body === undefined ? "" : JSON.stringify(body);
    const headers =
      text === "" ? {} : { "Content-Type": "application/json", "Content-Length": Buffer.byteLength(text) };
    const [status, answer] = await new Promise<[number, string]>((resolve, reject) => {
      const call = request(
        { socketPath: this.socketPath, method, path, headers, agent: false },
        (response) => {
          let received = "";
          response.setEncoding("utf8");
          response.on("data", (piece: string) => {
            received += piece;
          });
          response.on("end", () => resolve([response.statusCode ?? 500, received]));
          response.on("error", () => reject(this.unreachable()));
        },
      );
      call.on("error", (error: NodeJS.ErrnoException) => reject(this.unreachable(error)));
      call.end(text);
    });
    let value: unknown;
    try {
      value = JSON.parse(answer);
    } catch {
      throw new CsnapError("PROTOCOL", `${this.socketPath} answered no JSON: is it a csnap agent?`);
    }
    if (status < 400) return value as T;
    const { code, message } = value as ErrorBody;
    throw new CsnapError(code, message);
  }

  private unreachable(error?: NodeJS.ErrnoException): CsnapError {
    if (error?.code === "ENOENT" || error?.code === "ECONNREFUSED")
      return new CsnapError(
        "NOT_SERVED",
        "no agent runs on this host: start `csnap agent` as root, or `systemctl start csnap-agent`",
      );
    if (error?.code === "EACCES")
      return new CsnapError("ACCESS", `you may not use the agent's socket ${this.socketPath}: run as root`);
    return new CsnapError("PROTOCOL", "the agent ended meanwhile: see its log, then try again");
  }
}
