// The only file that loads the addon. Its types are the contract between TypeScript and C++: about a
// dozen calls; no buffer of chunk data ever crosses. Byte counts and chunk numbers are JS numbers
// (< 2^53), opaque 64-bit values (epoch, sequence, times in ns) are bigint, uuids are text.
import { createRequire } from "node:module";

/** Names of native/base/error_codes.def. */
export type NativeErrorCode =
  | "IO_ERROR"
  | "NO_SPACE"
  | "INVALID_ARGUMENT"
  | "OUT_OF_RANGE"
  | "READ_ONLY"
  | "NOT_FOUND"
  | "ALREADY_EXISTS"
  | "BUSY"
  | "CORRUPT"
  | "WRONG_ORIGIN"
  | "ORIGIN_CHANGED"
  | "NOT_A_STORE"
  | "NEWER_FORMAT"
  | "TRUNCATED"
  | "FAILED"
  | "NEEDS_ACCEPT_LOSS"
  | "FENCED"
  | "NOT_SUPPORTED"
  | "SHUTTING_DOWN"
  | "SNAPSHOT_DELETED"
  | "LIMIT"
  | "SHORT_IO"
  | "STORE_IN_USE"
  | "WOULD_BLOCK"
  | "PERMISSION";

/** An operating error of the core. The message is one line for a person. */
export class NativeError extends Error {
  readonly code: NativeErrorCode;
  readonly errno: number;
  constructor(code: NativeErrorCode, message: string, errno: number) {
    super(message);
    this.name = "NativeError";
    this.code = code;
    this.errno = errno;
  }
}

export type OnFull = "drop-snapshots" | "refuse-writes";
export type Durability = "flush" | "sync";

export interface CreateStoreOptions {
  readonly volumeName: string;
  readonly originPath: string;
  readonly storePath: string;
  /** Size of a store file to make (allocated in full); a block device is used whole (0). */
  readonly storeBytes: number;
  readonly chunkBytes: number;
  readonly onFull: OnFull;
  /** Overwrite a store that is already there. */
  readonly force: boolean;
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
}

/** A superblock as found, nothing opened or locked. */
export interface StoreSummary {
  readonly volumeName: string;
  readonly volumeUuid: string;
  readonly storeUuid: string;
  readonly durabilityId: string;
  readonly epoch: bigint;
  readonly originPath: string;
  readonly originIdentity: string;
  readonly originBytes: number;
  readonly storeBytes: number;
  readonly chunkBytes: number;
  readonly clean: boolean;
  readonly syncFailed: boolean;
  readonly createdNs: bigint;
}

export interface OpenVolumeOptions {
  readonly originPath: string;
  readonly storePath: string;
  readonly durability: Durability;
  /** Replay in memory and write nothing; still takes the locks. */
  readonly lookOnly: boolean;
  readonly acceptOrigin: boolean;
  readonly acceptLoss: boolean;
  /**
   * Neither origin nor store passes through this host's page cache, and what it holds of them is
   * written back and let go first: for a volume that another host may take over. NOT_SUPPORTED (with
   * the remedy) where one of them takes no direct I/O, or its length is no multiple of what that
   * needs. Absent: false.
   */
  readonly direct?: boolean;
  /**
   * granted by the broker, above the store's (else FENCED, and nothing was written); absent: the
   * store's next one
   */
  readonly epoch?: bigint;
  /**
   * of createGate(): past it nothing is written or answered, and the volume stops with FENCED, close()
   * included; absent: nothing bounds the term (one kernel, whose lock decides)
   */
  readonly gate?: number;
  /**
   * Store and origin are reserved for this host before anything is written, and stay so when the
   * volume is closed (F8). FENCED, NOT_SUPPORTED, PERMISSION, IO_ERROR. Absent: they are not.
   */
  readonly reservation?: NativeReservation;
  readonly onEvent?: (event: NativeVolumeEvent) => void;
}

/** Keys of persistent reservations, 64 bits each, never 0. */
export interface NativeReservation {
  readonly key: bigint;
  /** of other hosts that may be registered: these are shut out */
  readonly others: readonly bigint[];
}

export type VolumeEventKind =
  | "snapshot-created"
  | "snapshot-deleted"
  | "snapshot-dropped"
  | "snapshot-reclaimed"
  | "low-water"
  | "high-water"
  | "store-full"
  | "copy-failed"
  | "origin-full"
  | "checksum-error"
  | "failed"
  | "connection-closed"
  | "request-failed";

export interface NativeVolumeEvent {
  readonly kind: VolumeEventKind;
  /** uuid of the snapshot, or '' */
  readonly snapshot: string;
  /** name of the snapshot, or '' */
  readonly name: string;
  readonly message: string;
  /** of 'failed': FENCED where the grant has ended, and nothing is wrong with the volume; else FAILED */
  readonly code?: NativeErrorCode;
  /** of 'connection-closed' (the message says why) and 'request-failed' (at most one a second) */
  readonly connection?: number;
}

export interface NativeSnapshot {
  readonly uuid: string;
  readonly name: string;
  readonly state: "creating" | "live" | "deleted" | "dropped";
  readonly generation: bigint;
  readonly createdNs: bigint;
  readonly sizeBytes: number;
  readonly priority: number;
  readonly pinned: boolean;
  readonly suspect: boolean;
  readonly useCount: number;
  readonly labels: Readonly<Record<string, string>>;
  readonly uniqueBytes: number;
  readonly sharedBytes: number;
  readonly estimated: boolean;
}

/** The read-write hold of an attachment, kept in the store. */
export interface NativeHold {
  /** uuid */
  readonly attachment: string;
  readonly host: string;
  readonly sinceNs: bigint;
}

export interface NativeVolumeInfo extends StoreSummary {
  readonly superblockSequence: bigint;
  readonly durability: Durability;
  readonly onFull: OnFull;
  readonly journalBytes: number;
  readonly generation: bigint;
  readonly hold: NativeHold | null;
  readonly suspect: boolean;
  readonly failed: boolean;
  /** it failed because its grant had ended */
  readonly fenced: boolean;
  readonly failure: string;
  /** what the gate held back: changes of devices, requests, replies */
  readonly gateRefusals: number;
  readonly exceptions: number;
  /** blocks of 4096 bytes */
  readonly blocksTotal: number;
  readonly blocksFree: number;
  readonly blocksMetadata: number;
  readonly blocksData: number;
  readonly blocksReserve: number;
  readonly journalUsedBytes: number;
  readonly replayedRecords: number;
  readonly droppedEntries: number;
  readonly lostEntries: number;
  readonly reclaimActive: boolean;
  readonly reclaimRateBytes: number;
  readonly stagedLimitBytes: number;
  readonly cacheLimitBytes: number;
  readonly snapshotsLive: number;
  readonly snapshotsDeleting: number;
  readonly reads: number;
  readonly writes: number;
  readonly flushes: number;
  readonly readBytes: number;
  readonly writeBytes: number;
  readonly copyOuts: number;
  readonly zeroChunks: number;
  readonly commits: number;
  readonly checkpoints: number;
  readonly parked: number;
  readonly staged: number;
  readonly applied: number;
  /** now, in RAM */
  readonly stagedBytes: number;
  readonly checksumErrors: number;
  readonly chunksFreed: number;
}

export interface NativeCheckReport {
  readonly clean: boolean;
  /** the first 100 */
  readonly problems: readonly string[];
  readonly problemCount: number;
  readonly indexNodes: number;
  readonly entries: number;
  readonly chunksVerified: number;
  readonly lostEntries: number;
  readonly snapshots: number;
  readonly blocksUsed: number;
}

/** What the handshake agreed on; the connection lives in C++ from here on. */
export interface TransmissionOptions {
  /** uuid of a snapshot, or '' for the origin */
  readonly snapshot: string;
  readonly readOnly: boolean;
  readonly structuredReplies: boolean;
  /** id of the base:allocation context, or -1 when it was not negotiated */
  readonly baseAllocationId: number;
  /** bytes that the client sent behind its last option */
  readonly initialBytes: Uint8Array;
}

export interface ConnectionInfo {
  readonly id: number;
  readonly requests: number;
  readonly readBytes: number;
  readonly writeBytes: number;
  readonly inFlight: number;
}

export interface NativeVolume {
  info(): NativeVolumeInfo;
  snapshots(): Promise<NativeSnapshot[]>;
  createSnapshot(options: {
    name: string;
    pinned: boolean;
    priority: number;
    labels: Readonly<Record<string, string>>;
  }): Promise<NativeSnapshot>;
  deleteSnapshot(uuid: string, dropped: boolean): Promise<void>;
  /** An empty label value removes the label. */
  updateSnapshot(
    uuid: string,
    changes: { pinned?: boolean; priority?: number; labels?: Readonly<Record<string, string>> },
  ): Promise<NativeSnapshot>;
  updateSettings(settings: {
    onFull?: OnFull;
    stagedLimitBytes?: number;
    cacheLimitBytes?: number;
    reclaimRateBytes?: number;
  }): Promise<void>;
  /** Answers 'low-water': drop this snapshot, or ('') let the core follow the policy. */
  decideDrop(uuid: string): void;
  /**
   * Takes the read-write hold, durably, and resolves to it. One that this attachment has already stays
   * as it is; BUSY while another has it. `host`: 1 to 63 bytes.
   */
  setHold(hold: { readonly attachment: string; readonly host: string }): Promise<NativeHold>;
  /** Ends the hold of this attachment ('': whosever it is), durably. False: it has none. */
  clearHold(attachment: string): Promise<boolean>;
  /** Bytes that come free if exactly these snapshots go. */
  freedIfDeleted(uuids: readonly string[]): Promise<number>;
  check(options: {
    data: boolean;
    onProgress?: (done: number, total: number) => void;
  }): Promise<NativeCheckReport>;
  /** Writes metadata as JSON lines to the file descriptor. */
  dump(fd: number): Promise<void>;
  /**
   * Starts transmission on a connected socket. The fd is dup'ed: the caller closes its own. Emits
   * 'connection-closed' when it has ended. Returns the connection's id.
   */
  serveConnection(fd: number, options: TransmissionOptions): number;
  connections(): ConnectionInfo[];
  /** Stops reading requests, finishes what is under way, closes. */
  drainConnection(id: number): void;
  /** Cuts the connection; issued writes finish. */
  closeConnection(id: number): void;
  /**
   * Drains all connections, checkpoints, marks the store clean, releases locks. FENCED or FAILED: the
   * locks are released, but the store is not marked clean.
   */
  close(): Promise<void>;
}

/** A new kernel device /dev/nbdN (netlink NBD_CMD_CONNECT). */
export interface NbdConnectOptions {
  /** absent: the kernel takes an unused device or makes one */
  readonly index?: number;
  readonly sizeBytes: number;
  /** logical block size, a power of two from 512 to the page size */
  readonly blockBytes: number;
  /** NBD transmission flags of the handshake */
  readonly transmissionFlags: number;
  /** 0: the kernel never cuts a connection for being slow; queue/io_timeout only repeats requests */
  readonly timeoutSeconds: number;
  /** how long requests wait for a new socket once every socket is dead; then EIO */
  readonly deadConnectionTimeoutSeconds: number;
  /** the attachment's uuid; the kernel asks for it at every reconfiguration */
  readonly backend: string;
  /** one connected stream socket for each connection; the caller's descriptors stay the caller's */
  readonly fds: readonly number[];
}

/**
 * NBD_CMD_RECONFIGURE. What is absent stays as it is. The kernel answers success even where it took
 * none of the sockets (no dead slot): only a read through the device proves the change.
 */
export interface NbdReconfigureOptions {
  readonly index: number;
  readonly backend: string;
  readonly fds?: readonly number[];
  /** overwrites queue/io_timeout */
  readonly timeoutSeconds?: number;
  readonly deadConnectionTimeoutSeconds?: number;
  /** never with fds, never on a dead link: the kernel deadlocks */
  readonly sizeBytes?: number;
}

/** `connected` means that the kernel holds a configuration, not that a socket lives. */
export interface NbdDeviceStatus {
  readonly index: number;
  readonly connected: boolean;
}

/** What hardenProcess() got. `problems`: one line each, for a person. */
export interface Hardening {
  readonly memoryLocked: boolean;
  readonly ioFlusher: boolean;
  readonly problems: readonly string[];
}

export interface NativeBinding {
  readonly errorCodes: Readonly<Record<NativeErrorCode, number>>;
  readonly formatVersion: number;
  setErrorClass(errorClass: typeof NativeError): void;
  createStore(options: CreateStoreOptions): Promise<StoreSummary>;
  /** Of the store at `path`; takes no lock. */
  readStore(path: string): Promise<StoreSummary>;
  openVolume(options: OpenVolumeOptions): Promise<NativeVolume>;
  /** Overwrites the superblocks, so that the file or device holds no store any more. */
  wipeStore(path: string): Promise<void>;
  /** Two connected unix stream sockets. */
  socketPair(): [number, number];
  /** A dup of a descriptor, close-on-exec like the pair. */
  duplicate(fd: number): number;
  /** sd_notify(3): one datagram to $NOTIFY_SOCKET's path ('@' = abstract). False where it fails. */
  notify(socketPath: string, text: string): boolean;

  // The gate of a server's grant, in all threads that load the addon. It is open until the first
  // extendGate(), from then on until the latest deadline; what arrives later is neither performed nor
  // answered, and no JavaScript has to run for that.

  /** The gate's number. */
  createGate(): number;
  /** `deadlineBoottimeMs` as boottimeMs() counts. Never shortens, never opens what was shut. */
  extendGate(gate: number, deadlineBoottimeMs: number): void;
  /** For good. */
  shutGate(gate: number): void;
  /** CLOCK_BOOTTIME, with a fraction: goes on in a suspend, never leaps. */
  boottimeMs(): number;

  // Persistent reservations of block devices (linux/pr.h). Every call has a thread of its own, and
  // takes as long as the device does. NOT_SUPPORTED (with the remedy) where a device has none.

  /**
   * Shuts the other hosts out: their writes are refused by the devices from then on, and what they had
   * under way is aborted. Resolves only if that is certain for all devices; what was reserved stays so
   * in any case. BUSY: a server of this host has them open.
   */
  fenceDevices(paths: readonly string[], reservation: NativeReservation): Promise<void>;
  /** Whether the device can be reserved. Changes nothing. */
  probeReservation(path: string): Promise<void>;
  /** Ends all reservations and registrations of the devices. BUSY as above. */
  clearReservations(paths: readonly string[], key: bigint): Promise<void>;

  // The kernel's nbd client. Every call has a thread of its own: one that the kernel does not answer
  // holds up neither Node nor the end of the process. Needs CAP_SYS_ADMIN (PERMISSION).

  /** The device's index. BUSY: the index asked for is in use. */
  nbdConnect(options: NbdConnectOptions): Promise<number>;
  nbdReconfigure(options: NbdReconfigureOptions): Promise<void>;
  /** Does not ask who uses the device, nor whose it is: compare /sys/block/nbdN/backend first. */
  nbdDisconnect(index: number): Promise<void>;
  nbdStatus(): Promise<NbdDeviceStatus[]>;
  /**
   * Calls back with the index of a device whose socket died, or -1: events were lost, look at all
   * devices. Throws where the kernel has no nbd family. Does not keep the process alive.
   */
  watchDeadLinks(onDead: (index: number) => void): { close(): void };
  /**
   * A dup (close-on-exec), blocking, TCP_NODELAY, keepalive 5/2/3 and TCP_USER_TIMEOUT=silenceMs on
   * TCP; large buffers. O_NONBLOCK is shared with `fd`: be done with that one.
   */
  prepareKernelSocket(fd: number, silenceMs: number): number;
  /** shutdown(SHUT_RDWR), also of the kernel's reference; one that is not connected is no error. */
  shutdownSocket(fd: number): void;
  closeDescriptor(fd: number): void;
  /**
   * open(O_RDONLY|O_DIRECT), read of 4096 bytes at 0, close, in a process of its own, so that ours
   * can end meanwhile; does not return while the device hangs.
   */
  probeDevice(path: string): Promise<void>;
  /**
   * open(O_RDWR|O_EXCL) (BUSY where somebody uses it), fsync, BLKFLSBUF, close; in a process of its
   * own. readOnly: O_RDONLY|O_EXCL.
   */
  flushUnusedDevice(path: string, readOnly: boolean): Promise<void>;
  /**
   * Locks the program and its libraries in memory, and PR_SET_IO_FLUSHER for this thread and those
   * it starts later; says what could not be had. Not mlockall(): V8 aborts when locked memory
   * refuses madvise(). Its heap is kept from the swap by the service's MemorySwapMax=0.
   */
  hardenProcess(): Hardening;
  /** sd_notify with a descriptor: FDSTORE=1, FDNAME. False where it fails. */
  storeDescriptor(socketPath: string, name: string, fd: number): boolean;
}

const require = createRequire(import.meta.url);

/** The addon, loaded once. */
export const native = require("../build/Release/csnap.node") as NativeBinding;
native.setErrorClass(NativeError);
