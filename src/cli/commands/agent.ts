// `csnap agent`: the host's daemon, in the foreground. It attaches exports as /dev/nbdX and keeps them
// attached; ending it detaches nothing.
import { mkdirSync } from "node:fs";
import type { Command } from "commander";
import { Agent } from "../../agent/agent.js";
import { RecordStore } from "../../agent/record.js";
import { AgentClient, AgentService, agentSocketPath } from "../../agent/service.js";
import { openBroker } from "../../broker/open.js";
import { EventHub } from "../../control/events.js";
import { inheritedByName } from "../../nbd/listen.js";
import { takePrecautions } from "../../server/harden.js";
import { ServiceNotifier } from "../../server/notify.js";
import { CsnapError, codeOf } from "../../volume/errors.js";
import { loadNative } from "../../volume/load_native.js";
import { checkSocketPath } from "../../volume/paths.js";
import { version } from "../../volume/version.js";
import { type Context, contextOf, examples } from "../context.js";
import { note } from "../output.js";

interface AgentOptions {
  readonly broker: string;
}

export function registerAgent(program: Command): void {
  const command = program
    .command("agent")
    .summary("attach volumes as /dev/nbdX and keep them attached, in the foreground")
    .description(
      "The host's daemon: attaches exports as /dev/nbdX when `csnap attach` asks, reconnects them when the server restarts or moves, and finds them again when it is restarted itself. Ending it, by whatever signal, detaches nothing.",
    )
    .option("--broker <url>", "where servers are known", "local:")
    .action((options: AgentOptions) => runAgent(contextOf(command), options));
  examples(command, "csnap agent", "csnap agent --broker local:");
}

async function runAgent(context: Context, options: AgentOptions): Promise<void> {
  const native = await loadNative();
  const socketPath = checkSocketPath(agentSocketPath(context.runDir));
  await refuseSecond(socketPath);
  mkdirSync(context.runDir, { recursive: true, mode: 0o755 });
  const problems = takePrecautions(native);
  const broker = openBroker(options.broker, context);
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
  agent.start();
  const service = new AgentService(socketPath, agent, events, () => ({
    pid: process.pid,
    version,
    broker: options.broker,
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
  note(`agent: ${signal}: ending; devices stay attached`);
  await service.close();
  agent.close();
  await broker.close();
  notifier.end();
  // A call that hangs in the kernel would keep the loop alive.
  process.exit(0);
}

async function refuseSecond(socketPath: string): Promise<void> {
  try {
    const { pid } = await new AgentClient(socketPath).status();
    throw new CsnapError("BUSY", `an agent runs on this host already, process ${pid}: stop that one first`);
  } catch (error) {
    if (codeOf(error) !== "NOT_SERVED") throw error;
  }
}
