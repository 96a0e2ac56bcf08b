// The control API's server side: a unix socket beside the volume's NBD socket. `csnap serve` starts
// it once the volume is open (so its socket exists only while this process holds the store's lock).
//
// CS1 Whatever a request brings, the answer is JSON with a stable code, and the process goes on.
// CS2 A slow reader of events is cut off at a bound instead of filling memory.
import { chmodSync, existsSync, unlinkSync } from "node:fs";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { CsnapError, codeOf, messageOf } from "../volume/errors.js";
import type { VolumeOperations } from "../volume/operations.js";
import {
  type CheckLine,
  type ErrorBody,
  httpStatus,
  parseCheck,
  parseCreateSnapshot,
  parseDelete,
  parsePropertyChanges,
  parseSnapshotChanges,
  requestLimitBytes,
} from "./api.js";
import type { EventHub } from "./events.js";

const headersTimeoutMs = 10_000;
const connectionLimit = 256;
const eventBacklogLimitBytes = 1 << 20;
/** Keeps idle event streams from being taken for dead. */
const eventHeartbeatMs = 15_000;
const socketMode = 0o660;

export interface ControlServerOptions {
  readonly socketPath: string;
  readonly operations: Omit<VolumeOperations, "close">;
  readonly events: EventHub;
}

export class ControlServer {
  private readonly http: Server;
  private readonly streams = new Set<ServerResponse>();

  constructor(private readonly options: ControlServerOptions) {
    this.http = createServer({ headersTimeout: headersTimeoutMs, requestTimeout: headersTimeoutMs });
    this.http.maxConnections = connectionLimit;
    this.http.on("request", (request, response) => {
      this.answer(request, response).catch((error: unknown) => fail(response, error));
    });
    this.http.on("clientError", (_error, socket) => {
      if (socket.writable)
        socket.end("HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    });
  }

  /** Replaces a socket that a killed server left behind: the store's lock says that none is alive. */
  async listen(): Promise<void> {
    const { socketPath } = this.options;
    if (existsSync(socketPath)) unlinkSync(socketPath);
    // Bound with the mode in place, so that at no instant may others connect. listen() binds before
    // it returns; only the 'listening' event comes later.
    const umask = process.umask(0o777 & ~socketMode);
    try {
      const listening = new Promise<void>((resolve, reject) => {
        this.http.once("error", reject);
        this.http.once("listening", resolve);
      });
      this.http.listen(socketPath);
      process.umask(umask);
      await listening;
    } finally {
      process.umask(umask);
    }
    chmodSync(socketPath, socketMode);
  }

  async close(): Promise<void> {
    for (const stream of this.streams) stream.end();
    await new Promise<void>((resolve) => {
      this.http.close(() => resolve());
      this.http.closeIdleConnections();
    });
    this.http.closeAllConnections();
  }

  private async answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url ?? "/", "http://csnap");
    const parts = url.pathname.split("/").slice(1).map(decodePart);
    const method = request.method ?? "GET";
    const route = findRoute(parts);
    const handler = route?.methods[method];
    if (!route || !handler) {
      const known = route ? Object.keys(route.methods).join(", ") : "";
      if (route) response.setHeader("Allow", known);
      throw new HttpError(
        route ? 405 : 404,
        route
          ? `${url.pathname} knows ${known}, not ${method}`
          : `there is no ${url.pathname}: paths start with /v1/`,
      );
    }
    const body = method === "GET" || method === "DELETE" ? undefined : await readBody(request);
    await handler({ request, response, id: parts[2] ?? "", body, url, server: this });
  }

  get operations(): ControlServerOptions["operations"] {
    return this.options.operations;
  }

  /** GET /v1/events: from `Last-Event-ID` (or ?since=ID) on; `?since=0` gives all that are kept. */
  streamEvents({ request, response, url }: Exchange): void {
    const asked = request.headers["last-event-id"] ?? url.searchParams.get("since");
    const since = asked === null || asked === undefined ? this.options.events.lastEventId : Number(asked);
    if (!Number.isSafeInteger(since))
      throw new CsnapError("USAGE", `since '${String(asked)}' is not an event's id`);
    response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-store" });
    response.flushHeaders();
    this.streams.add(response);
    const stop = this.options.events.subscribe(since, (event) => {
      response.write(`id: ${event.id}\nevent: ${event.kind}\ndata: ${JSON.stringify(event)}\n\n`);
      if (response.writableLength > eventBacklogLimitBytes) response.destroy();
    });
    const heartbeat = setInterval(() => response.write(":\n\n"), eventHeartbeatMs);
    response.on("close", () => {
      clearInterval(heartbeat);
      stop();
      this.streams.delete(response);
    });
  }
}

class HttpError extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

interface Exchange {
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  /** third part of the path */
  readonly id: string;
  readonly body: unknown;
  readonly url: URL;
  readonly server: ControlServer;
}

interface Route {
  readonly path: string;
  readonly methods: Readonly<Record<string, (exchange: Exchange) => Promise<void> | void>>;
}

const routes: readonly Route[] = [
  { path: "v1/status", methods: { GET: async (x) => send(x, 200, await x.server.operations.status()) } },
  {
    path: "v1/snapshots",
    methods: {
      GET: async (x) => send(x, 200, await x.server.operations.snapshots()),
      POST: async (x) => send(x, 201, await x.server.operations.createSnapshot(parseCreateSnapshot(x.body))),
    },
  },
  {
    path: "v1/snapshots/delete",
    methods: {
      POST: async (x) => {
        const { ids, dryRun } = parseDelete(x.body);
        send(x, 200, await x.server.operations.deleteSnapshots(ids, dryRun));
      },
    },
  },
  {
    path: "v1/snapshots/:id",
    methods: {
      GET: getSnapshot,
      PATCH: async (x) =>
        send(x, 200, await x.server.operations.updateSnapshot(x.id, parseSnapshotChanges(x.body))),
      DELETE: async (x) => send(x, 200, await x.server.operations.deleteSnapshots([x.id], false)),
    },
  },
  {
    path: "v1/properties",
    methods: {
      PATCH: async (x) =>
        send(x, 200, await x.server.operations.updateProperties(parsePropertyChanges(x.body))),
    },
  },
  { path: "v1/events", methods: { GET: (x) => x.server.streamEvents(x) } },
  { path: "v1/check", methods: { POST: streamCheck } },
  { path: "v1/dump", methods: { GET: streamDump } },
];

function findRoute(parts: readonly string[]): Route | undefined {
  const path = parts.join("/");
  const exact = routes.find((route) => route.path === path);
  if (exact) return exact;
  const isSnapshot = parts.length === 3 && parts[0] === "v1" && parts[1] === "snapshots" && parts[2] !== "";
  return isSnapshot ? routes.find((route) => route.path === "v1/snapshots/:id") : undefined;
}

function decodePart(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    throw new HttpError(400, `'${part}' is not a valid part of a path`);
  }
}

async function getSnapshot(x: Exchange): Promise<void> {
  const snapshots = await x.server.operations.snapshots();
  const found = snapshots.find((s) => s.name === x.id) ?? snapshots.find((s) => s.uuid === x.id);
  if (!found) throw new CsnapError("NOT_FOUND", `snapshot '${x.id}' does not exist`);
  send(x, 200, found);
}

/** The status line is sent before the outcome is known, so an error is the stream's last line. */
async function streamCheck({ response, body, server }: Exchange): Promise<void> {
  const { data } = parseCheck(body);
  response.writeHead(200, { "Content-Type": "application/x-ndjson" });
  const line = (value: CheckLine) => response.write(`${JSON.stringify(value)}\n`);
  try {
    const report = await server.operations.check({
      data,
      onProgress: (done, total) => {
        if (response.writableLength < eventBacklogLimitBytes) line({ progress: { done, total } });
      },
    });
    line({ report });
  } catch (error) {
    line({ error: errorBody(error) });
  }
  response.end();
}

/** A dump that breaks off ends without the final chunk, which the client takes for an error. */
async function streamDump({ response, server }: Exchange): Promise<void> {
  response.writeHead(200, { "Content-Type": "application/x-ndjson" });
  await server.operations.dump(response);
  response.end();
}

function send({ response }: Exchange, status: number, value: unknown): void {
  const text = `${JSON.stringify(value)}\n`;
  response.writeHead(status, {
    "Content-Type": "application/json",
    "Content-Length": Buffer.byteLength(text),
  });
  response.end(text);
}

function errorBody(error: unknown): ErrorBody {
  return { code: codeOf(error), message: messageOf(error) };
}

function fail(response: ServerResponse, error: unknown): void {
  if (response.headersSent) {
    response.destroy();
    return;
  }
  const body = error instanceof HttpError ? { code: "USAGE", message: error.message } : errorBody(error);
  const status = error instanceof HttpError ? error.status : httpStatus(codeOf(error));
  const text = `${JSON.stringify(body)}\n`;
  response.writeHead(status, {
    "Content-Type": "application/json",
    "Content-Length": Buffer.byteLength(text),
    Connection: "close",
  });
  response.end(text);
}

async function readBody(request: IncomingMessage): Promise<unknown> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    length += chunk.length;
    if (length > requestLimitBytes) {
      throw new HttpError(413, `a request's body may have ${requestLimitBytes} bytes at most`);
    }
    chunks.push(chunk);
  }
  const text = Buffer.concat(chunks).toString("utf8");
  if (text.trim() === "") return {};
  try {
    return JSON.parse(text) as unknown;
  } catch {
    throw new HttpError(400, "the body is not valid JSON");
  }
}
