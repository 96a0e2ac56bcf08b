// Hints that a service's directory of records has changed, by inotify. Used by file_records.ts.
//
// DW1 Hints only: events may be lost, and where inotify is not to be had there are none. The feed's
//     poll finds what was missed, and asks for a new try.
import { type FSWatcher, watch } from "node:fs";
import { stat } from "node:fs/promises";
import { basename } from "node:path";

const retryMs = 2000;

export class DirectoryWatch {
  private watcher: FSWatcher | undefined;
  private retry: NodeJS.Timeout | undefined;
  private ended = false;

  /** @param prepare makes the directory, so that it can be watched before there is a record */
  constructor(
    private readonly directory: string,
    private readonly changed: () => void,
    private readonly prepare: () => Promise<void>,
  ) {
    void this.start();
  }

  end(): void {
    this.ended = true;
    clearTimeout(this.retry);
    this.watcher?.close();
    this.watcher = undefined;
  }

  /** The stat goes through the pool: where the directory hangs, inotify would hang this thread. */
  private async start(): Promise<void> {
    try {
      await this.prepare();
      await stat(this.directory);
      if (this.ended) return;
      this.watcher = watch(this.directory, { persistent: false });
      this.watcher.on("error", () => this.restart());
      this.watcher.on("change", (_kind, name) => {
        // The directory itself was removed or renamed.
        if (name === basename(this.directory)) this.restart();
        else if (String(name).startsWith("r.")) this.changed();
      });
      // What came between the last look and the watch.
      this.changed();
    } catch {
      this.retry = setTimeout(() => void this.start(), retryMs).unref();
    }
  }

  private restart(): void {
    this.watcher?.close();
    this.watcher = undefined;
    if (this.ended) return;
    this.changed();
    void this.start();
  }
}
