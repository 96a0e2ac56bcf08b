/** What a server under test can do for a workload. */

export type Transport = "unix" | "tcp";

export interface Running {
  readonly uri: string;
  readonly pids: readonly number[];
  stop(): Promise<void>;
}

export interface Contestant {
  readonly name: string;
  /** Makes its image; again: nothing. */
  prepare(): Promise<void>;
  start(transport: Transport): Promise<Running>;
  /** From now on every chunk is owed to a snapshot again. With the server stopped, unless `live`. */
  shareAll?(): Promise<void>;
  /** Every chunk has been copied for the newest snapshot, and nothing is left to be done for it. While it serves. */
  copyAll?(): Promise<void>;
  /** shareAll() works while it serves. */
  readonly live?: boolean;
  /** What is written is gone when it ends, so there is nothing to flush. */
  readonly volatile?: boolean;
  /** What it reads from leaves the page cache. While it doesn't write. */
  dropCache(): Promise<void>;
  close(): Promise<void>;
}

export const uriOfSocket = (socket: string, exportName: string) =>
  `nbd+unix:///${exportName}?socket=${socket}`;

export const uriOfPort = (port: number, exportName: string) => `nbd://127.0.0.1:${port}/${exportName}`;

export const exportOf = (uri: string) => new URL(uri).pathname.slice(1);
