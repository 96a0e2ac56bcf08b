/** One volume with its server, for tests of what clients see: `csnap serve` as its user starts it. */
import { createCipheriv } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import type { VolumeRecord } from "../../src/volume/model.js";
import { Sandbox, type Server } from "./csnap.js";
import { type ClientOptions, NbdClient } from "./nbd-client.js";

export const KIB = 1024;
export const MIB = 1024 * KIB;
export const GIB = 1024 * MIB;

/** Bytes that are the same for the same seed, and look random. */
export function pattern(seed: number, length: number): Buffer {
  const key = Buffer.alloc(16);
  key.writeUInt32BE(seed >>> 0);
  return createCipheriv("aes-128-ctr", key, Buffer.alloc(16)).update(Buffer.alloc(length));
}

/** Throws with the first difference; expect() takes seconds for a megabyte. */
export function expectBytes(actual: Buffer, expected: Buffer): void {
  if (actual.equals(expected)) return;
  if (actual.length !== expected.length)
    throw new Error(`${actual.length} bytes instead of ${expected.length}`);
  const at = actual.findIndex((byte, i) => byte !== expected[i]);
  const show = (bytes: Buffer) => bytes.toString("hex", at, at + 16);
  throw new Error(`bytes differ from ${at} on: ${show(actual)} instead of ${show(expected)}`);
}

export function expectZeros(actual: Buffer): void {
  expectBytes(actual, Buffer.alloc(actual.length));
}

export interface VolumeOptions {
  readonly size?: string;
  readonly storeSize?: string;
  readonly serve?: readonly string[];
  /** For the server alone. */
  readonly env?: NodeJS.ProcessEnv;
}

export class ServedVolume {
  readonly sandbox: Sandbox;
  server: Server;
  tcp = "";
  readonly #clients = new Set<NbdClient>();

  private constructor(
    sandbox: Sandbox,
    server: Server,
    readonly options: VolumeOptions,
  ) {
    this.sandbox = sandbox;
    this.server = server;
  }

  /** The volume `vol` on a unix socket and on a loopback port. */
  static async start(options: VolumeOptions = {}, sandbox = new Sandbox()): Promise<ServedVolume> {
    try {
      await sandbox.init("vol", options.size ?? "64M", options.storeSize ?? "64M");
      const volume = new ServedVolume(sandbox, await ServedVolume.#serve(sandbox, options), options);
      await volume.#findListeners();
      return volume;
    } catch (error) {
      await sandbox.close();
      throw error;
    }
  }

  static async #serve(sandbox: Sandbox, { serve = [], env = {} }: VolumeOptions): Promise<Server> {
    const before = { ...sandbox.env };
    Object.assign(sandbox.env, env);
    try {
      return await sandbox.serve("vol", "--listen", "127.0.0.1:0", ...serve);
    } finally {
      for (const name of Object.keys(env)) {
        if (before[name] === undefined) delete sandbox.env[name];
        else sandbox.env[name] = before[name];
      }
    }
  }

  async #findListeners(): Promise<void> {
    const { server } = await this.status();
    this.tcp = server?.listeners.find((uri) => /^nbds?:/.test(uri)) ?? "";
  }

  get unix(): string {
    return this.server.uri;
  }

  get pid(): number {
    const { pid } = this.server.child;
    if (pid === undefined) throw new Error("the server has no pid");
    return pid;
  }

  /** A client in transmission; ended by close() at the latest. */
  async open(options: ClientOptions = {}, uri = this.unix): Promise<NbdClient> {
    const client = await NbdClient.open(uri, options);
    this.#clients.add(client);
    return client;
  }

  async status(): Promise<VolumeRecord> {
    const records = await this.sandbox.json<VolumeRecord | VolumeRecord[]>("status", "vol");
    const record = Array.isArray(records) ? records[0] : records;
    if (record === undefined) throw new Error("no status");
    return record;
  }

  async snapshot(name: string): Promise<void> {
    await this.sandbox.must("snapshot", `vol@${name}`);
  }

  /** Starts the server again, after it has ended. */
  async restart(): Promise<void> {
    this.server = await ServedVolume.#serve(this.sandbox, this.options);
    await this.#findListeners();
  }

  /** Forgets the server's memory peak, for peakGrowth(). */
  startPeak(): () => number {
    writeFileSync(`/proc/${this.pid}/clear_refs`, "5");
    const start = this.#memory("VmRSS");
    return () => this.#memory("VmHWM") - start;
  }

  #memory(field: string): number {
    const line = new RegExp(`^${field}:\\s+(\\d+) kB$`, "m").exec(
      readFileSync(`/proc/${this.pid}/status`, "utf8"),
    );
    return Number(line?.[1]) * KIB;
  }

  /** Open descriptors of the server. */
  descriptors(): number {
    return readdirSync(`/proc/${this.pid}/fd`).length;
  }

  async close(): Promise<void> {
    for (const client of this.#clients) client.destroy();
    await this.sandbox.close();
  }
}
