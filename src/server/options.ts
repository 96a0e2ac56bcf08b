// What `csnap serve` may be told, checked and resolved before anything is opened.
//
// SO1 TCP beyond loopback without TLS is refused unless --plain says that it is wanted.
// SO2 Credentials, rules and addresses are all valid before the volume is opened.

import type { Durability } from "../native.js";
import { type AccessPolicy, parseAccessRule } from "../nbd/access.js";
import { isLoopback, parseTcpAddress } from "../nbd/listen.js";
import { loadTlsCredentials, TlsConfigError, type TlsCredentials } from "../nbd/tls.js";
import type { ListenerAddress } from "../nbd/uri.js";
import { usageError } from "../volume/errors.js";
import { checkSocketPath, nbdSocketPath } from "../volume/paths.js";
import type { ServeSettings } from "../volume/settings.js";

export interface ServePlan {
  readonly addresses: readonly ListenerAddress[];
  /** listening descriptors of the service manager; then there are no addresses unless asked for */
  readonly inherited: readonly number[];
  readonly durability: Durability;
  readonly metrics: { readonly host: string; readonly port: number } | undefined;
  readonly tls: { readonly credentials: TlsCredentials; readonly required: boolean } | undefined;
  readonly access: AccessPolicy;
}

const defaultMetricsHost = "127.0.0.1";

export function planServe(
  volume: string,
  runDir: string,
  settings: ServeSettings,
  inherited: readonly number[],
): ServePlan {
  const tls = planTls(settings);
  const tcp = (settings.listen ?? []).map((text) => rangeToUsage(() => parseTcpAddress(text)));
  const plain = settings.plain ?? false;
  for (const [i, address] of tcp.entries()) {
    if (tls === undefined && !plain && !isLoopback(address.host)) {
      throw usageError(
        `--listen ${settings.listen?.[i]} would offer ${volume} to the network without TLS: give --tls-cert and --tls-key or --tls-psk, or say --plain if that is wanted`,
      );
    }
  }
  return {
    addresses: [...unixAddresses(volume, runDir, settings, inherited), ...tcp],
    inherited,
    durability: settings.durability ?? "flush",
    metrics: planMetrics(settings.metrics),
    tls,
    access: {
      rules: (settings.allow ?? []).map((text) => rangeToUsage(() => parseAccessRule(text))),
      openToNetwork: plain,
    },
  };
}

/** The default socket, or the one asked for; none where the service manager brought sockets. */
function unixAddresses(
  volume: string,
  runDir: string,
  settings: ServeSettings,
  inherited: readonly number[],
): ListenerAddress[] {
  if (settings.socket !== undefined) return [{ transport: "unix", path: checkSocketPath(settings.socket) }];
  if (inherited.length > 0) return [];
  return [{ transport: "unix", path: checkSocketPath(nbdSocketPath(runDir, volume)) }];
}

function planTls(settings: ServeSettings): ServePlan["tls"] {
  const { tlsCert: cert, tlsKey: key, tlsCa: ca, tlsPsk: psk, tls: mode } = settings;
  if ([cert, key, ca, psk].every((file) => file === undefined)) {
    if (mode === undefined) return undefined;
    throw usageError(`--tls ${mode} needs --tls-cert and --tls-key, or --tls-psk`);
  }
  try {
    return { credentials: loadTlsCredentials({ cert, key, ca, psk }), required: mode !== "allow" };
  } catch (error) {
    if (error instanceof TlsConfigError) throw usageError(error.message);
    throw error;
  }
}

/** Of `--metrics HOST:PORT`. USAGE. */
export function planMetrics(text: string | undefined): ServePlan["metrics"] {
  if (text === undefined) return undefined;
  // A bare `:9100` or `9100` means this host only: metrics tell what clients do.
  const match = /^:?(\d{1,5})$/.exec(text);
  const { host, port } = rangeToUsage(() =>
    parseTcpAddress(match ? `${defaultMetricsHost}:${match[1]}` : text),
  );
  return { host, port };
}

/** The NBD layer refuses what a user wrote with a RangeError that holds the line. */
function rangeToUsage<T>(parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    if (error instanceof RangeError) throw usageError(error.message);
    throw error;
  }
}
