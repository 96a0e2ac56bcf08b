/**
 * Meta contexts: the registry that LIST_META_CONTEXT and SET_META_CONTEXT ask. handshake.ts is the
 * only caller; whoever adds a context (say `x-csnap:changed-since:SNAPSHOT`) adds a provider.
 *
 * 1. A context's name is `NAMESPACE:LEAF`; a namespace has at most one provider, an unknown namespace
 *    is ignored, never an error.
 * 2. An answer names a context at most once, so it is bounded by what the providers offer, however
 *    many queries a client sends.
 */
import type { ExportInfo } from "./exports.js";

export interface MetaContextProvider {
  /** Without the colon. */
  readonly namespace: string;
  /** Full names offered for an export, for LIST with no query or with `NAMESPACE:`. */
  list(info: ExportInfo): readonly string[];
  /** Is this leaf (what follows the first colon) a context of the export? */
  has(info: ExportInfo, leaf: string): boolean;
}

export interface MetaContext {
  /** What BLOCK_STATUS replies carry; unique within a connection, never 0. */
  readonly id: number;
  readonly name: string;
}

export const baseAllocation: MetaContextProvider = {
  namespace: "base",
  list: () => ["base:allocation"],
  has: (_info, leaf) => leaf === "allocation",
};

/** More contexts than this on one connection are not selected; BLOCK_STATUS answers carry one chunk each. */
const SELECTED_MAX = 32;

/** Answers LIST_META_CONTEXT: every context, or those that a query names or covers as `NAMESPACE:`. */
export function listContexts(
  providers: readonly MetaContextProvider[],
  info: ExportInfo,
  queries: readonly string[],
): string[] {
  if (queries.length === 0) return providers.flatMap((provider) => [...provider.list(info)]);
  const names = new Set<string>();
  for (const query of queries) {
    const found = lookUp(providers, query);
    if (found === undefined) continue;
    if (found.leaf === "") for (const name of found.provider.list(info)) names.add(name);
    else if (found.provider.has(info, found.leaf)) names.add(query);
  }
  return [...names];
}

/** Answers SET_META_CONTEXT: exact names only, since a wildcard would choose for the client. */
export function selectContexts(
  providers: readonly MetaContextProvider[],
  info: ExportInfo,
  queries: readonly string[],
): MetaContext[] {
  const names = new Set<string>();
  for (const query of queries) {
    const found = lookUp(providers, query);
    if (found !== undefined && found.leaf !== "" && found.provider.has(info, found.leaf)) names.add(query);
  }
  return [...names].slice(0, SELECTED_MAX).map((name, index) => ({ id: index + 1, name }));
}

function lookUp(
  providers: readonly MetaContextProvider[],
  query: string,
): { provider: MetaContextProvider; leaf: string } | undefined {
  const colon = query.indexOf(":");
  if (colon < 0) return undefined;
  const provider = providers.find((candidate) => candidate.namespace === query.slice(0, colon));
  return provider && { provider, leaf: query.slice(colon + 1) };
}
