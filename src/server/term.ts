// A server's term as the broker knows it: claimed before the store is opened, published after a probe
// of the server's own socket, withdrawn before connections end, released when the store is closed.
// Called by serve.ts.
//
// TE1 The epoch that the store is stamped with is the one granted (F1, F3).
// TE2 An address is published only after the server has answered at it (F4).
// TE3 A broker that does not answer holds up the end of a server for brokerLimitMs, no longer.
// TE4 A term that ends in time is cut, not drained, when it is lost: the gate is shut, so nothing could
//     be answered any more (F2).
import { connect, type Socket } from "node:net";
import type { Address, Epoch, Grant, Reservation } from "../broker/broker.js";
import { nodeRuntime, type Runtime, within } from "../broker/runtime.js";
import { ClientHandshake } from "../nbd/client-handshake.js";
import { parseNbdUri } from "../nbd/uri.js";
import { CsnapError, messageOf } from "../volume/errors.js";

const brokerLimitMs = 2000;
const probeLimitMs = 5000;
const publishLimitMs = 30_000;

/** Rejects, with the line that says why, unless the service's server answers there. */
export type Probe = (service: string, uri: string) => Promise<void>;

export class Term {
  constructor(
    private readonly grant: Grant,
    private readonly log: (line: string) => void,
    private readonly probe: Probe = probeUri,
    private readonly runtime: Runtime = nodeRuntime,
  ) {}

  get epoch(): Epoch {
    return this.grant.epoch;
  }

  /** The core's gate, where the grant ends in time (F2). */
  get gate(): number | undefined {
    return this.grant.gate;
  }

  /** ms until it ends unless it is renewed; null: it does not end in time. @param nowMs CLOCK_BOOTTIME */
  remainingMs(nowMs: number): number | null {
    const untilMs = this.grant.validUntilMs();
    return Number.isFinite(untilMs) ? Math.max(0, Math.round(untilMs - nowMs)) : null;
  }

  get reservation(): Reservation | undefined {
    return this.grant.reservation;
  }

  /** Another host may take over: nothing may be left in this host's page cache (F8). */
  get isShared(): boolean {
    return this.grant.storeClass !== "local";
  }

  /** `stop`: an administrator wants it. `lost`: a newer term has begun. At most one call of each. */
  listen(stop: (why: string) => void, lost: (why: string) => void): void {
    this.grant.onStopAsked(stop);
    this.grant.onLost(lost);
  }

  /** TE2 */
  async publish(address: Address): Promise<void> {
    for (const uri of address.uris) await this.probe(this.grant.service, uri);
    await within(this.runtime, publishLimitMs, this.grant.publish(address), () => {
      throw this.publishError();
    });
  }

  private publishError(): CsnapError {
    const { service } = this.grant;
    return new CsnapError(
      "IO_ERROR",
      `${service}: the broker did not take the address within ${publishLimitMs / 1000} s: see why its records hang (\`csnap volume show ${service}\`), then serve again`,
    );
  }

  withdraw(reason: string): Promise<void> {
    return this.tried("withdraw the address from", this.grant.withdraw(reason));
  }

  release(failure?: string): Promise<void> {
    return this.tried("release the term at", this.grant.release(failure));
  }

  /** TE3. What fails here, the next claim or look of anybody finds out: the process is gone then. */
  private tried(what: string, work: Promise<void>): Promise<void> {
    const done = work.catch((error: unknown) =>
      this.log(`could not ${what} the broker: ${messageOf(error)}`),
    );
    return within(this.runtime, brokerLimitMs, done, () =>
      this.log(`the broker did not answer within ${brokerLimitMs / 1000} s: going on without it`),
    );
  }
}

/** An NBD_OPT_INFO on a fresh connection. A refusal (TLS, access rules) is an answer, too. */
function probeUri(service: string, uri: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const handshake = new ClientHandshake("info", "");
    const socket = dial(uri);
    const settle = (problem?: string) => {
      socket.destroy();
      if (problem === undefined) resolve();
      else
        reject(
          new CsnapError(
            "IO_ERROR",
            `${service}: the server's own probe of ${uri} failed: ${problem}: see that nothing stands between`,
          ),
        );
    };
    socket.setTimeout(probeLimitMs, () => settle(`no answer within ${probeLimitMs / 1000} s`));
    socket.on("error", (error) => settle(messageOf(error)));
    socket.on("close", () => settle("the connection was closed"));
    socket.on("data", (bytes) => {
      for (const action of handshake.receive(bytes)) {
        if (action.kind === "send") socket.write(action.bytes);
        else settle(action.kind === "broken" ? action.reason : undefined);
      }
    });
  });
}

function dial(uri: string): Socket {
  const { address } = parseNbdUri(uri);
  return address.transport === "unix" ? connect({ path: address.path }) : connect(address);
}
