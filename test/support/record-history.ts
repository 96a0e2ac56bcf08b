/** Every revision that a service's record has had in etcd, and what must hold from each to the next (I1, F1, F8). */
import type { EtcdCluster } from "./etcd.js";

export interface StoredSlot {
  readonly instance: string;
  readonly holder: { readonly host: string } | null;
  readonly beat: { readonly seq: number } | null;
  readonly fencing: object | null;
}

export interface StoredRecord {
  readonly epoch: string;
  readonly slot: StoredSlot;
}

export interface History {
  readonly revisions: number;
  readonly epochs: number;
  readonly problems: readonly string[];
}

/** @param fenced one line for each fence that was carried out, "TIME HOST epoch EPOCH" */
export async function recordHistory(
  etcd: EtcdCluster,
  key: string,
  fenced: readonly string[],
): Promise<History> {
  const texts = await etcd.revisions(key);
  return judgedHistory(
    texts.map((text) => JSON.parse(text.slice(text.indexOf("\n") + 1)) as StoredRecord),
    fenced,
  );
}

export function judgedHistory(records: readonly StoredRecord[], fenced: readonly string[]): History {
  const problems: string[] = [];
  const instances = new Map<string, string>();
  for (const [i, { epoch, slot }] of records.entries()) {
    const former = records[i - 1];
    if (slot.holder !== null) {
      const known = instances.get(epoch) ?? slot.instance;
      instances.set(epoch, known);
      if (known !== slot.instance) problems.push(`epoch ${epoch} was granted twice`);
    }
    if (former) problems.push(...stepProblems(former, { epoch, slot }, fenced));
  }
  return { revisions: records.length, epochs: instances.size, problems };
}

function stepProblems(former: StoredRecord, next: StoredRecord, fenced: readonly string[]): string[] {
  const { holder } = former.slot;
  if (BigInt(next.epoch) < BigInt(former.epoch)) return [`epoch ${next.epoch} follows ${former.epoch}`];
  if (next.epoch === former.epoch && next.slot.holder !== null) {
    if (holder === null) return [`epoch ${next.epoch} is held again after its end`];
    if (holder.host !== next.slot.holder.host)
      return [`epoch ${next.epoch} went from ${holder.host} to ${next.slot.holder.host}`];
    const isOlder = (next.slot.beat?.seq ?? 0) < (former.slot.beat?.seq ?? 0);
    return isOlder ? [`epoch ${next.epoch}: a renewal's number came twice`] : [];
  }
  // A slot that ends while its holder is being fenced: somebody says that the fence is confirmed.
  const isTaken = holder !== null && next.slot.holder === null && former.slot.fencing !== null;
  if (isTaken && !fenced.some((line) => line.endsWith(` ${holder.host} epoch ${former.epoch}`)))
    return [`${holder.host} lost epoch ${former.epoch} without a fence`];
  if (holder !== null && next.slot.holder !== null && holder.host !== next.slot.holder.host)
    return [`epoch ${next.epoch} was given to another host while ${holder.host} had ${former.epoch}`];
  return [];
}
