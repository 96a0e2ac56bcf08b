// The read-write hold of a served volume: which attachment may write the origin, and what everybody else
// is offered meanwhile (design §3). clients.ts asks before it lets a connection in; the core keeps the
// hold in the store, this file keeps a copy in memory, so that a handshake never waits to be answered.
//
// HO1 At most one attachment holds the origin. A hold is on stable storage before its GO is acknowledged,
//     and from the moment it is asked for nobody else gets a writable connection.
// HO2 A hold is taken only while no other writable connection is open; one whose handshake is ending at
//     that moment is not started (mayWrite).
// HO3 A hold ends only after the connections that used it have ended, what they had issued included (F5).
// HO4 Takes and ends happen one after the other, in the order they were asked for.
// HO5 A reconnect keeps its hold or is refused: an attachment whose hold was ended, before a restart of
//     the server or after, must not write over what others have written since.

import type { NativeHold, NativeVolume } from "../native.js";
import type { Attachment, Refusal } from "../nbd/exports.js";
import { codeOf, messageOf } from "../volume/errors.js";
import type { EndHoldRequest } from "../volume/operations.js";
import { isoTime } from "../volume/sizes.js";

export interface HoldsOptions {
  readonly volume: string;
  readonly native: Pick<NativeVolume, "info" | "setHold" | "clearHold">;
  /** Who has a writable connection and is not of this attachment, in words; undefined: nobody. */
  readonly otherWriter: (attachment: string | undefined) => string | undefined;
  readonly emit: (kind: "hold-taken" | "hold-ended", message: string) => void;
}

export class Holds {
  private held: NativeHold | null;
  /** whose take or end is on its way to the store */
  private changing: string | undefined;
  private queue: Promise<unknown> = Promise.resolve();

  constructor(private readonly options: HoldsOptions) {
    this.held = options.native.info().hold;
  }

  get current(): NativeHold | null {
    return this.held;
  }

  /** Why this attachment can't have the origin read-write now; undefined: it can. */
  refusal({ uuid: attachment, isHeld }: Attachment): Refusal | undefined {
    const { held, changing } = this;
    const { volume } = this.options;
    if (held?.attachment === attachment) return undefined;
    if (isHeld) return { refused: "POLICY", text: endedText(volume) };
    if (held !== null) return { refused: "POLICY", text: heldText(volume, held) };
    if (changing !== undefined && changing !== attachment) {
      return {
        refused: "POLICY",
        text: `${volume} is being attached read-write by attachment ${changing}: detach that first, or attach read-only`,
      };
    }
    const writer = this.options.otherWriter(attachment);
    if (writer === undefined) return undefined;
    return {
      refused: "POLICY",
      text: `${volume} is open read-write by ${writer}: disconnect it first, or attach read-only`,
    };
  }

  /** Whether others than attachments are offered the origin read-only. */
  get isExclusive(): boolean {
    return this.held !== null || this.changing !== undefined;
  }

  /** HO2: whether a connection may begin to write now. `attachment` undefined: a plain client. */
  mayWrite(attachment: string | undefined): boolean {
    if (this.changing !== undefined) return false;
    return attachment === undefined ? this.held === null : this.held?.attachment === attachment;
  }

  /**
   * Takes the hold, or keeps it. `overtaken` is asked when its turn has come: what was asked for before
   * an end must not undo it. Throws where the volume has failed.
   */
  take(wanted: Attachment, host: string, overtaken: () => Refusal | undefined): Promise<Refusal | undefined> {
    return this.inTurn(async () => {
      const attachment = wanted.uuid;
      const refusal = overtaken() ?? this.refusal(wanted);
      if (refusal || this.held?.attachment === attachment) return refusal;
      this.changing = attachment;
      try {
        this.held = await this.options.native.setHold({ attachment, host });
      } catch (error) {
        const code = codeOf(error);
        if (code !== "NO_SPACE" && code !== "BUSY") throw error;
        return { refused: "POLICY", text: `${this.options.volume}: ${messageOf(error)}` };
      } finally {
        this.changing = undefined;
      }
      this.options.emit("hold-taken", `attachment ${attachment} of ${host} holds it read-write`);
      return undefined;
    });
  }

  /**
   * Ends the hold after `close` has ended its connections; resolves to what was ended, or null where
   * the attachment asked for has none.
   */
  end(
    { attachment, force }: EndHoldRequest,
    close: (attachment: string) => Promise<void>,
  ): Promise<NativeHold | null> {
    return this.inTurn(async () => {
      const { held } = this;
      if (held === null || (attachment !== undefined && held.attachment !== attachment)) return null;
      this.changing = held.attachment;
      try {
        await close(held.attachment);
        await this.options.native.clearHold(held.attachment);
        this.held = null;
      } finally {
        this.changing = undefined;
      }
      const how = force ? " by force" : "";
      this.options.emit("hold-ended", `attachment ${held.attachment} of ${held.host} was ended${how}`);
      return held;
    });
  }

  private inTurn<T>(step: () => Promise<T>): Promise<T> {
    const done = this.queue.then(step);
    this.queue = done.catch(() => {});
    return done;
  }
}

function endedText(volume: string): string {
  return `this attachment's hold on ${volume} was ended, and others may have written since: detach its device and attach anew`;
}

function heldText(volume: string, { attachment, host, sinceNs }: NativeHold): string {
  return `${volume} is held read-write by attachment ${attachment} of ${host} since ${isoTime(sinceNs)}: detach it there, attach read-only, or if that host is gone \`csnap detach --force ${volume}\``;
}
