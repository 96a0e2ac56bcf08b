// `csnap volume`: what is declared of a volume's service, who serves it, and the administrator's word.
import { userInfo } from "node:os";
import { type Command, InvalidArgumentError, Option } from "commander";
import {
  type Broker,
  defaultSpec,
  type FencePolicy,
  type ServiceSpec,
  type ServiceView,
} from "../../broker/broker.js";
import { openBroker } from "../../broker/open.js";
import { ownIdentity } from "../../broker/process_identity.js";
import { reservationKey, reservesDevices } from "../../broker/reservation.js";
import { loadDefinition, type VolumeDefinition } from "../../volume/definition.js";
import { CsnapError, codeOf, messageOf, usageError } from "../../volume/errors.js";
import { hostName } from "../../volume/host.js";
import { loadNative } from "../../volume/load_native.js";
import { checkVolumeName } from "../../volume/names.js";
import { type Context, contextOf, examples, jsonOption } from "../context.js";
import { print, printJson, shortTime } from "../output.js";

interface DefineOptions {
  readonly storeClass: ServiceSpec["storeClass"];
  readonly fence: string;
  readonly host?: readonly string[];
  readonly iAcceptStaleWrites?: boolean;
  readonly startedBy: "agent" | "manager";
}

export function registerVolume(program: Command): void {
  const volume = program
    .command("volume")
    .summary("who serves a volume, and who may")
    .description(
      "Exactly one server may serve a volume. What is declared of that, who serves, and whether anybody may, is kept by the broker; on one host that is a directory, without a daemon.",
    );
  examples(volume, "csnap volume explain disk1", "csnap volume disable disk1");
  registerDefine(volume);
  const one = (
    name: string,
    summary: string,
    description: string,
    run: (context: Context, name: string) => Promise<void>,
  ) => {
    const command = volume
      .command(name)
      .summary(summary)
      .description(description)
      .argument("<volume>", "the volume")
      .action((text: string) => run(contextOf(command), checkVolumeName(text)));
    examples(command, `csnap volume ${name} disk1`, `csnap volume ${name} mail`);
  };
  registerShow(volume);
  registerEnable(volume);
  registerMove(volume);
  one(
    "disable",
    "stop its server, and let none start",
    "Asks the volume's server to stop, as SIGTERM does, and refuses every other until `csnap volume enable`. Commands that change the volume offline still work.",
    (context, name) => setEnabled(context, name, false),
  );
  registerFenceConfirm(volume);
  one(
    "explain",
    "say why it is served where it is, or why not",
    "Says in words who serves the volume since when, or why nobody does and what to do.",
    explain,
  );
}

function registerDefine(volume: Command): void {
  const collect = (value: string, former: readonly string[] | undefined) => [...(former ?? []), value];
  const command = volume
    .command("define")
    .summary("declare how many may serve it, and where")
    .description(
      "Declares the volume's service. A volume that is served without that is declared by its first server: one server, on this host. Block devices that several hosts reach need a fence. With scsi-pr or nvme-resv, which do the same, the devices refuse what a lost host still writes, by persistent reservations; they stay reserved for the host that served last until another fence is declared. With command=CMD the command must cut that host off.",
    )
    .argument("<volume>", "the volume")
    .addOption(
      new Option("--store-class <class>", "who reaches the store")
        .choices(["local", "shared-block", "nfs4"])
        .default("local"),
    )
    .option("--fence <method>", "none, scsi-pr, nvme-resv or command=CMD: how a lost host is cut off", "none")
    .option("--host <host>", "a host that may serve it (default: any that can); may be repeated", collect)
    .addOption(
      new Option(
        "--started-by <who>",
        "csnap's agents, or another resource manager, such as Pacemaker: no agent starts it then",
      )
        .choices(["agent", "manager"])
        .default("agent"),
    )
    .option("--i-accept-stale-writes", "writes of a lost host may land after a takeover")
    .action((name: string, options: DefineOptions) =>
      define(contextOf(command), checkVolumeName(name), options),
    );
  examples(command, "csnap volume define disk1", "csnap volume define disk1 --host alpha");
}

function registerEnable(volume: Command): void {
  const command = volume
    .command("enable")
    .summary("allow it to be served again")
    .description("Takes back `csnap volume disable`.")
    .argument("<volume>", "the volume")
    .option("--adopt-epoch", "its store was served under another broker, which is gone for good: go on here")
    .action((text: string, options: { adoptEpoch?: boolean }) =>
      enable(contextOf(command), checkVolumeName(text), options.adoptEpoch ?? false),
    );
  examples(command, "csnap volume enable disk1", "csnap volume enable --adopt-epoch disk1");
}

function registerMove(volume: Command): void {
  const command = volume
    .command("move")
    .summary("let another host serve it")
    .description(
      "Asks the volume's server to stop in order and has the agent of another host start the next. Clients wait meanwhile; devices of the kernel stay.",
    )
    .argument("<volume>", "the volume")
    .requiredOption("--to <host>", "the host that shall serve it; its agent must offer to")
    .action((text: string, { to }: { to: string }) => move(contextOf(command), checkVolumeName(text), to));
  examples(command, "csnap volume move disk1 --to beta", "csnap volume move mail --to alpha");
}

function registerFenceConfirm(volume: Command): void {
  const command = volume
    .command("fence-confirm")
    .summary("say that a silent host can't write any more")
    .description(
      "For a volume whose last server's host gives no sign: another may take over once an administrator has made sure that the host is off, or cut off from the store. Recorded with the name of who says so.",
    )
    .argument("<volume>", "the volume")
    .requiredOption("--epoch <epoch>", "which that host has, as `csnap volume explain` says", parseEpoch)
    .action((text: string, { epoch }: { epoch: bigint }) =>
      confirmFence(contextOf(command), checkVolumeName(text), epoch),
    );
  examples(
    command,
    "csnap volume fence-confirm disk1 --epoch 3",
    "csnap volume fence-confirm mail --epoch 12",
  );
}

function parseEpoch(text: string): bigint {
  if (/^\d{1,20}$/.test(text)) return BigInt(text);
  throw new InvalidArgumentError("It must be a number.");
}

function registerShow(volume: Command): void {
  const command = volume
    .command("show")
    .summary("declaration and state")
    .description("Shows what is declared of the volume's service, and how it stands.")
    .argument("<volume>", "the volume")
    .addOption(jsonOption())
    .action((name: string, options: { json?: boolean }) =>
      show(contextOf(command), checkVolumeName(name), options.json ?? false),
    );
  examples(command, "csnap volume show disk1", "csnap volume show disk1 --json");
}

function brokerOf(context: Context): Broker {
  return openBroker(context.brokerUrl, context);
}

async function define(context: Context, name: string, options: DefineOptions): Promise<void> {
  const definition = loadDefinition(context.stateDir, name);
  const { uuid } = definition;
  const spec: ServiceSpec = {
    ...defaultSpec(name, uuid),
    // Where another manager decides, an agent that restarted it would start a second one (F7).
    instances: { max: 1, min: options.startedBy === "agent" ? 1 : 0 },
    storeClass: options.storeClass,
    fencing: parseFence(options.fence, options.iAcceptStaleWrites ?? false),
    hosts: options.host ?? [],
  };
  const broker = brokerOf(context);
  const former = await broker.describe(name);
  if (reservesDevices(spec.fencing) && spec.storeClass === "shared-block") await probeDevices(definition);
  await declare(broker, spec);
  if (former && reservesDevices(former.spec.fencing) && !reservesDevices(spec.fencing))
    await clearDevices(definition);
  print(
    `${name}: ${serversText(spec)}, store class ${spec.storeClass}, fence ${options.fence}, on ${hostsText(spec)}`,
  );
}

/** Both, as both are written; on this host, which is one of those that shall serve. */
async function probeDevices({ name, store, origin }: VolumeDefinition): Promise<void> {
  const native = await loadNative();
  for (const path of [store, origin])
    await native.probeReservation(path).catch((error: unknown) => {
      throw new CsnapError(codeOf(error), `${name}: ${messageOf(error)}`);
    });
}

/** Reserved by whoever served last, they would stay so: no other host could write to them. */
async function clearDevices({ name, uuid, store, origin }: VolumeDefinition): Promise<void> {
  const { host, machine } = ownIdentity();
  const key = reservationKey(uuid, { host, machine });
  await (await loadNative()).clearReservations([store, origin], key).catch((error: unknown) => {
    throw new CsnapError(
      codeOf(error),
      `${name} is declared, but its devices are still reserved for the host that served last: ${messageOf(error)}`,
    );
  });
}

function parseFence(text: string, acceptStaleWrites: boolean): FencePolicy {
  const command = /^command=(.+)$/.exec(text)?.[1];
  const accepted = acceptStaleWrites && { acceptStaleWrites };
  if (command !== undefined) return { policy: "command", command, ...accepted };
  if (text === "none" || text === "scsi-pr" || text === "nvme-resv") return { policy: text, ...accepted };
  throw usageError(`--fence '${text}' is not known: it is none, scsi-pr, nvme-resv or command=CMD`);
}

function serversText({ instances }: ServiceSpec): string {
  return instances.min === 1 ? "exactly one server" : "at most one server, which no agent starts";
}

function hostsText({ hosts }: ServiceSpec): string {
  return hosts.length === 0 ? "any host that reaches the store" : hosts.join(", ");
}

/** Resolves when the declaration is stored. */
async function declare(broker: Broker, spec: ServiceSpec): Promise<void> {
  const ticket = broker.define(spec);
  try {
    await new Promise<void>((resolve, reject) => {
      ticket.on((event) => {
        if (event.type === "defined") resolve();
        if (event.type === "failed") {
          const code = event.code === "BROKER" ? "IO_ERROR" : "INVALID_ARGUMENT";
          reject(new CsnapError(code, event.detail));
        }
      });
    });
  } finally {
    broker.release(ticket);
  }
}

async function setEnabled(context: Context, name: string, enabled: boolean): Promise<void> {
  const { uuid } = loadDefinition(context.stateDir, name);
  const broker = brokerOf(context);
  if (!(await broker.describe(name))) await declare(broker, defaultSpec(name, uuid));
  await broker.setAdminState(name, enabled ? "enabled" : "disabled");
  const view = await broker.describe(name);
  const isServed = view?.holder?.alive === true;
  if (enabled) print(`${name} may be served`);
  else print(`${name} may not be served${isServed ? `; process ${view.holder?.pid} is asked to stop` : ""}`);
}

async function enable(context: Context, name: string, adoptEpoch: boolean): Promise<void> {
  if (adoptEpoch) {
    const definition = loadDefinition(context.stateDir, name);
    const { epoch } = await (await loadNative()).readStore(definition.store);
    await brokerOf(context).adoptEpoch(name, epoch);
  }
  await setEnabled(context, name, true);
}

async function move(context: Context, name: string, to: string): Promise<void> {
  loadDefinition(context.stateDir, name);
  await brokerOf(context).move(name, to);
  print(`${name} is being moved to ${to}: \`csnap volume show ${name}\` says when it is there`);
}

async function confirmFence(context: Context, name: string, epoch: bigint): Promise<void> {
  loadDefinition(context.stateDir, name);
  const { username } = userInfo();
  await brokerOf(context).confirmFence(name, epoch, `${username} on ${hostName()}`);
  print(`${name}: its former host is recorded as fenced; it may be served`);
}

async function show(context: Context, name: string, json: boolean): Promise<void> {
  const { uuid } = loadDefinition(context.stateDir, name);
  const view = await brokerOf(context).describe(name);
  const spec = view?.spec ?? defaultSpec(name, uuid);
  if (json) {
    printJson(recordOf(spec, view));
    return;
  }
  const state = view ? stateText(view) : "never served";
  const lines = [
    `${name}: ${state}`,
    `  declared   ${serversText(spec)}, store class ${spec.storeClass}, fence ${spec.fencing.policy}, on ${hostsText(spec)}`,
    `  enabled    ${view?.adminState === "disabled" ? "no" : "yes"}`,
    `  epoch      ${view?.epoch ?? 0}`,
  ];
  if (view?.holder)
    lines.push(`  server     process ${view.holder.pid} on ${view.holder.host}, instance ${view.instance}`);
  for (const uri of view?.address?.uris ?? []) lines.push(`  address    ${uri}`);
  if (view?.suspect !== undefined) lines.push(`  suspect    ${view.suspect}`);
  for (const host of view?.agents ?? []) lines.push(`  agent      on ${host}`);
  print(lines.join("\n"));
}

function stateText(view: ServiceView): string {
  const { holder } = view;
  const gone = holder?.silent ? `nothing is heard of ${holder.host}` : "the process that had it is gone";
  const state = holder?.alive === false ? `not served, ${gone}` : view.state;
  return `${state}, since ${shortTime(view.since)}: ${view.reason}`;
}

/** Stable keys of --json. */
function recordOf(spec: ServiceSpec, view: ServiceView | undefined) {
  return {
    volume: spec.service,
    uuid: spec.volumeUuid,
    servers_max: spec.instances.max,
    servers_min: spec.instances.min,
    store_class: spec.storeClass,
    fence: spec.fencing.policy,
    hosts: spec.hosts,
    enabled: view?.adminState !== "disabled",
    state: view?.state ?? "vacant",
    epoch: Number(view?.epoch ?? 0n),
    instance: view?.instance ?? null,
    host: view?.holder?.host ?? null,
    pid: view?.holder?.pid ?? null,
    alive: view?.holder?.alive ?? false,
    silent: view?.holder?.silent ?? false,
    uris: view?.address?.uris ?? [],
    control_socket: view?.address?.controlSocket ?? null,
    since: view?.since ?? null,
    reason: view?.reason ?? "never served",
    suspect: view?.suspect ?? null,
    agents: view?.agents ?? [],
  };
}

async function explain(context: Context, name: string): Promise<void> {
  loadDefinition(context.stateDir, name);
  print(explanation(name, await brokerOf(context).describe(name)));
}

function explanation(name: string, view: ServiceView | undefined): string {
  if (!view) return `${name} was never served: \`csnap serve ${name}\` serves it`;
  const { holder, reason, epoch } = view;
  const since = shortTime(view.since);
  const why = `since ${since}: ${reason}`;
  if (view.state === "failed")
    return `${name} is not served: its server stopped after an error (${why}): \`csnap check ${name}\` says what is left, then serve it by hand`;
  if (holder?.silent)
    return `${name}: nothing is heard of ${holder.host}, whose process ${holder.pid} had epoch ${epoch} and may still write: bring that host back, or, once it is off for certain, \`csnap volume fence-confirm ${name} --epoch ${epoch}\``;
  if (holder && !holder.alive)
    return `${name} is not served: process ${holder.pid} on ${holder.host}, which had epoch ${epoch}, is gone without stopping in order${next(view)}`;
  if (holder && view.state === "published") {
    const suspect = view.suspect === undefined ? "" : `; a client says it does not answer: ${view.suspect}`;
    const ending = view.adminState === "disabled" ? "; it is disabled, and the server is asked to stop" : "";
    return `${name} is served by process ${holder.pid} on ${holder.host} with epoch ${epoch} since ${since}, at ${view.address?.uris.join(" and ")}${suspect}${ending}`;
  }
  if (holder)
    return `${name} has no address yet: process ${holder.pid} on ${holder.host} has epoch ${epoch} (${why})`;
  return `${name} is not served (${why})${next(view)}`;
}

/** What makes it run again. */
function next({ service, adminState, spec, agents }: ServiceView): string {
  if (adminState === "disabled")
    return `; an administrator has disabled it: \`csnap volume enable ${service}\` allows it to be served`;
  if (spec.instances.min === 1 && agents.length > 0) return `; the agent on ${agents.join(", ")} starts it`;
  const agent = spec.instances.min === 1 ? ", and so does `csnap agent`" : "";
  return `: \`csnap serve ${service}\` serves it${agent}`;
}
