// The host's agent: holds the attachments, tells each what the broker, the kernel and its own probes
// find, and answers the commands.
//
// AG1 Ending or killing the agent detaches nothing; the next one finds every device by its backend.
// AG2 The origin of a volume is attached read-write at most once on this host; the server sees to
//     all hosts.
// AG3 A server is never started from here because somebody asked for a device (F7).
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import type { Broker, BrokerEvent, Ticket } from "../broker/broker.js";
import { ControlClient } from "../control/client.js";
import type { EventHub } from "../control/events.js";
import type { NativeBinding } from "../native.js";
import { CsnapError, messageOf } from "../volume/errors.js";
import { hostName } from "../volume/host.js";
import type { OnLost, Phase, ServerAddress } from "./attachment.js";
import { Device, type DeviceHost, silenceMs } from "./device.js";
import { look } from "./dial.js";
import type { DeviceFigures } from "./metrics.js";
import type { DeviceRecord } from "./model.js";
import type { AttachmentRecord, RecordStore } from "./record.js";
import {
  backendOf,
  configuredDevices,
  deviceIndex,
  devicePath,
  mayAdminister,
  mountsOfDevice,
  sizeBytesOf,
} from "./sysfs.js";
import { StallClock } from "./tally.js";

/** Attempts of one run of the agent; the run's number is the high part of each. */
const attemptsPerRun = 1_000_000;
/** How long `csnap attach` waits for a server that is not there. */
const attachLimitMs = 10_000;
const pollMs = 5_000;
const endHoldLimitMs = 5_000;

export interface AttachRequest {
  readonly volume: string;
  readonly snapshot: string | null;
  readonly readOnly: boolean;
  readonly device: number | null;
  readonly onLost: OnLost;
}

export interface AgentOptions {
  readonly native: NativeBinding;
  readonly broker: Broker;
  readonly records: RecordStore;
  readonly events: EventHub;
  readonly log: (line: string) => void;
  /** descriptors that the service manager kept */
  readonly inherited: readonly { readonly fd: number; readonly name: string }[];
  /** $NOTIFY_SOCKET, where descriptors can be kept */
  readonly notifySocket?: string | undefined;
}

interface Watched {
  readonly ticket: Ticket;
  last: BrokerEvent | undefined;
}

interface Waiter {
  readonly done: (phase: Phase, reason: string) => boolean;
}

type DeviceNews = "device-attached" | "device-lost" | "device-failed" | "device-detached";

export class Agent {
  private readonly devices = new Map<string, Device>();
  private readonly watched = new Map<string, Watched>();
  /** attachments whose device answers, as was last told */
  private readonly working = new Set<string>();
  /** by attachment */
  private readonly stalls = new Map<string, StallClock>();
  private readonly waiters = new Set<{ readonly uuid: string } & Waiter>();
  /** holds of attachments that are over, at servers that could not be told yet */
  private readonly owed = new Map<string, AttachmentRecord>();
  /** attachments that are over, while their hold is being ended */
  private readonly forgetting = new Map<string, Promise<void>>();
  private readonly host: DeviceHost;
  private readonly firstAttempt: number;
  private deadLinks: { close(): void } | undefined;
  private timer: NodeJS.Timeout | undefined;
  private probing = false;

  /** Throws PERMISSION where the kernel would refuse every device. */
  constructor(private readonly options: AgentOptions) {
    if (!mayAdminister())
      throw new CsnapError(
        "PERMISSION",
        "the agent needs root (CAP_SYS_ADMIN), or the kernel refuses it every device: run `csnap agent` as root",
      );
    const { native, records, log } = options;
    this.firstAttempt = records.nextRun() * attemptsPerRun;
    this.host = {
      native,
      save: (record) => records.save(record),
      forget: (device) => {
        const forgotten = this.forget(device)
          .catch((error: unknown) => log(`${device.exportName}: ${messageOf(error)}`))
          .finally(() => this.forgetting.delete(device.uuid));
        this.forgetting.set(device.uuid, forgotten);
        return forgotten;
      },
      keep: (device, fd) => this.keep(device, fd),
      tell: (device, phase, reason) => this.tell(device, phase, reason),
      owes: (volume) => [...this.owed.values()].some((record) => record.volume === volume),
      log,
    };
  }

  /** Takes up what a former agent has left. */
  start(): void {
    const { native, records, log } = this.options;
    try {
      this.listenToKernel();
    } catch (error) {
      // A host that only runs servers needs no nbd.
      log(`no devices here: ${messageOf(error)}`);
    }
    const kernel = new Map(configuredDevices().map(({ index, backend }) => [backend, index]));
    const kept = new Map(this.options.inherited.map(({ fd, name }) => [name, fd]));
    for (const record of records.load(log)) {
      const fd = kept.get(keptName(record.uuid));
      kept.delete(keptName(record.uuid));
      this.takeUp(record, kernel.get(record.uuid), fd === undefined ? [] : [fd]);
    }
    for (const fd of kept.values()) native.closeDescriptor(fd);
    this.timer = setInterval(() => void this.poll(), pollMs);
  }

  /** Throws where the kernel has no nbd; it may have later. */
  private listenToKernel(): void {
    this.deadLinks ??= this.options.native.watchDeadLinks((index) => this.onDeadLink(index));
  }

  private takeUp(record: AttachmentRecord, index: number | undefined, fds: readonly number[]): void {
    if (index === undefined && record.ending) {
      this.owed.set(record.uuid, record);
      this.watch(record.volume);
      return;
    }
    // Killed between CONNECT and the record of its answer: the kernel knows the number.
    const found =
      index === undefined ? { ...record, device: null, identity: null } : { ...record, device: index };
    const device = this.add(found, false, fds);
    if (record.ending) device.give({ kind: "detach", force: true });
  }

  private add(record: AttachmentRecord, isNew: boolean, fds: readonly number[]): Device {
    const device = new Device(this.host, record, isNew, this.firstAttempt, fds);
    this.devices.set(device.uuid, device);
    device.start();
    this.watch(record.volume);
    const last = this.watched.get(record.volume)?.last;
    if (last) this.pass(device, last);
    return device;
  }

  /** Devices stay as they are. */
  close(): void {
    clearInterval(this.timer);
    this.deadLinks?.close();
    for (const device of this.devices.values()) device.leave();
  }

  /** A restarted agent cuts a connection only if it has a descriptor of it. */
  private keep(device: Device, fd: number | undefined): void {
    const { native, notifySocket } = this.options;
    if (notifySocket === undefined) return;
    const name = keptName(device.uuid);
    native.notify(notifySocket, `FDSTOREREMOVE=1\nFDNAME=${name}`);
    if (fd !== undefined) native.storeDescriptor(notifySocket, name, fd);
  }

  // ---- Commands -------------------------------------------------------------------------------

  async attach(request: AttachRequest): Promise<DeviceRecord> {
    const { volume, snapshot } = request;
    const name = snapshot === null ? volume : `${volume}@${snapshot}`;
    this.listenToKernel();
    this.refuseSecond(request, name);
    const record: AttachmentRecord = {
      uuid: randomUUID(),
      volume,
      snapshot,
      readOnly: request.readOnly || snapshot !== null,
      onLost: request.onLost,
      wantedDevice: request.device,
      since: new Date().toISOString(),
      failure: null,
      ending: false,
      mayHold: false,
      device: null,
      identity: null,
      epoch: "0",
    };
    this.options.records.save(record);
    const device = this.add(record, true, []);
    void this.settle(volume);
    const outcome = await this.waitFor(
      device,
      (phase) => phase === "attached" || phase === "failed" || phase === "gone",
      attachLimitMs,
    );
    if (outcome === "attached") return this.describe(device);
    const reason = device.reason;
    const hint =
      outcome === undefined && device.index === undefined
        ? `: start \`csnap serve ${volume}\` and try again`
        : "";
    device.give({ kind: "detach", force: true });
    throw new CsnapError("NOT_SERVED", `${name} can't be attached: ${reason}${hint}`);
  }

  private refuseSecond({ volume, snapshot, readOnly, device: wanted }: AttachRequest, name: string): void {
    for (const device of this.devices.values()) {
      const record = device.wanted;
      if (
        snapshot === null &&
        !readOnly &&
        record.volume === volume &&
        record.snapshot === null &&
        !record.readOnly
      )
        throw new CsnapError(
          "ALREADY_EXISTS",
          `${name} is attached read-write already, as ${pathOf(device)}: use that, or \`csnap detach ${name}\` first`,
        );
    }
    if (wanted !== null && backendOf(wanted) !== undefined)
      throw new CsnapError(
        "BUSY",
        `${devicePath(wanted)} is in use: choose another with --device, or leave it out`,
      );
  }

  /** @param target a device, `volume`, `volume@snapshot` or an attachment's uuid */
  async detach(target: string, force: boolean): Promise<DeviceRecord[]> {
    const found = this.find(target);
    if (found.length === 0)
      throw new CsnapError(
        "NOT_FOUND",
        `${target} is not attached on this host: \`csnap devices\` lists what is`,
      );
    const gone: DeviceRecord[] = [];
    for (const device of found) {
      const record = this.describe(device);
      let refusal = "";
      const outcome = this.waitFor(
        device,
        (phase, reason) => {
          // The first word after the question says whether anybody uses it.
          if (phase === "releasing" && reason !== "is it in use?") refusal = reason;
          return phase === "gone" || refusal !== "";
        },
        30_000,
      );
      device.give({ kind: "detach", force });
      await outcome;
      if (refusal !== "")
        throw new CsnapError(
          "BUSY",
          `${record.device ?? target} is in use: ${refusal}: unmount or close it first, or lose what is not written with --force`,
        );
      if (device.phase !== "gone")
        throw new CsnapError(
          "BUSY",
          `${record.device ?? target} does not let go (${device.reason}): see \`csnap devices\``,
        );
      // Whoever comes next may write, unless the server is away: then it is told when it is back.
      const limit = new AbortController();
      const late = sleep(endHoldLimitMs, undefined, { signal: limit.signal }).catch(() => {});
      await Promise.race([this.forgetting.get(device.uuid), late]);
      limit.abort();
      gone.push(record);
    }
    return gone;
  }

  private find(target: string): Device[] {
    const all = [...this.devices.values()];
    const index = deviceIndex(target);
    return all.filter(
      (device) =>
        (index !== undefined && device.index === index) ||
        device.exportName === target ||
        device.uuid === target,
    );
  }

  list(): DeviceRecord[] {
    return [...this.devices.values()].map((device) => this.describe(device));
  }

  figures(): DeviceFigures[] {
    const now = performance.now();
    return [...this.devices.values()].map((device) => ({
      device: this.describe(device),
      stall: this.stallOf(device).at(now),
    }));
  }

  private stallOf({ uuid }: Device): StallClock {
    const stall = this.stalls.get(uuid) ?? new StallClock();
    this.stalls.set(uuid, stall);
    return stall;
  }

  private describe(device: Device): DeviceRecord {
    const { wanted, index } = device;
    return {
      device: index === undefined ? null : devicePath(index),
      volume: wanted.volume,
      snapshot: wanted.snapshot,
      attachment: wanted.uuid,
      state: device.phase,
      reason: device.reason || null,
      read_only: device.isReadOnly,
      size: index === undefined ? 0 : sizeBytesOf(index),
      epoch: Number(device.epoch),
      on_lost: wanted.onLost.mode === "hang" ? "hang" : `error:${wanted.onLost.afterMs / 1000}s`,
      since: wanted.since,
      in_flight: device.inFlight,
      mounts: index === undefined ? [] : mountsOfDevice(index).map((mount) => mount.directory),
    };
  }

  // ---- What happens ---------------------------------------------------------------------------

  private watch(volume: string): void {
    if (this.watched.has(volume)) return;
    const ticket = this.options.broker.watch(volume);
    const watched: Watched = { ticket, last: undefined };
    this.watched.set(volume, watched);
    ticket.on((event) => {
      if (event.type === "broker" || event.type === "resync") return;
      watched.last = event;
      for (const device of this.devices.values())
        if (device.wanted.volume === volume) this.pass(device, event);
      if (event.type === "address") void this.settle(volume);
    });
  }

  private pass(device: Device, event: BrokerEvent): void {
    if (event.type === "address") {
      const address = addressFor(event);
      if (address.uris.length > 0) device.addressed(address);
      else
        device.give({
          kind: "no-address",
          reason: `its server on ${event.host} listens on a unix socket only`,
        });
    } else if (event.type === "pending") {
      device.give({ kind: "no-address", reason: pendingTexts[event.reason] });
    } else if (event.type === "withdrawn") {
      device.give({ kind: "no-address", reason: `its server has stopped (${event.reason})` });
    } else if (event.type === "failed") {
      device.give({ kind: "no-address", reason: event.detail });
    }
  }

  private onDeadLink(index: number): void {
    for (const device of this.devices.values()) {
      if (index === -1) device.give({ kind: "doubt" });
      else if (device.index === index) device.give({ kind: "dead" });
    }
  }

  private tell(device: Device, phase: Phase, reason: string): void {
    const { events, log } = this.options;
    const kind = this.newsOf(device, phase);
    if (kind !== undefined) {
      if (kind === "device-lost") this.stallOf(device).lost(performance.now());
      else this.stallOf(device).over(performance.now());
      if (kind === "device-detached") this.stalls.delete(device.uuid);
      const at =
        device.index === undefined ? device.exportName : `${device.exportName} (${devicePath(device.index)})`;
      const { volume, snapshot } = device.wanted;
      const message = `${at}${reason && `: ${reason}`}`;
      events.emit({ kind, volume, snapshot: snapshot ?? "", message });
      log(`${kind.replace("device-", "")} ${message}`);
    }
    for (const waiter of [...this.waiters]) if (waiter.uuid === device.uuid) waiter.done(phase, reason);
  }

  /** What of an attachment's phases is worth an event. */
  private newsOf(device: Device, phase: Phase): DeviceNews | undefined {
    if (phase === "failed") return "device-failed";
    if (phase === "gone") return "device-detached";
    if (phase === "attached" && !this.working.has(device.uuid)) {
      this.working.add(device.uuid);
      return "device-attached";
    }
    const isLost = phase === "cutting" || phase === "dialing" || phase === "waiting";
    return isLost && this.working.delete(device.uuid) ? "device-lost" : undefined;
  }

  /** Resolves to the phase that `accepts` took, or to undefined after the limit. */
  private waitFor(
    device: Device,
    accepts: (phase: Phase, reason: string) => boolean,
    limitMs: number,
  ): Promise<Phase | undefined> {
    if (accepts(device.phase, device.reason)) return Promise.resolve(device.phase);
    return new Promise((resolve) => {
      const end = (phase: Phase | undefined) => {
        clearTimeout(timer);
        this.waiters.delete(waiter);
        resolve(phase);
      };
      const waiter = {
        uuid: device.uuid,
        done: (phase: Phase, reason: string) => {
          if (!accepts(phase, reason)) return false;
          end(phase);
          return true;
        },
      };
      const timer = setTimeout(() => end(undefined), limitMs);
      this.waiters.add(waiter);
    });
  }

  /** The attachment is over: its hold ends at the server, then its record. */
  private async forget(device: Device): Promise<void> {
    this.devices.delete(device.uuid);
    const { wanted } = device;
    if (!wanted.mayHold) {
      this.options.records.remove(wanted.uuid);
      return;
    }
    const owed = { ...wanted, ending: true, device: null };
    this.options.records.save(owed);
    this.owed.set(wanted.uuid, owed);
    await this.settle(wanted.volume);
  }

  /** Tells the server of this volume which holds are over. */
  private async settle(volume: string): Promise<void> {
    const last = this.watched.get(volume)?.last;
    const socket = last?.type === "address" ? last.controlSocket : undefined;
    if (socket === undefined) return;
    for (const record of [...this.owed.values()]) {
      if (record.volume !== volume) continue;
      try {
        await new ControlClient(socket, volume).endHold({ attachment: record.uuid, force: false });
        this.owed.delete(record.uuid);
        this.options.records.remove(record.uuid);
      } catch (error) {
        this.options.log(`${volume}: its hold can't be ended yet: ${messageOf(error)}`);
        return;
      }
    }
  }

  /** Is the kernel as it was, and do servers answer? */
  private async poll(): Promise<void> {
    for (const device of this.devices.values()) device.lookAtKernel();
    if (this.probing) return;
    this.probing = true;
    const attached = [...this.devices.values()].filter((device) => device.phase === "attached");
    await Promise.all(attached.map((device) => this.probe(device)));
    this.probing = false;
    for (const volume of new Set([...this.owed.values()].map((record) => record.volume)))
      await this.settle(volume);
  }

  private async probe(device: Device): Promise<void> {
    const last = this.watched.get(device.wanted.volume)?.last;
    const uri = last?.type === "address" ? addressFor(last).uris[0] : undefined;
    if (uri === undefined) return;
    const started = performance.now();
    try {
      const { epoch } = await look({ uri, exportName: device.exportName, limitMs: silenceMs });
      if (epoch > device.epoch)
        device.give({ kind: "silent", reason: `the server has moved to epoch ${epoch}` });
    } catch (error) {
      // One that refuses connections has ended, and the kernel says so.
      if (performance.now() - started >= silenceMs - 100)
        device.give({ kind: "silent", reason: messageOf(error) });
    }
  }
}

/** What this host can reach: a unix socket only on the server's own. */
function addressFor(event: Extract<BrokerEvent, { type: "address" }>): ServerAddress {
  const isHere = event.host === hostName();
  const unix = event.uris.filter((uri) => uri.startsWith("nbd+unix:") || uri.startsWith("nbds+unix:"));
  const tcp = event.uris.filter((uri) => !unix.includes(uri));
  return { epoch: event.epoch, uris: isHere ? [...unix, ...tcp] : tcp };
}

/** The name under which the service manager keeps an attachment's descriptor. */
function keptName(uuid: string): string {
  return `nbd-${uuid}`;
}

function pathOf(device: Device): string {
  return device.index === undefined
    ? `a device to be (${device.phase}: ${device.reason})`
    : devicePath(device.index);
}

const pendingTexts: Readonly<Record<Extract<BrokerEvent, { type: "pending" }>["reason"], string>> = {
  looking: "its server is being looked up",
  undefined: "no server of it is known on this host",
  "no-agent": "nobody serves it",
  starting: "its server is starting",
  backoff: "its server failed to start and is tried again",
  disabled: "an administrator has disabled it (`csnap volume enable` ends that)",
};
