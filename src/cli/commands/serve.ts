// `csnap serve`: the server, in the foreground.
import { writeSync } from "node:fs";
import { createInterface } from "node:readline";
import { type Command, Option } from "commander";
import type { Broker } from "../../broker/broker.js";
import { openBroker } from "../../broker/open.js";
import { inheritedDescriptors } from "../../nbd/listen.js";
import { loadDefinition, type VolumeDefinition } from "../../volume/definition.js";
import { CsnapError } from "../../volume/errors.js";
import { loadNative } from "../../volume/load_native.js";
import { checkVolumeName } from "../../volume/names.js";
import { mergeServe, type ServeSettings } from "../../volume/settings.js";
import { connectServer } from "../access.js";
import { type Context, contextOf, examples } from "../context.js";
import { note } from "../output.js";

interface ServeOptions extends ServeSettings {
  readonly acceptOrigin?: boolean;
  readonly acceptLoss?: boolean;
  readonly standby?: boolean;
}

export function registerServe(program: Command): void {
  const collect = (value: string, former: readonly string[] | undefined) => [...(former ?? []), value];
  const command = program
    .command("serve")
    .summary("serve a volume over NBD, in the foreground")
    .description(
      "Serves a volume and its snapshots over NBD until SIGTERM or SIGINT, which finish what is under way; a second one cuts it. Prints a line with the URI of every listener once it accepts. Exports: VOLUME (also the empty name), VOLUME@SNAPSHOT read-only. Options can also stand in the volume's definition or in the settings, in the table [serve].",
    )
    .argument("<volume>", "the volume")
    .option("--listen <host:port>", "listen on TCP too; may be repeated", collect)
    .option("--socket <path>", "unix socket (default: VOLUME.sock in the run directory)")
    .addOption(
      new Option("--durability <mode>", "when a write is acknowledged (default: flush)").choices([
        "flush",
        "sync",
      ]),
    )
    .option("--metrics <host:port>", "serve Prometheus metrics at /metrics")
    .option("--tls-cert <file>", "the server's certificate chain, PEM")
    .option("--tls-key <file>", "its key, PEM")
    .option("--tls-ca <file>", "require clients' certificates of this authority, PEM")
    .option("--tls-psk <file>", "pre-shared keys, one USER:HEXKEY a line")
    .addOption(
      new Option("--tls <mode>", "require TLS, or allow clients to go without (default: require)").choices([
        "require",
        "allow",
      ]),
    )
    .option(
      "--allow <rule>",
      "CLIENT=EXPORT[,EXPORT…][:ro|:rw], as in cn=host1=disk1:rw; may be repeated",
      collect,
    )
    .option("--plain", "allow TCP beyond loopback without TLS")
    .addOption(new Option("--standby", "wait for the agent's order on standard input").hideHelp())
    .option("--accept-origin", "the origin was changed while it was not served: take it as it is")
    .option("--accept-loss", "a sync failed, acknowledged writes may be lost: go on all the same")
    .action((name: string, options: ServeOptions) =>
      serve(contextOf(command), checkVolumeName(name), options),
    );
  examples(
    command,
    "csnap serve disk1",
    "csnap serve disk1 --listen 0.0.0.0:10809 --tls-cert server.pem --tls-key server.key --tls-ca ca.pem",
  );
}

async function serve(context: Context, name: string, options: ServeOptions): Promise<void> {
  const { acceptOrigin, acceptLoss, standby, ...own } = options;
  const definition = loadDefinition(context.stateDir, name);
  const settings = mergeServe(context.settings.serve, definition.serve, own);
  const inherited = inheritedDescriptors(process.env, process.pid);
  // Loaded here: no other command needs the NBD server.
  const [{ planServe }, { serveVolume }] = await Promise.all([
    import("../../server/options.js"),
    import("../../server/serve.js"),
  ]);
  const plan = planServe(name, context.runDir, settings, inherited);
  const native = await loadNative();
  const broker = openBroker(context.brokerUrl, context, { native, warm: standby ?? false });
  const instance = standby ? await orderedInstance(broker, name) : undefined;
  if (standby && instance === undefined) return broker.close();
  if (!standby) await refuseServed(context, definition);
  await serveVolume({
    native,
    broker,
    instance,
    definition,
    runDir: context.runDir,
    plan,
    acceptOrigin: acceptOrigin ?? false,
    acceptLoss: acceptLoss ?? false,
    ready: (uri) => announce(`csnap: ${name} ready ${uri}\n`, inherited.length > 0),
    log: (line) => note(`${name}: ${line}`),
  });
}

/** The instance that the agent's order names; undefined: the agent has ended. */
async function orderedInstance(broker: Broker, name: string): Promise<string | undefined> {
  // The first call compiles and connects; that shall not cost the claim's time.
  broker.describe(name).catch(() => {
    // The claim says it, if that meets the same.
  });
  const lines = createInterface({ input: process.stdin });
  for await (const line of lines) {
    // What follows is nothing to a server: it goes on without its agent.
    process.stdin.destroy();
    return (JSON.parse(line) as { readonly instance: string }).instance;
  }
  return undefined;
}

/** The store's lock decides; this only says who it is in the volume's own words. */
async function refuseServed(context: Context, definition: VolumeDefinition): Promise<void> {
  const client = await connectServer(context, definition);
  if (!client) return;
  const { server } = await client.status();
  throw new CsnapError(
    "BUSY",
    `${definition.name} is served already, by process ${server?.pid}: stop that one first`,
  );
}

/**
 * Written at once, so that whoever waits for the line never waits for a buffer. A server started by
 * socket activation shares stdout with the program that started it (`nbdinfo --json -- [ … ]`), and
 * nobody waits for it there: the line goes to stderr.
 */
function announce(line: string, activated: boolean): void {
  try {
    writeSync(activated ? 2 : 1, line);
  } catch {
    // The reader has gone; serving goes on.
  }
}
