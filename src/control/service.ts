// HTTP + JSON over a unix socket: what the volume's server and the agent share. Routes are the
// caller's; this file answers whatever is not theirs.
//
// CS1 Whatever a request brings, the answer is JSON with a stable code, and the process goes on.
// CS2 A slow reader of events is cut off at a bound instead of filling memory.
import { chmodSync, existsSync, unlinkSync } from "node:fs";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { CsnapError, codeOf, messageOf } from "../volume/errors.js";
import { type ErrorBody, httpStatus, requestLimitBytes } from "./api.js";
import type { EventHub } from "./events.js";

const headersTimeoutMs = 10_000;
const connectionLimit = 256;
export const streamBacklogLimitBytes = 1 << 20;
/** Keeps idle event streams from being taken for dead. */
const eventHeartbeatMs = 15_000;
const socketMode = 0o660;

export interface Exchange {
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  /** the part of the path that stands for `:id`, decoded */
  readonly id: string;
  /** the request's JSON; undefined with GET and DELETE */
  readonly body: unknown;
  readonly url: URL;
}

export interface Route {
  /** `v1/status`; the last part may be `:id` */
  readonly path: string;
  readonly methods: Readonly<Record<string, (exchange: Exchange) => Promise<void> | void>>;
}

export interface JsonServiceOptions {
  readonly socketPath: string;
  /** An exact path wins over one with `:id`. */
  readonly routes: readonly Route[];
  /** Answers GET /v1/events. */
  readonly events: EventHub;
}

export class JsonService {
  private readonly http: Server;
  private readonly streams = new Set<ServerResponse>();
  private readonly routes: readonly Route[];

  constructor(private readonly options: JsonServiceOptions) {
    this.routes = [...options.routes, { path: "v1/events", methods: { GET: (x) => this.streamEvents(x) } }];
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
    const route = this.findRoute(parts);
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
    await handler({ request, response, id: parts.at(-1) ?? "", body, url });
  }

  private findRoute(parts: readonly string[]): Route | undefined {
    const exact = this.routes.find((route) => route.path === parts.join("/"));
    if (exact || parts.at(-1) === "") return exact;
    const general = [...parts.slice(0, -1), ":id"].join("/");
    return this.routes.find((route) => route.path === general);
  }

  /** GET /v1/events: from `Last-Event-ID` (or ?since=ID) on; `?since=0` gives all that are kept. */
  private streamEvents({ request, response, url }: Exchange): void {
    const asked = request.headers["last-event-id"] ?? url.searchParams.get("since");
    const since = asked === null || asked === undefined ? this.options.events.lastEventId : Number(asked);
    if (!Number.isSafeInteger(since))
      throw new CsnapError("USAGE", `since '${String(asked)}' is not an event's id`);
    response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-store" });
    response.flushHeaders();
    this.streams.add(response);
    const stop = this.options.events.subscribe(since, (event) => {
      response.write(`id: ${event.id}\nevent: ${event.kind}\ndata: ${JSON.stringify(event)}\n\n`);
      if (response.writableLength > streamBacklogLimitBytes) response.destroy();
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

function decodePart(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    throw new HttpError(400, `'${part}' is not a valid part of a path`);
  }
}

export function sendJson({ response }: Exchange, status: number, value: unknown): void {
  const text = `${JSON.stringify(value)}\n`;
  response.writeHead(status, {
    "Content-Type": "application/json",
    "Content-Length": Buffer.byteLength(text),
  });
  response.end(text);
}

export function errorBody(error: unknown): ErrorBody {
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
