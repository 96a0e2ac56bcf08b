// Tells the service manager how the server is (sd_notify): READY, STATUS, STOPPING and the watchdog.
// Does nothing where $NOTIFY_SOCKET is not set.
import type { NativeBinding } from "../native.js";

export class ServiceNotifier {
  private readonly socketPath: string | undefined;
  private readonly watchdogMs: number | undefined;
  private timer: NodeJS.Timeout | undefined;

  constructor(
    private readonly native: Pick<NativeBinding, "notify">,
    env: NodeJS.ProcessEnv,
    pid: number,
  ) {
    this.socketPath = env.NOTIFY_SOCKET || undefined;
    this.watchdogMs = watchdogIntervalMs(env, pid);
  }

  /** `alive` is asked before every watchdog message: a server that has failed lets it run out. */
  ready(status: string, alive: () => boolean): void {
    this.send(`READY=1\nSTATUS=${status}`);
    if (this.watchdogMs === undefined) return;
    this.timer = setInterval(() => {
      if (alive()) this.send("WATCHDOG=1");
    }, this.watchdogMs);
    this.timer.unref();
  }

  status(text: string): void {
    this.send(`STATUS=${text}`);
  }

  stopping(status: string): void {
    this.send(`STOPPING=1\nSTATUS=${status}`);
  }

  /** After the last message. */
  end(): void {
    clearInterval(this.timer);
  }

  private send(text: string): void {
    if (this.socketPath !== undefined) this.native.notify(this.socketPath, text);
  }
}

/** Half of the limit, as sd_watchdog_enabled(3) advises; undefined where no watchdog waits for us. */
export function watchdogIntervalMs(env: NodeJS.ProcessEnv, pid: number): number | undefined {
  const limitUs = Number(env.WATCHDOG_USEC ?? 0);
  const isMeant = env.WATCHDOG_PID === undefined || Number(env.WATCHDOG_PID) === pid;
  return isMeant && Number.isFinite(limitUs) && limitUs > 0 ? Math.max(1, limitUs / 2000) : undefined;
}
