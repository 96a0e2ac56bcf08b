// One attachment at work: performs what attachment.ts decides on the kernel, the server and the
// record, and hands back what became of it.
//
// DV1 A descriptor given to the kernel is kept (a dup of it cuts the connection), and closed once it
//     has been cut and replaced.
// DV2 At most one probe read of a device is under way: one that hangs is not joined by others, and
//     proves as much when it comes back at last.
// DV3 The kernel's device is touched only while its backend is this attachment's uuid.
import { setTimeout as sleep } from "node:timers/promises";
import type { NativeBinding } from "../native.js";
import { CsnapError, codeOf, messageOf } from "../volume/errors.js";
import {
  Attachment,
  type AttachmentAction,
  type AttachmentEvent,
  type Phase,
  type ServerAddress,
  type TimerName,
} from "./attachment.js";
import { type Dialed, DialRefused, dial } from "./dial.js";
import type { AttachmentRecord } from "./record.js";
import { backendOf, devicePath, inFlightOf, queueValue, setQueue, sizeBytesOf, usersOf } from "./sysfs.js";

/** Requests of a dead connection are repeated after this, rounded up by the kernel to about 1 s. */
const ioTimeoutMs = 100;
/** A block size that any partition table fits; the server takes any. */
const blockBytes = 512;
const dialLimitMs = 5_000;
/** Unacknowledged TCP data for so long ends a connection. */
export const silenceMs = 15_000;
/** How long requests wait in the kernel where the attachment has no limit of its own: 23 days, nearly the most it takes. */
const hangSeconds = 2_000_000;

const goneLimitMs = 2_000;
const gonePollMs = 10;

export interface DeviceHost {
  readonly native: NativeBinding;
  readonly save: (record: AttachmentRecord) => void;
  readonly forget: (device: Device) => Promise<void>;
  /** Keeps a dup of what the kernel was given beyond this process; undefined: nothing any more. */
  readonly keep: (device: Device, fd: number | undefined) => void;
  readonly tell: (device: Device, phase: Phase, reason: string) => void;
  /** a hold of a former attachment of this volume on this host is still to be ended */
  readonly owes: (volume: string) => boolean;
  readonly log: (line: string) => void;
}

export class Device {
  private readonly machine: Attachment;
  private readonly timers = new Map<TimerName, NodeJS.Timeout>();
  private readonly dialed = new Map<number, Dialed>();
  /** given to the kernel, the newest last */
  private installed: number[] = [];
  private probing = false;
  private wantsProof = false;
  private blindCut = false;
  /** why the record is not on stable storage as it is in memory */
  private unsaved: string | undefined;
  private readonly aborts = new Set<AbortController>();
  private queue: AttachmentEvent[] = [];
  private handling = false;

  constructor(
    private readonly host: DeviceHost,
    private record: AttachmentRecord,
    /** somebody waits for the first connection: a refusal is the answer */
    private readonly isNew: boolean,
    firstAttempt: number,
    inherited: readonly number[],
  ) {
    this.installed = [...inherited];
    const { device, identity, epoch } = record;
    this.machine = new Attachment({
      onLost: record.onLost,
      firstAttempt,
      random: Math.random,
      failure: record.failure ?? undefined,
      ...(device !== null && identity !== null && { known: { device, identity, epoch: BigInt(epoch) } }),
    });
  }

  get uuid(): string {
    return this.record.uuid;
  }
  get wanted(): AttachmentRecord {
    return this.record;
  }
  get index(): number | undefined {
    return this.machine.device;
  }
  get phase(): Phase {
    return this.machine.phase;
  }
  get reason(): string {
    return this.machine.reason;
  }
  get epoch(): bigint {
    return this.machine.epoch;
  }
  get exportName(): string {
    const { volume, snapshot } = this.record;
    return snapshot === null ? volume : `${volume}@${snapshot}`;
  }

  start(): void {
    this.perform(this.machine.start());
  }

  give(event: AttachmentEvent): void {
    this.queue.push(event);
    if (this.handling) return;
    this.handling = true;
    try {
      for (let next = this.queue.shift(); next; next = this.queue.shift())
        this.perform(this.machine.handle(next));
    } finally {
      this.handling = false;
    }
  }

  addressed(address: ServerAddress): void {
    this.give({ kind: "address", address });
  }

  /** Somebody else may have taken the device from the kernel. */
  lookAtKernel(): void {
    const { index, phase } = this;
    if (index === undefined || phase === "connecting" || phase === "gone") return;
    if (backendOf(index) !== this.uuid) this.give({ kind: "vanished" });
  }

  /** The agent ends: the device goes on. */
  leave(): void {
    for (const timer of this.timers.values()) clearTimeout(timer);
    for (const abort of this.aborts) abort.abort();
    for (const { fd } of this.dialed.values()) this.host.native.closeDescriptor(fd);
    this.dialed.clear();
  }

  private perform(actions: readonly AttachmentAction[]): void {
    for (const action of actions) this.act(action);
  }

  private act(action: AttachmentAction): void {
    const { native } = this.host;
    switch (action.kind) {
      case "save":
        this.save();
        break;
      case "dial":
        void this.dial(action.attempt, action.uris);
        break;
      case "hang-up":
        this.hangUp(action.attempt);
        break;
      case "cut":
        this.cut();
        break;
      case "connect":
        void this.connect(action.attempt);
        break;
      case "install":
        void this.install(action.attempt);
        break;
      case "prove":
        this.prove();
        break;
      case "arm":
        this.disarm(action.timer);
        this.timers.set(
          action.timer,
          setTimeout(() => this.give({ kind: "timer", timer: action.timer }), action.ms),
        );
        break;
      case "disarm":
        this.disarm(action.timer);
        break;
      case "check-unused":
        void this.checkUnused(action.deep);
        break;
      case "disconnect":
        void this.disconnect();
        break;
      case "forget":
        for (const fd of this.installed.splice(0)) native.closeDescriptor(fd);
        this.host.keep(this, undefined);
        void this.host.forget(this);
        break;
      case "tell":
        this.host.tell(this, action.phase, action.reason);
        break;
    }
  }

  private disarm(timer: TimerName): void {
    clearTimeout(this.timers.get(timer));
    this.timers.delete(timer);
  }

  /**
   * One that fails is told, and only a first CONNECT waits for it (AT5): the record of a device that is
   * attached names it already, and reconnecting matters more.
   */
  private save(): void {
    try {
      this.writeRecord();
      this.unsaved = undefined;
    } catch (error) {
      this.unsaved = messageOf(error);
      this.host.log(`${this.exportName}: ${this.unsaved}`);
    }
  }

  private writeRecord(): void {
    const { machine } = this;
    this.record = {
      ...this.record,
      device: machine.device ?? null,
      identity: machine.identity ?? null,
      epoch: String(machine.epoch),
      failure: machine.phase === "failed" ? machine.reason : null,
      ending: machine.phase === "disconnecting",
    };
    this.host.save(this.record);
  }

  private async dial(attempt: number, uris: readonly string[]): Promise<void> {
    const { uuid, readOnly, snapshot } = this.record;
    const isReconnect = this.index !== undefined;
    const mode = snapshot !== null ? "" : readOnly ? "&ro" : isReconnect ? "&held" : "";
    const exportName = `${this.exportName}?attachment=${uuid}.${attempt}${mode}`;
    try {
      this.expectHold();
    } catch (error) {
      this.give({ kind: "dial-failed", attempt, reason: messageOf(error), final: false });
      return;
    }
    const abort = new AbortController();
    this.aborts.add(abort);
    let failure: unknown;
    try {
      for (const uri of uris) {
        try {
          const options = { uri, exportName, limitMs: dialLimitMs, signal: abort.signal };
          const dialed = await dial(this.host.native, options, silenceMs);
          if (abort.signal.aborted) {
            this.host.native.closeDescriptor(dialed.fd);
            return;
          }
          this.dialed.set(attempt, dialed);
          this.give({ kind: "dialed", attempt, identity: dialed.identity, epoch: dialed.epoch });
          return;
        } catch (error) {
          failure = error;
        }
      }
    } finally {
      this.aborts.delete(abort);
    }
    if (abort.signal.aborted) return;
    const reason = failure === undefined ? "the server has no address for this host" : messageOf(failure);
    // Whoever waits for a first connection is answered, unless it is our own former hold that is in the way;
    // a device whose hold was ended, or whose snapshot is gone, must not wait for ever.
    const isAnswer = isReconnect || (this.isNew && !this.host.owes(this.record.volume));
    const isRefusal = failure instanceof DialRefused && failure.reply !== "SHUTDOWN";
    const final = isRefusal && isAnswer;
    this.give({ kind: "dial-failed", attempt, reason, final });
  }

  /** Before a server can give it: its answer may be lost, and so may this process. */
  private expectHold(): void {
    if (this.record.mayHold || this.isReadOnly) return;
    const record = { ...this.record, mayHold: true };
    this.host.save(record);
    this.record = record;
  }

  private hangUp(attempt: number): void {
    const dialed = this.dialed.get(attempt);
    if (!dialed) return;
    this.dialed.delete(attempt);
    this.host.native.shutdownSocket(dialed.fd);
    this.host.native.closeDescriptor(dialed.fd);
  }

  private cut(): void {
    const { native } = this.host;
    // A restarted agent has no descriptor of what the former one installed.
    this.blindCut = this.installed.length === 0;
    for (const fd of this.installed) native.shutdownSocket(fd);
    if (!this.blindCut || this.index === undefined || backendOf(this.index) !== this.uuid) return;
    // A timeout of a second makes the kernel give up the connection once a request is under way.
    this.prove();
    native
      .nbdReconfigure({ index: this.index, backend: this.uuid, timeoutSeconds: 1 })
      .catch((error: unknown) => this.host.log(`${this.exportName}: cutting: ${messageOf(error)}`));
  }

  private async connect(attempt: number): Promise<void> {
    const dialed = this.dialed.get(attempt);
    if (!dialed) return;
    this.dialed.delete(attempt);
    const { native } = this.host;
    this.installed.push(dialed.fd);
    this.host.keep(this, dialed.fd);
    const { onLost, wantedDevice } = this.record;
    const { identity, offer } = dialed;
    try {
      if (this.unsaved !== undefined) throw new CsnapError("IO_ERROR", this.unsaved);
      if (identity.sizeBytes % blockBytes !== 0)
        throw new CsnapError(
          "INVALID_ARGUMENT",
          `${this.exportName} has ${identity.sizeBytes} bytes, which is no multiple of ${blockBytes}: a device can't show its end`,
        );
      const index = await native.nbdConnect({
        ...(wantedDevice !== null && { index: wantedDevice }),
        sizeBytes: identity.sizeBytes,
        blockBytes,
        transmissionFlags: identity.transmissionFlags,
        timeoutSeconds: 0,
        deadConnectionTimeoutSeconds: waitSeconds(onLost),
        backend: this.uuid,
        fds: [dialed.fd],
      });
      this.tune(index, offer.maxPayloadBytes);
      if (sizeBytesOf(index) !== identity.sizeBytes)
        this.host.log(
          `${this.exportName}: ${devicePath(index)} shows ${sizeBytesOf(index)} bytes of ${identity.sizeBytes}: this kernel is too old for its size`,
        );
      this.give({ kind: "connected", device: index });
    } catch (error) {
      this.installed = [];
      native.shutdownSocket(dialed.fd);
      native.closeDescriptor(dialed.fd);
      this.give({ kind: "connect-failed", reason: messageOf(error) });
    }
  }

  /** Before the first I/O: the period is latched when a request is issued. */
  private tune(index: number, maxPayloadBytes: number): void {
    if (!setQueue(index, "io_timeout", ioTimeoutMs))
      this.host.log(
        `${devicePath(index)}: queue/io_timeout can't be set: a crash of the server will cost up to 30 s`,
      );
    const limitKb = Math.floor(maxPayloadBytes / 1024);
    if (Number(queueValue(index, "max_sectors_kb") ?? 0) > limitKb)
      setQueue(index, "max_sectors_kb", limitKb);
  }

  private async install(attempt: number): Promise<void> {
    const dialed = this.dialed.get(attempt);
    const { native } = this.host;
    const { index } = this;
    if (!dialed || index === undefined) return;
    this.dialed.delete(attempt);
    const former = this.installed;
    this.installed = [dialed.fd];
    this.host.keep(this, dialed.fd);
    try {
      if (backendOf(index) !== this.uuid)
        throw new CsnapError("NOT_FOUND", `${devicePath(index)} is another's now`);
      await native.nbdReconfigure({ index, backend: this.uuid, fds: [dialed.fd] });
      if (this.blindCut) {
        await native.nbdReconfigure({ index, backend: this.uuid, timeoutSeconds: 0 });
        this.blindCut = false;
      }
      this.tune(index, dialed.offer.maxPayloadBytes);
      this.give({ kind: "installed", attempt });
    } catch (error) {
      this.give({ kind: "install-failed", attempt, reason: messageOf(error) });
    } finally {
      for (const fd of former) native.closeDescriptor(fd);
    }
  }

  private prove(): void {
    const { index } = this;
    if (index === undefined) return;
    this.wantsProof = true;
    if (this.probing) return;
    this.probing = true;
    this.wantsProof = false;
    this.host.native.probeDevice(devicePath(index)).then(
      () => this.probeEnded({ kind: "proved" }),
      (error: unknown) => this.probeEnded({ kind: "proof-failed", reason: messageOf(error) }),
    );
  }

  private probeEnded(event: AttachmentEvent): void {
    this.probing = false;
    // One that failed may have been issued before the connection that is to be proved.
    if (event.kind === "proof-failed" && this.wantsProof) this.prove();
    else this.give(event);
  }

  private async checkUnused(deep: boolean): Promise<void> {
    const { index } = this;
    if (index === undefined) return;
    const users = usersOf(index);
    if (users.length === 0 && deep) {
      try {
        await this.host.native.flushUnusedDevice(devicePath(index), this.isReadOnly);
      } catch (error) {
        const text = messageOf(error);
        users.push(...(codeOf(error) === "BUSY" ? [...usersOf(index), text].slice(0, 1) : [text]));
      }
    }
    if (users.length === 0) this.give({ kind: "unused" });
    else this.give({ kind: "in-use", by: users.join("; ") });
  }

  get isReadOnly(): boolean {
    return this.record.readOnly || this.record.snapshot !== null;
  }

  get inFlight(): number {
    return this.index === undefined ? 0 : inFlightOf(this.index);
  }

  private async disconnect(): Promise<void> {
    const { index } = this;
    if (index === undefined) return;
    try {
      // Somebody else's device of that number is none of ours.
      if (backendOf(index) === this.uuid) await this.host.native.nbdDisconnect(index);
      // Until its last opener closes it; nobody waits for one that goes on after a failure.
      for (let waited = 0; waited < goneLimitMs && backendOf(index) === this.uuid; waited += gonePollMs)
        await sleep(gonePollMs);
      this.give({ kind: "disconnected" });
    } catch (error) {
      this.give({ kind: "disconnect-failed", reason: messageOf(error) });
    }
  }
}

function waitSeconds(onLost: AttachmentRecord["onLost"]): number {
  return onLost.mode === "hang" ? hangSeconds : Math.max(1, Math.ceil(onLost.afterMs / 1000));
}
