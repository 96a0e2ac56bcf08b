// The control API's client side: VolumeOperations through a server's control socket. Commands use
// it when a server answers; events.ts's records come through followEvents().
//
// CC1 What the server refuses arrives as CsnapError with the server's code and line.
import { type IncomingMessage, request } from "node:http";
import { createInterface } from "node:readline";
import type { Writable } from "node:stream";
import { finished } from "node:stream/promises";
import { CsnapError, type ErrorCode } from "../volume/errors.js";
import type { CheckRecord, HoldRecord, SnapshotRecord, VolumeRecord } from "../volume/model.js";
import type {
  CheckRequest,
  CreateSnapshotRequest,
  DeleteResult,
  EndHoldRequest,
  PropertyChanges,
  SnapshotChanges,
  VolumeOperations,
} from "../volume/operations.js";
import type { CheckLine, EndHoldAnswer, ErrorBody } from "./api.js";
import type { EventRecord } from "./events.js";

/** A server that lives answers a status in milliseconds; one that hangs must not hang every command. */
const connectLimitMs = 15_000;

export class ControlClient implements VolumeOperations {
  constructor(
    private readonly socketPath: string,
    private readonly volume: string,
  ) {}

  /** Undefined: nobody listens on the socket. Throws where somebody may, but can't be asked. */
  static async connect(socketPath: string, volume: string): Promise<ControlClient | undefined> {
    const client = new ControlClient(socketPath, volume);
    try {
      await client.call<VolumeRecord>("GET", "/v1/status", undefined, connectLimitMs);
      return client;
    } catch (error) {
      if (error instanceof CsnapError && error.code === "NOT_SERVED") return undefined;
      throw error;
    }
  }

  status(): Promise<VolumeRecord> {
    return this.call<VolumeRecord>("GET", "/v1/status");
  }

  snapshots(): Promise<SnapshotRecord[]> {
    return this.call<SnapshotRecord[]>("GET", "/v1/snapshots");
  }

  createSnapshot(body: CreateSnapshotRequest): Promise<SnapshotRecord> {
    return this.call<SnapshotRecord>("POST", "/v1/snapshots", body);
  }

  deleteSnapshots(ids: readonly string[], dryRun: boolean): Promise<DeleteResult> {
    return this.call<DeleteResult>("POST", "/v1/snapshots/delete", { snapshots: ids, dry_run: dryRun });
  }

  updateSnapshot(id: string, changes: SnapshotChanges): Promise<SnapshotRecord> {
    return this.call<SnapshotRecord>("PATCH", `/v1/snapshots/${encodeURIComponent(id)}`, changes);
  }

  updateProperties(changes: PropertyChanges): Promise<VolumeRecord> {
    return this.call<VolumeRecord>("PATCH", "/v1/properties", changes);
  }

  async endHold({ attachment, force }: EndHoldRequest): Promise<HoldRecord | null> {
    const query = new URLSearchParams({ ...(attachment && { attachment }), ...(force && { force: "1" }) });
    return (await this.call<EndHoldAnswer>("DELETE", `/v1/hold?${query}`)).ended;
  }

  async check({ data, onProgress }: CheckRequest): Promise<CheckRecord> {
    const response = await this.open("POST", "/v1/check", { data });
    for await (const text of createInterface({ input: response })) {
      const line = JSON.parse(text) as CheckLine;
      if ("progress" in line) onProgress?.(line.progress.done, line.progress.total);
      else if ("error" in line) throw new CsnapError(line.error.code, line.error.message);
      else return line.report as CheckRecord;
    }
    throw this.brokenOff("the check");
  }

  async dump(out: Writable): Promise<void> {
    const response = await this.open("GET", "/v1/dump");
    response.pipe(out, { end: false });
    try {
      await finished(response);
    } catch {
      throw this.brokenOff("the dump");
    }
  }

  /** Every event after `since` (0: all that are kept; undefined: new ones), until the server stops. */
  async *followEvents(since: number | undefined, signal?: AbortSignal): AsyncGenerator<EventRecord> {
    const query = since === undefined ? "" : `?since=${since}`;
    const response = await this.open("GET", `/v1/events${query}`);
    const stop = () => response.destroy();
    signal?.addEventListener("abort", stop, { once: true });
    try {
      for await (const line of createInterface({ input: response })) {
        if (line.startsWith("data: ")) yield JSON.parse(line.slice("data: ".length)) as EventRecord;
      }
    } finally {
      signal?.removeEventListener("abort", stop);
      response.destroy();
    }
  }

  async close(): Promise<void> {
    // Each call has a connection of its own; nothing is held.
  }

  private async call<T>(method: string, path: string, body?: unknown, limitMs?: number): Promise<T> {
    const response = await this.open(method, path, body, limitMs);
    return JSON.parse(await readText(response)) as T;
  }

  /** The response of a successful request, its body still to be read. */
  private async open(
    method: string,
    path: string,
    body?: unknown,
    limitMs?: number,
  ): Promise<IncomingMessage> {
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      const text = body === undefined ? undefined : JSON.stringify(body);
      const headers =
        text === undefined
          ? {}
          : { "Content-Type": "application/json", "Content-Length": Buffer.byteLength(text) };
      const call = request({ socketPath: this.socketPath, method, path, headers, agent: false }, resolve);
      call.on("error", (error: NodeJS.ErrnoException) => reject(this.connectError(error)));
      if (limitMs !== undefined) call.setTimeout(limitMs, () => call.destroy(this.hangs(limitMs)));
      call.end(text);
    });
    if ((response.statusCode ?? 500) < 400) return response;
    throw this.refusal(await readText(response), response.statusCode ?? 500);
  }

  private connectError(error: NodeJS.ErrnoException): CsnapError {
    if (error instanceof CsnapError) return error;
    if (error.code === "ENOENT" || error.code === "ECONNREFUSED" || error.code === "ENOTDIR") {
      return new CsnapError(
        "NOT_SERVED",
        `${this.volume} is not served: start \`csnap serve ${this.volume}\``,
      );
    }
    if (error.code === "EACCES" || error.code === "EPERM") {
      return new CsnapError(
        "ACCESS",
        `${this.volume} is served, but you may not use its control socket ${this.socketPath}: run as the server's user or group`,
      );
    }
    return this.brokenOff(`the control connection (${error.code ?? error.message})`);
  }

  private hangs(limitMs: number): CsnapError {
    return new CsnapError(
      "PROTOCOL",
      `${this.volume}: its server at ${this.socketPath} has not answered for ${limitMs / 1000} s: see its log, or stop that process`,
    );
  }

  private brokenOff(what: string): CsnapError {
    return new CsnapError(
      "PROTOCOL",
      `${this.volume}: ${what} broke off: the server stopped meanwhile; see its log, then try again`,
    );
  }

  private refusal(text: string, status: number): CsnapError {
    const body = parseErrorBody(text);
    if (body) return new CsnapError(body.code, body.message);
    return new CsnapError(
      "PROTOCOL",
      `${this.volume}: ${this.socketPath} answered HTTP ${status} and no csnap error: is it a csnap server?`,
    );
  }
}

function parseErrorBody(text: string): ErrorBody | undefined {
  try {
    const value = JSON.parse(text) as { code?: unknown; message?: unknown };
    if (typeof value.code !== "string" || typeof value.message !== "string") return undefined;
    return { code: value.code as ErrorCode, message: value.message };
  } catch {
    return undefined;
  }
}

async function readText(response: IncomingMessage): Promise<string> {
  let text = "";
  response.setEncoding("utf8");
  for await (const chunk of response as AsyncIterable<string>) text += chunk;
  return text;
}
