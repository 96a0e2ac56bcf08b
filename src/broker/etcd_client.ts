// Calls of etcd's JSON gateway (/v3 over HTTP/1.1), each with a deadline. Used by etcd_records.ts and
// etcd_watch.ts.
//
// EC1 Every call ends: an endpoint that does not answer within the time between two renewals is left
//     for the next; when all have been tried the call rejects with IO_ERROR and names the last cause.
// EC2 A transaction may be sent twice by this: callers must send only what may be (ER2).
// EC3 Refusals (auth, bad request) are answers: they are not tried elsewhere.
import { Agent as HttpAgent, request as httpRequest, type IncomingMessage } from "node:http";
import { Agent as HttpsAgent, request as httpsRequest } from "node:https";
import { CsnapError, messageOf, oneLine } from "../volume/errors.js";
import type { Endpoint, EtcdOptions } from "./etcd_url.js";

const answerLimitBytes = 16 << 20;
const keptConnections = 4;

interface GatewayError {
  readonly code?: number;
  readonly message?: string;
  readonly error?: string;
}

/** gRPC's codes: what a call may be told beside its answer. */
const unauthenticated = 16;
const unavailableCodes = new Set([1, 4, 8, 10, 13, 14]);

export class EtcdClient {
  private readonly agent: HttpAgent | HttpsAgent;
  private first = 0;
  private authToken: string | undefined;
  private readonly aborted = new AbortController();

  constructor(private readonly options: EtcdOptions) {
    const settings = { keepAlive: true, maxFreeSockets: keptConnections, scheduling: "lifo" as const };
    this.agent = options.tls ? new HttpsAgent(settings) : new HttpAgent(settings);
  }

  /** At one endpoint after the other, beginning with the one that answered last. */
  async call<T>(path: string, body: object): Promise<T> {
    const { endpoints } = this.options;
    const start = this.first;
    let cause: unknown;
    for (let i = 0; i < endpoints.length; i++) {
      const index = (start + i) % endpoints.length;
      try {
        const answer = await this.authorized<T>(endpointAt(endpoints, index), path, body);
        this.first = index;
        return answer;
      } catch (error) {
        if (error instanceof CsnapError) throw error;
        cause = error;
      }
    }
    throw this.unreachable(cause);
  }

  /** At all endpoints at once; the first answer counts. */
  async callAll<T>(path: string, body: object): Promise<T> {
    const { endpoints } = this.options;
    if (endpoints.length === 1) return this.call<T>(path, body);
    try {
      return await Promise.any(endpoints.map((endpoint) => this.authorized<T>(endpoint, path, body)));
    } catch (error) {
      const causes = error instanceof AggregateError ? error.errors : [error];
      const refusal = causes.find((cause) => cause instanceof CsnapError);
      throw refusal ?? this.unreachable(causes[0]);
    }
  }

  /** A stream of JSON lines from one endpoint; the caller moves on to the next by `turn`. */
  async stream(path: string, body: object, turn: number): Promise<IncomingMessage> {
    const { endpoints } = this.options;
    const endpoint = endpointAt(endpoints, (this.first + turn) % endpoints.length);
    return this.post(endpoint, path, body, await this.token(endpoint));
  }

  close(): void {
    this.aborted.abort();
    this.agent.destroy();
  }

  private unreachable(cause: unknown): CsnapError {
    const names = this.options.endpoints.map(({ host, port }) => `${host}:${port}`).join(", ");
    return new CsnapError(
      "IO_ERROR",
      `etcd at ${names} does not answer (${oneLine(messageOf(cause))}): see that a majority of its members runs`,
    );
  }

  /** EC3: with a token, which may have expired. */
  private async authorized<T>(endpoint: Endpoint, path: string, body: object): Promise<T> {
    const token = await this.token(endpoint);
    try {
      return await this.answer<T>(endpoint, path, body, token);
    } catch (error) {
      if (!(error instanceof TokenExpired)) throw error;
      this.authToken = undefined;
      return this.answer<T>(endpoint, path, body, await this.token(endpoint));
    }
  }

  private async token(endpoint: Endpoint): Promise<string | undefined> {
    const { user } = this.options;
    if (!user || this.authToken !== undefined) return this.authToken;
    const { token } = await this.answer<{ token?: string }>(endpoint, "auth/authenticate", user, undefined);
    this.authToken = token;
    return token;
  }

  private async answer<T>(
    endpoint: Endpoint,
    path: string,
    body: object,
    token: string | undefined,
  ): Promise<T> {
    const response = await this.post(endpoint, path, body, token);
    const limit = setTimeout(
      () => response.destroy(new Error("its answer did not end")),
      this.options.timing.renewMs,
    );
    try {
      const text = await readAll(response);
      if (response.statusCode === 200) return JSON.parse(text) as T;
      throw refusal(endpoint, response.statusCode ?? 0, text, token !== undefined);
    } finally {
      clearTimeout(limit);
    }
  }

  /** Resolves with the head of the answer. */
  private post(
    { host, port }: Endpoint,
    path: string,
    body: object,
    token: string | undefined,
  ): Promise<IncomingMessage> {
    return new Promise((resolve, reject) => {
      const text = JSON.stringify(body);
      const options = {
        host,
        port,
        path: `/v3/${path}`,
        method: "POST",
        agent: this.agent,
        signal: this.aborted.signal,
        headers: {
          "Content-Type": "application/json",
          "Content-Length": Buffer.byteLength(text),
          ...(token !== undefined && { Authorization: token }),
        },
      };
      const { tls, timing } = this.options;
      const request = tls ? httpsRequest({ ...options, ...tls }) : httpRequest(options);
      const limit = setTimeout(
        () => request.destroy(new Error(`no answer within ${timing.renewMs} ms`)),
        timing.renewMs,
      );
      request.on("error", (error) => {
        clearTimeout(limit);
        reject(error);
      });
      request.on("response", (response) => {
        clearTimeout(limit);
        resolve(response);
      });
      request.end(text);
    });
  }
}

class TokenExpired extends Error {}

function endpointAt(endpoints: readonly Endpoint[], index: number): Endpoint {
  const found = endpoints[index];
  if (!found) throw new Error("no endpoint");
  return found;
}

async function readAll(response: IncomingMessage): Promise<string> {
  const parts: Buffer[] = [];
  let size = 0;
  for await (const part of response as AsyncIterable<Buffer>) {
    size += part.length;
    if (size > answerLimitBytes) throw new Error("its answer is too long");
    parts.push(part);
  }
  return Buffer.concat(parts).toString("utf8");
}

function refusal({ host, port }: Endpoint, status: number, text: string, hadToken: boolean): Error {
  const at = `etcd at ${host}:${port}`;
  let found: GatewayError = {};
  try {
    found = JSON.parse(text) as GatewayError;
  } catch {
    return new CsnapError("IO_ERROR", `${at} answers ${status}, and no JSON: is its gRPC gateway enabled?`);
  }
  const message = oneLine(found.message ?? found.error ?? text);
  if (found.code === unauthenticated && hadToken) return new TokenExpired(message);
  if (unavailableCodes.has(found.code ?? 0)) return new Error(message);
  return new CsnapError("PERMISSION", `${at} refuses: ${message}: see user, password-file and roles`);
}
