// `csnap serve`: one volume's server from opening to its last byte.
//
// SV1 Sockets appear only after the volume is open, and so locked: a second server of the same volume
//     can't take them away.
// SV2 Every way out but a crash closes the volume in order; after a failure (W9) without trusting it.
// SV3 On a stop no client gets an error: what is under way is finished, then connections close.
import { randomUUID } from "node:crypto";
import { mkdirSync } from "node:fs";
import type { Broker } from "../broker/broker.js";
import { claimEpoch } from "../broker/claim_epoch.js";
import { EventHub } from "../control/events.js";
import { renderMetrics } from "../control/metrics.js";
import { MetricsServer } from "../control/prometheus.js";
import { ControlServer } from "../control/server.js";
import type { NativeBinding, NativeVolume, NativeVolumeEvent } from "../native.js";
import { restrict } from "../nbd/access.js";
import { ListenError } from "../nbd/listen.js";
import { NbdServer } from "../nbd/server.js";
import { nbdUri, parseNbdUri } from "../nbd/uri.js";
import type { VolumeDefinition } from "../volume/definition.js";
import { DirectOperations } from "../volume/direct.js";
import { CsnapError, codeOf, systemText } from "../volume/errors.js";
import { hostName } from "../volume/host.js";
import { checkOriginIsFree, openVolume, waitForLock } from "../volume/open.js";
import { checkSocketPath, controlSocketPath } from "../volume/paths.js";
import { version } from "../volume/version.js";
import { Clients } from "./clients.js";
import { VolumeExports } from "./exports.js";
import { type Dependents, takePrecautions, warningsOf } from "./harden.js";
import { Holds } from "./holds.js";
import { ServiceNotifier } from "./notify.js";
import type { ServePlan } from "./options.js";
import { StoreGuard } from "./store_guard.js";
import { Term } from "./term.js";

export interface ServeRequest {
  readonly native: NativeBinding;
  readonly broker: Broker;
  /** given by the agent that starts this server; absent: started by hand */
  readonly instance?: string | undefined;
  readonly definition: VolumeDefinition;
  readonly runDir: string;
  readonly plan: ServePlan;
  readonly acceptOrigin: boolean;
  readonly acceptLoss: boolean;
  /** once per listener, when it accepts */
  readonly ready: (uri: string) => void;
  /** a line for the log, without the volume's name */
  readonly log: (line: string) => void;
}

/** How long connections may take to finish what is under way after the first signal. */
const drainLimitMs = 30_000;
/** How long TLS may take to carry the last replies. */
const tlsGraceMs = 5_000;
/** A failed volume is closed as far as it lets itself be closed. */
const failedCloseLimitMs = 5_000;

/** Resolves when the server has stopped in order; rejects when it could not start or has failed. */
export async function serveVolume(request: ServeRequest): Promise<void> {
  const { definition, native, plan, runDir } = request;
  checkOriginIsFree(definition);
  const controlPath = checkSocketPath(controlSocketPath(runDir, definition.name));
  makeRunDir(runDir);
  const isRoot = process.getuid?.() === 0;
  const missing = takePrecautions(native);
  const claimedMs = performance.now();
  const claim = {
    purpose: "serve",
    instance: request.instance ?? randomUUID(),
    ordered: request.instance !== undefined,
  } as const;
  const grant = await waitForLock(() => claimEpoch(request.broker, native, definition, claim));
  const term = new Term(grant, request.log);
  let server: VolumeServer | undefined;
  let volume: NativeVolume | undefined;
  const early: NativeVolumeEvent[] = [];
  try {
    volume = await waitForLock(() =>
      openVolume(native, definition, {
        durability: term.isShared ? "sync" : plan.durability,
        direct: term.isShared,
        lookOnly: false,
        acceptOrigin: request.acceptOrigin,
        acceptLoss: request.acceptLoss,
        epoch: term.epoch,
        ...(term.gate !== undefined && { gate: term.gate }),
        ...(term.reservation && { reservation: term.reservation }),
        onEvent: (event) => (server ? server.onEvent(event) : early.push(event)),
      }),
    );
    checkIdentity(definition, volume);
    server = new VolumeServer(request, volume, term, claimedMs, controlPath, (dependents) =>
      warningsOf(missing, isRoot, dependents),
    );
    for (const event of early) server.onEvent(event);
    await server.start();
    // Not before: a server that does not start says why in one line.
    if (isRoot) for (const problem of missing) request.log(problem);
  } catch (error) {
    await server?.abandon();
    await volume?.close();
    await term.release();
    throw error;
  }
  await server.run();
}

/** A run directory of root's is open to look at (its sockets have modes); a user's own is private. */
function makeRunDir(runDir: string): void {
  try {
    mkdirSync(runDir, { recursive: true, mode: process.getuid?.() === 0 ? 0o755 : 0o700 });
  } catch (error) {
    throw new CsnapError(
      codeOf(error),
      `the run directory ${runDir} can't be made: ${systemText(error)}: choose another with $CSNAP_RUN_DIR`,
    );
  }
}

function checkIdentity({ name, uuid, store }: VolumeDefinition, volume: NativeVolume): void {
  const found = volume.info().volumeUuid;
  if (found === uuid) return;
  throw new CsnapError(
    "WRONG_ORIGIN",
    `${name}: the store ${store} belongs to another volume (uuid ${found}, defined is ${uuid}): correct its path, or \`csnap remove ${name}\` and import the store`,
  );
}

/** What other hosts can dial: a listener on all addresses is told by this host's name. */
function reachable(uri: string): string {
  const { tls, address, exportName } = parseNbdUri(uri);
  if (address.transport === "unix" || !["0.0.0.0", "::"].includes(address.host)) return uri;
  return nbdUri({ ...address, host: hostName() }, tls, exportName);
}

class VolumeServer {
  private readonly hub: EventHub;
  private readonly exports: VolumeExports;
  private readonly clients: Clients;
  private readonly guard: StoreGuard;
  private readonly notifier: ServiceNotifier;
  private readonly nbd: NbdServer;
  private readonly control: ControlServer;
  private readonly operations: DirectOperations;
  private readonly uris: string[] = [];
  private readonly started = new Date().toISOString();
  private startMs: number | null = null;
  private metrics: MetricsServer | undefined;
  private metricsUrl: string | undefined;
  private failure: string | undefined;
  private wakeOnFailure: (() => void) | undefined;
  /** A newer term has begun (F1). */
  private lost: string | undefined;
  /** What ends the server in order (a signal, the broker), or undefined for a failure; set by start(). */
  private stopReason: Promise<string | undefined> | undefined;

  constructor(
    private readonly request: ServeRequest,
    private readonly volume: NativeVolume,
    private readonly term: Term,
    /** performance.now() when its claim began */
    private readonly claimedMs: number,
    private readonly controlPath: string,
    warnings: (dependents: Dependents) => readonly string[],
  ) {
    const { native, definition, plan, log } = request;
    this.hub = new EventHub(definition.name);
    const holds = new Holds({
      volume: definition.name,
      native: volume,
      otherWriter: (attachment) => this.clients.writerBeside(attachment),
      emit: (kind, message) => {
        this.hub.emit({ kind, message });
        log(`${kind}: ${message}`);
      },
    });
    this.clients = new Clients(volume, holds);
    this.exports = new VolumeExports(definition.name, volume, (info, asked) =>
      this.clients.offer(info, asked),
    );
    this.guard = new StoreGuard(volume, log);
    this.notifier = new ServiceNotifier(native, process.env, process.pid);
    this.operations = new DirectOperations(native, volume, {
      volume: definition.name,
      originPath: definition.origin,
      storePath: definition.store,
      server: () => this.record(),
      snapshotsChanged: () => this.exports.refresh(),
      hold: () => holds.current,
      warnings: () => warnings({ holder: holds.current?.host, clients: this.clients.list() }),
      endHold: (which) => this.clients.endHold(which),
    });
    this.control = new ControlServer({
      socketPath: controlPath,
      operations: this.operations,
      events: this.hub,
    });
    this.nbd = new NbdServer({
      directory: restrict(this.exports, plan.access),
      admit: (admission) => this.clients.admit(admission),
      startTransmission: (start) => {
        const client = this.clients.start(start);
        this.hub.emit({
          kind: "client-connected",
          message: `#${client.id} ${client.peer} uses ${client.export}`,
        });
        this.showStatus();
      },
      ...(plan.tls && { tls: { ...plan.tls, native } }),
      log,
    });
  }

  async start(): Promise<void> {
    const { plan, definition, ready, log } = this.request;
    await this.exports.refresh();
    // From the first listener on there may be clients: a signal must end the server in order.
    this.stopReason = this.signalOrFailure();
    try {
      await this.control.listen();
      for (const fd of plan.inherited) this.uris.push(await this.nbd.listenInherited(fd));
      for (const address of plan.addresses) this.uris.push(await this.nbd.listen(address));
      await this.startMetrics();
    } catch (error) {
      if (error instanceof ListenError)
        throw new CsnapError("IO_ERROR", `${definition.name}: ${error.message}`);
      throw error;
    }
    const { epoch, replayedRecords, lostEntries, clean } = this.volume.info();
    if (!clean)
      log(`recovered after a crash: ${replayedRecords} journal records, ${lostEntries} chunks lost`);
    await this.term.publish({
      uris: this.uris.map((uri) => (this.term.gate === undefined ? uri : reachable(uri))),
      controlSocket: this.controlPath,
    });
    this.startMs = Math.round(performance.now() - this.claimedMs);
    for (const uri of this.uris) ready(uri);
    if (this.metricsUrl !== undefined) log(`metrics at ${this.metricsUrl}`);
    this.hub.emit({ kind: "server-ready", message: `epoch ${epoch}` });
    this.notifier.ready(this.statusText(), () => this.failure === undefined);
  }

  private async startMetrics(): Promise<void> {
    const { metrics: wanted } = this.request.plan;
    if (wanted === undefined) return;
    this.metrics = new MetricsServer(async () => renderMetrics(await this.operations.status()));
    try {
      this.metricsUrl = await this.metrics.listen(wanted.host, wanted.port);
    } catch (error) {
      this.metrics = undefined;
      throw new ListenError(
        `--metrics ${wanted.host}:${wanted.port}: ${systemText(error)}; choose another address`,
      );
    }
  }

  /** Until a signal or a failure. */
  async run(): Promise<void> {
    const signal = await this.stopReason;
    // Without a gate, too, where the volume says so: a device is reserved for another host.
    if (this.lost !== undefined && (this.term.gate !== undefined || signal === undefined))
      return this.stopLost(this.lost);
    if (signal === undefined) return this.stopFailed();
    this.request.log(
      `${signal}: finishing what is under way; ${signal.startsWith("SIG") ? "again to cut it" : "a signal cuts it"}`,
    );
    this.hub.emit({ kind: "server-stopping", message: signal });
    this.notifier.stopping("draining connections");
    await this.term.withdraw(`stopping: ${signal}`);
    await this.nbd.stopAccepting();
    await this.drain();
    await this.nbd.close(tlsGraceMs);
    await this.endServices();
    if (this.failure !== undefined) return this.stopFailed();
    await this.volume.close();
    await this.term.release();
    this.notifier.end();
    if (this.lost !== undefined) throw new CsnapError("FENCED", this.lost);
  }

  private signalOrFailure(): Promise<string | undefined> {
    return new Promise((resolve) => {
      const onSignal = (signal: NodeJS.Signals) => {
        process.off("SIGTERM", onSignal).off("SIGINT", onSignal);
        resolve(signal);
      };
      process.on("SIGTERM", onSignal).on("SIGINT", onSignal);
      const end = (why: string) => {
        process.off("SIGTERM", onSignal).off("SIGINT", onSignal);
        resolve(why);
      };
      this.term.listen(end, (why) => {
        this.lost = why;
        end(why);
      });
      this.wakeOnFailure = () => resolve(undefined);
      if (this.failure !== undefined || this.lost !== undefined) resolve(undefined);
    });
  }

  /** SV3; a second signal, or the limit, cuts. */
  private async drain(): Promise<void> {
    const cut = (why: string) => {
      // Once all have ended a signal changes nothing: the volume is being closed.
      if (this.clients.count === 0) return;
      this.request.log(`${why}: cutting what is left, connections: ${this.clients.count}`);
      void this.clients.closeAll();
    };
    process.on("SIGTERM", cut).on("SIGINT", cut);
    const timer = setTimeout(() => cut(`not done in ${drainLimitMs / 1000} s`), drainLimitMs);
    this.clients.drainAll();
    await this.clients.allEnded();
    clearTimeout(timer);
  }

  /** SV2: W9. Connections are cut, not answered, so that clients can wait for a repaired server. */
  private async stopFailed(): Promise<void> {
    const { definition } = this.request;
    this.notifier.stopping(`failed: ${this.failure}`);
    await this.abandon();
    const limit = new Promise<void>((resolve) => setTimeout(resolve, failedCloseLimitMs).unref());
    await Promise.race([this.volume.close().catch(() => {}), limit]);
    await this.term.release(this.failure ?? "the volume failed");
    throw new CsnapError(
      "FAILED",
      `${definition.name} stopped: ${this.failure}: \`csnap check ${definition.name}\` says what is left, see also --accept-loss of \`csnap serve\``,
    );
  }

  /** TE4. The term is only given back when nothing of it is under way any more. */
  private async stopLost(why: string): Promise<void> {
    this.request.log(`its grant has ended: ${why}: cutting connections`);
    this.notifier.stopping("its grant has ended");
    await this.abandon();
    const closed = this.volume.close().then(
      () => true,
      // FENCED: it is closed, and nothing was written.
      () => true,
    );
    const limit = new Promise<boolean>((resolve) => setTimeout(resolve, failedCloseLimitMs, false).unref());
    if (await Promise.race([closed, limit])) await this.term.release();
    throw new CsnapError("FENCED", `${this.request.definition.name} stopped: ${why}`);
  }

  /** Everything but the volume, at once. */
  async abandon(): Promise<void> {
    void this.clients.closeAll();
    await this.nbd.close();
    await this.endServices();
    this.notifier.end();
  }

  private async endServices(): Promise<void> {
    await this.metrics?.close();
    this.metrics = undefined;
    await this.control.close();
  }

  /** Everything the core reports; called on the main thread. */
  onEvent(event: NativeVolumeEvent): void {
    const { kind, snapshot, name, message } = event;
    if (kind === "connection-closed") {
      const client = this.clients.ended(event.connection ?? -1);
      if (client)
        this.hub.emit({
          kind: "client-closed",
          message: `#${event.connection} ${client.peer} left ${client.export}${message && `: ${message}`}`,
        });
      this.showStatus();
      return;
    }
    this.hub.emit({ kind, snapshot: name, snapshotUuid: snapshot, message });
    this.request.log(message || `${kind}${name && ` @${name}`}`);
    if (kind === "snapshot-deleted" || kind === "snapshot-dropped") this.exports.remove(snapshot);
    if (kind === "snapshot-dropped" || kind === "high-water") this.guard.overtaken();
    if (kind === "low-water") void this.guard.lowWater();
    if (kind === "failed" && event.code === "FENCED") {
      this.lost ??= message;
      this.wakeOnFailure?.();
    } else if (kind === "failed") {
      this.failure = message || "the volume failed";
      this.wakeOnFailure?.();
    }
  }

  private record() {
    return {
      pid: process.pid,
      version,
      started: this.started,
      listeners: this.uris,
      metrics: this.metricsUrl ?? null,
      grant_remaining_ms: this.term.remainingMs(this.request.native.boottimeMs()),
      start_ms: this.startMs,
      clients: this.clients.list(),
    };
  }

  private showStatus(): void {
    if (this.failure === undefined) this.notifier.status(this.statusText());
  }

  private statusText(): string {
    return `serving ${this.request.definition.name}, connections: ${this.clients.count}`;
  }
}
