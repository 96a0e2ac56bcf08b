/** A host that only has clients: a network namespace with one client process in it. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { NetworkNode } from "./network-node.js";
import type { TermSpan } from "./term-spans.js";

export interface ClientSetup {
  /** writer: VerifiedClient, which holds the origin; watcher: WatchingClient */
  readonly role: "writer" | "watcher";
  readonly broker: string;
  readonly volume: string;
  readonly blocks: number;
  readonly seed: number;
  /** addresses of all hosts that may serve */
  readonly hosts: readonly string[];
}

export type ClientOrder =
  | { readonly kind: "add"; readonly snapshot: string }
  | { readonly kind: "remove"; readonly snapshot: string }
  /** stops the load, looks at everything through the server at `uri`, and reports */
  | { readonly kind: "report"; readonly uri: string };

export interface ClientReport {
  readonly problems: readonly string[];
  readonly spans: readonly TermSpan[];
  /** ms */
  readonly stalls: readonly number[];
  /** how often a snapshot was found unchanged */
  readonly compared: number;
}

export type ClientSays = { readonly answers: number } | { readonly report: ClientReport };

const REPORT_LIMIT_MS = 90_000;
const HOOKS = fileURLToPath(new URL("./typescript-hooks.mjs", import.meta.url));
const PROCESS = fileURLToPath(new URL("./client-process.ts", import.meta.url));

export class ClientHost extends NetworkNode {
  /** As it said last. */
  answers = 0;
  #process: ChildProcess | undefined;
  #report: ClientReport | undefined;
  #log = "";

  startClient(setup: ClientSetup): void {
    const [command = "", ...by] = this.by;
    const args = [...by, process.execPath, "--import", HOOKS, PROCESS, JSON.stringify(setup)];
    const child = spawn(command, args, { stdio: ["ignore", "inherit", "pipe", "ipc"] });
    this.#process = child;
    this.#report = undefined;
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.#log += text;
    });
    child.on("message", (said: ClientSays) => {
      if ("report" in said) this.#report = said.report;
      else this.answers = said.answers;
    });
  }

  order(order: ClientOrder): void {
    this.#process?.send(order);
  }

  async report(uri: string): Promise<ClientReport> {
    const child = this.#process;
    if (!child || child.exitCode !== null) throw new Error(`${this.name} runs no client: ${this.#log}`);
    const ended = once(child, "exit", { signal: AbortSignal.timeout(REPORT_LIMIT_MS) });
    this.order({ kind: "report", uri });
    await ended;
    if (!this.#report) throw new Error(`${this.name} gave no report: ${this.#log}`);
    return this.#report;
  }
}
