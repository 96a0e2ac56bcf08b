// `csnap agent`: the host's daemon, in the foreground. It attaches exports as /dev/nbdX and keeps them
// attached; ending it detaches nothing.
import { mkdirSync } from "node:fs";
import type { Command } from "commander";
import { Agent } from "../../agent/agent.js";
import { deviceFence } from "../../agent/device_fence.js";
import { renderAgentMetrics } from "../../agent/metrics.js";
import { RecordStore } from "../../agent/record.js";
import { Roster } from "../../agent/roster.js";
import { HostServers, launcher } from "../../agent/servers.js";
import { AgentClient, AgentService, agentSocketPath } from "../../agent/service.js";
import { openBroker } from "../../broker/open.js";
import { EventHub } from "../../control/events.js";
import { MetricsServer } from "../../control/prometheus.js";
import { inheritedByName } from "../../nbd/listen.js";
import { takePrecautions } from "../../server/harden.js";
import { ServiceNotifier } from "../../server/notify.js";
import { planMetrics } from "../../server/options.js";
import { CsnapError, codeOf, systemText } from "../../volume/errors.js";
import { loadNative } from "../../volume/load_native.js";
import { checkSocketPath } from "../../volume/paths.js";
import { version } from "../../volume/version.js";
import { type Context, contextOf, examples } from "../context.js";
import { note } from "../output.js";

interface AgentOptions {
  readonly metrics?: string;
}

export function registerAgent(program: Command): void {
  const command = program
    .command("agent")
    .summary("attach volumes as /dev/nbdX and keep them attached, in the foreground")
    .description(
      "The host's daemon: attaches exports as /dev/nbdX when `csnap attach` asks, reconnects them when the server restarts or moves, and finds them again when it is restarted itself. It also keeps the servers of those volumes running that were declared by `csnap volume define`. Ending it, by whatever signal, detaches nothing and stops no server.",
    )
    .option("--metrics <host:port>", "serve Prometheus metrics of devices and servers at /metrics")
    .action((options: AgentOptions) => runAgent(contextOf(command), options));
  examples(command, "csnap agent", "csnap agent --broker etcd://10.0.0.1,10.0.0.2?ca=/etc/csnap/etcd-ca.pem");
}

async function runAgent(context: Context, options: AgentOptions): Promise<void> {
  const wanted = planMetrics(options.metrics);
  const native = await loadNative();
  const socketPath = checkSocketPath(agentSocketPath(context.runDir));
  await refuseSecond(socketPath);
  mkdirSync(context.runDir, { recursive: true, mode: 0o755 });
  const problems = takePrecautions(native);
  const broker = openBroker(context.brokerUrl, context);
  const events = new EventHub("");
  const notifier = new ServiceNotifier(native, process.env, process.pid);
  const agent = new Agent({
    native,
    broker,
    records: new RecordStore(context.stateDir),
    events,
    log: (line) => note(`agent: ${line}`),
    inherited: inheritedByName(process.env, process.pid),
    notifySocket: process.env.NOTIFY_SOCKET || undefined,
  });
  const servers = new HostServers(
    broker,
    launcher(ownProgram(context), serverEnvironment(context)),
    deviceFence(native, context.stateDir),
    (line) => note(`agent: ${line}`),
  );
  const metrics = new MetricsServer(async () =>
    renderAgentMetrics(agent.figures(), servers.tallies.entries()),
  );
  if (wanted) {
    const url = await listenForMetrics(metrics, wanted).catch((error: unknown) => {
      servers.close();
      throw error;
    });
    note(`agent: metrics at ${url}`);
  }
  agent.start();
  const roster = new Roster(context.stateDir, broker, servers, (line) => note(`agent: ${line}`));
  roster.start();
  const service = new AgentService(socketPath, agent, events, () => ({
    pid: process.pid,
    version,
    broker: context.brokerUrl,
    problems,
  }));
  await service.listen();
  const ended = new Promise<NodeJS.Signals>((resolve) => {
    for (const signal of ["SIGTERM", "SIGINT"] as const) process.once(signal, resolve);
  });
  // Not before: an agent that does not start says why in one line.
  for (const problem of problems) note(`agent: ${problem}`);
  note(`agent: ready, socket ${socketPath}`);
  notifier.ready(`devices: ${agent.list().length}`, () => true);
  const signal = await ended;
  notifier.stopping(signal);
  note(`agent: ${signal}: ending; devices stay attached, servers go on`);
  await metrics.close();
  await service.close();
  agent.close();
  roster.close();
  servers.close();
  await broker.close();
  notifier.end();
  // A call that hangs in the kernel would keep the loop alive.
  process.exit(0);
}

async function listenForMetrics(
  metrics: MetricsServer,
  { host, port }: { readonly host: string; readonly port: number },
): Promise<string> {
  try {
    return await metrics.listen(host, port);
  } catch (error) {
    throw new CsnapError(
      "IO_ERROR",
      `agent: --metrics ${host}:${port}: ${systemText(error)}; choose another address`,
    );
  }
}

/** This csnap, with the options that its commands need to find the same volumes. */
function ownProgram({ config }: Context): string[] {
  const [script = ""] = process.argv.slice(1);
  return [process.execPath, script, ...(config === undefined ? [] : ["--config", config])];
}

/** Without what the service manager gave to the agent alone. */
function serverEnvironment({ stateDir, runDir, brokerUrl }: Context): NodeJS.ProcessEnv {
  const own = Object.entries(process.env).filter(
    ([name]) => !/^(NOTIFY_SOCKET|LISTEN_(PID|FDS|FDNAMES)|WATCHDOG_(PID|USEC))$/.test(name),
  );
  return {
    ...Object.fromEntries(own),
    CSNAP_STATE_DIR: stateDir,
    CSNAP_RUN_DIR: runDir,
    CSNAP_BROKER: brokerUrl,
  };
}

async function refuseSecond(socketPath: string): Promise<void> {
  try {
    const { pid } = await new AgentClient(socketPath).status();
    throw new CsnapError("BUSY", `an agent runs on this host already, process ${pid}: stop that one first`);
  } catch (error) {
    if (codeOf(error) !== "NOT_SERVED") throw error;
  }
}
