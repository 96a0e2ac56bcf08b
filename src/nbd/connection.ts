/**
 * One client from accept to the end of its handshake: feeds the machine with the socket's bytes and performs what
 * it asks for, STARTTLS and the hand-over to native transmission included. Made by server.ts.
 *
 * 1. From the moment GO is read until the hand-over nothing is read from the kernel; what had been read behind GO
 *    goes along as `initialBytes`. No byte is lost, none is read twice.
 * 2. `startTransmission` is called after the last byte of the handshake's reply has been given to the kernel. It
 *    must dup the descriptor before it returns; then ours is closed, without a shutdown of the connection.
 * 3. However a handshake ends, `ended` is called once; no error of a socket escapes.
 */
import type { Socket } from "node:net";
import type { MetaContextProvider } from "./contexts.js";
import type { Attachment, ClientInfo, ExportDirectory, ExportInfo, Refusal } from "./exports.js";
import { isRefusal } from "./exports.js";
import { type Action, type Admission, Handshake, type Negotiated, type TlsMode } from "./handshake.js";
import { descriptorOf, stopReading, takeUndelivered } from "./socket-handle.js";
import type { TlsTunnels, Tunnel } from "./tls-tunnel.js";

/** What native transmission gets. */
export interface TransmissionStart {
  /** Non-blocking; dup it before returning. */
  readonly fd: number;
  /** To be consumed before anything is read from `fd`. */
  readonly initialBytes: Buffer;
  readonly negotiated: Negotiated;
  readonly info: ExportInfo;
  readonly client: ClientInfo;
  readonly attachment?: Attachment | undefined;
}

export interface ConnectionHost {
  readonly directory: ExportDirectory;
  readonly tlsMode: TlsMode;
  readonly metaContexts: readonly MetaContextProvider[];
  readonly tunnels: TlsTunnels | undefined;
  readonly handshakeTimeoutMs: number;
  /** The last word on GO and EXPORT_NAME, which may take its time and have effects. */
  admit?(admission: Admission): Promise<ExportInfo | Refusal>;
  startTransmission(start: TransmissionStart): void;
}

export type HandshakeEnd =
  | { readonly kind: "transmission"; readonly info: ExportInfo }
  | { readonly kind: "closed"; readonly reason: string };

export class Connection {
  readonly #host: ConnectionHost;
  readonly #machine: Handshake;
  readonly #ended: (end: HandshakeEnd) => void;
  #timer: NodeJS.Timeout;
  #client: ClientInfo;
  #socket: Socket;
  /** Whose events count: not those of a socket that was given up to TLS. */
  #heard: Socket | undefined;
  #tunnel: Tunnel | undefined;
  #over = false;
  #unsentWrites = 0;
  #whenSent: (() => void) | undefined;

  constructor(socket: Socket, client: ClientInfo, host: ConnectionHost, ended: (end: HandshakeEnd) => void) {
    this.#host = host;
    this.#client = client;
    this.#ended = ended;
    const { directory, tlsMode, metaContexts } = host;
    this.#machine = new Handshake({ directory, client, tlsMode, metaContexts });
    this.#timer = this.#startTimer();
    this.#socket = this.#adopt(socket);
    this.#perform(this.#machine.start());
  }

  /** Ends an unfinished handshake at once. */
  close(reason: string): void {
    if (this.#over) return;
    this.#end({ kind: "closed", reason });
    this.#tunnel?.cancel();
    this.#socket.destroy();
  }

  #end(end: HandshakeEnd): void {
    this.#over = true;
    clearTimeout(this.#timer);
    this.#ended(end);
  }

  #startTimer(): NodeJS.Timeout {
    const limitMs = this.#host.handshakeTimeoutMs;
    return setTimeout(() => this.close(`no handshake within ${limitMs} ms`), limitMs);
  }

  #adopt(socket: Socket): Socket {
    this.#heard = socket;
    const current = () => socket === this.#heard;
    socket.on("error", (error) => {
      if (current()) this.close(error.message);
    });
    socket.on("close", () => {
      if (current()) this.close("the client went away");
    });
    socket.on("end", () => {
      if (current() && !this.#over) this.#closeAfterSent("the client went away");
    });
    socket.on("data", (bytes: Buffer) => {
      if (current() && !this.#over) this.#perform(this.#machine.receive(bytes));
    });
    socket.setNoDelay(true);
    return socket;
  }

  #perform(actions: readonly Action[]): void {
    for (const action of actions) {
      switch (action.kind) {
        case "send":
          this.#send(action.bytes);
          break;
        case "drain":
          this.#stop();
          this.#afterSent(() => {
            this.#perform(this.#machine.drained());
            this.#goOn();
          });
          break;
        case "startTls":
          this.#stop();
          this.#afterSent(() => void this.#startTls());
          break;
        case "admit":
          this.#stop();
          void this.#admit(action.admission);
          break;
        case "close":
          this.#closeAfterSent(action.reason);
          break;
      }
    }
  }

  #send(bytes: Buffer): void {
    this.#unsentWrites++;
    this.#socket.write(bytes, () => {
      this.#unsentWrites--;
      if (this.#unsentWrites > 0) return;
      const whenSent = this.#whenSent;
      this.#whenSent = undefined;
      whenSent?.();
    });
  }

  /** Runs `then` once the kernel has everything sent so far, unless the connection ends before. */
  #afterSent(then: () => void): void {
    const unlessOver = () => {
      if (!this.#over) then();
    };
    if (this.#unsentWrites === 0) unlessOver();
    else this.#whenSent = unlessOver;
  }

  #stop(): void {
    stopReading(this.#socket);
  }

  /** Reads again, unless what was just performed has stopped or ended the connection. */
  #goOn(): void {
    if (!this.#over && this.#machine.wantsInput) this.#socket.resume();
  }

  #closeAfterSent(reason: string): void {
    this.#stop();
    this.#end({ kind: "closed", reason });
    // Not at once: the client is to read the last reply before the end.
    this.#socket.destroySoon();
    setTimeout(() => this.#socket.destroy(), this.#host.handshakeTimeoutMs).unref();
  }

  async #startTls(): Promise<void> {
    const plain = this.#socket;
    const fd = descriptorOf(plain);
    const { tunnels } = this.#host;
    if (takeUndelivered(plain).length > 0) return this.close("bytes behind STARTTLS");
    if (fd === undefined || tunnels === undefined) return this.close("the client went away");
    try {
      this.#tunnel = tunnels.open(fd);
      const { secured } = this.#tunnel;
      // Only our descriptor: the worker has its own, and the connection goes on there.
      this.#heard = undefined;
      plain.destroy();
      const { socket, identity } = await secured;
      if (this.#over) return void socket.destroy();
      this.#socket = this.#adopt(socket);
      this.#client = { ...this.#client, tls: true, identity };
      this.#perform(this.#machine.tlsEstablished(identity));
      this.#goOn();
    } catch (error) {
      this.close(`TLS failed: ${error instanceof Error ? error.message : String(error)}`);
    }
  }

  async #admit(admission: Admission): Promise<void> {
    // How long the answer takes is not the client's fault.
    clearTimeout(this.#timer);
    let answer: ExportInfo | Refusal = admission.info;
    try {
      if (this.#host.admit !== undefined) answer = await this.#host.admit(admission);
    } catch (error) {
      return this.close(`admission failed: ${error instanceof Error ? error.message : String(error)}`);
    }
    if (this.#over) return;
    this.#timer = this.#startTimer();
    if (isRefusal(answer)) {
      this.#perform(this.#machine.refused(answer));
      return this.#goOn();
    }
    this.#handOver(answer, admission.request.attachment);
  }

  #handOver(info: ExportInfo, attachment: Attachment | undefined): void {
    const { reply, initialBytes, negotiated } = this.#machine.admitted(info);
    this.#send(reply);
    this.#afterSent(() => {
      const fd = descriptorOf(this.#socket);
      if (fd === undefined) return this.close("the client went away");
      const behind = Buffer.concat([initialBytes, takeUndelivered(this.#socket)]);
      try {
        const client = this.#client;
        this.#host.startTransmission({ fd, initialBytes: behind, negotiated, info, client, attachment });
      } catch (error) {
        return this.close(`transmission failed: ${error instanceof Error ? error.message : String(error)}`);
      }
      this.#end({ kind: "transmission", info });
      this.#socket.destroy();
    });
  }
}
