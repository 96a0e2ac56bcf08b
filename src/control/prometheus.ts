// The Prometheus text format (version 0.0.4), and the endpoint that serves it where `--metrics HOST:PORT` asks. Used by
// the server of a volume (metrics.ts) and by the agent.
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { messageOf } from "../volume/errors.js";

export type Labels = Readonly<Record<string, string>>;

export interface Family {
  readonly name: string;
  readonly type: "counter" | "gauge";
  readonly help: string;
  readonly samples: readonly { readonly labels: Labels; readonly value: number }[];
}

/** One family after the other, each with its help and type; one without samples is left out. */
export function renderFamilies(families: readonly Family[]): string {
  return families
    .filter(({ samples }) => samples.length > 0)
    .map(renderFamily)
    .join("");
}

function renderFamily(family: Family): string {
  const samples = family.samples.map(
    ({ labels, value }) => `${family.name}${renderLabels(labels)} ${value}\n`,
  );
  return `# HELP ${family.name} ${family.help}\n# TYPE ${family.name} ${family.type}\n${samples.join("")}`;
}

function renderLabels(labels: Labels): string {
  const parts = Object.entries(labels).map(([key, value]) => `${key}="${escapeLabel(value)}"`);
  return `{${parts.join(",")}}`;
}

function escapeLabel(value: string): string {
  return value.replace(/\\/g, "\\\\").replace(/"/g, '\\"').replace(/\n/g, "\\n");
}

export class MetricsServer {
  private readonly http: Server;

  /** @param text all families, as they are now */
  constructor(text: () => Promise<string>) {
    this.http = createServer({ requestTimeout: 10_000 }, (request, response) => {
      const answer = (code: number, body: string, type = "text/plain; charset=utf-8") =>
        response.writeHead(code, { "Content-Type": type }).end(body);
      if (request.method !== "GET" || request.url?.split("?")[0] !== "/metrics") {
        answer(404, "csnap serves GET /metrics here\n");
        return;
      }
      text().then(
        (families) => answer(200, families, "text/plain; version=0.0.4; charset=utf-8"),
        (error: unknown) => answer(500, `${messageOf(error)}\n`),
      );
    });
    this.http.maxConnections = 64;
  }

  /** Returns the URL; port 0 takes a free one. */
  async listen(host: string, port: number): Promise<string> {
    await new Promise<void>((resolve, reject) => {
      this.http.once("error", reject);
      this.http.listen({ host, port }, resolve);
    });
    const address = this.http.address() as AddressInfo;
    const shown = address.family === "IPv6" ? `[${address.address}]` : address.address;
    return `http://${shown}:${address.port}/metrics`;
  }

  async close(): Promise<void> {
    await new Promise<void>((resolve) => {
      this.http.close(() => resolve());
      this.http.closeAllConnections();
    });
  }
}
