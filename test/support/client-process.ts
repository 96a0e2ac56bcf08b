/**
 * The process of one client host: `typescript-hooks.mjs client-process.ts SETUP`. It says four times a second how much was
 * answered, takes orders as messages, and ends with its report.
 */
import type * as Open from "../../src/broker/open.js";
import { importBuilt } from "./built.js";
import type { ClientOrder, ClientReport, ClientSays, ClientSetup } from "./client-host.js";
import { addressOf, NbdClient } from "./nbd-client.js";
import { seededRandom } from "./random.js";
import { VerifiedClient } from "./verified-client.js";
import { WatchingClient } from "./watching-client.js";

const SAY_EVERY_MS = 250;

const setup = JSON.parse(process.argv[2] ?? "") as ClientSetup;
const { volume, blocks } = setup;
const random = seededRandom(setup.seed);
const say = (message: ClientSays) => process.send?.(message);

interface Running {
  readonly client: VerifiedClient | WatchingClient;
  /** After the load: what can only be looked at then. */
  readonly finish: (uri: string) => Promise<Partial<ClientReport>>;
}

async function writer(): Promise<Running> {
  const { openBroker } = await importBuilt<typeof Open>("broker/open.js");
  const broker = openBroker(setup.broker, { stateDir: "/nonexistent" });
  const client = new VerifiedClient(broker, volume, 0, 1, blocks, random);
  const finish = async (uri: string) => {
    const reader = await NbdClient.open(addressOf(uri), { export: volume });
    await client.verifyAll(reader);
    await reader.disconnect();
    return { stalls: client.stalls };
  };
  return { client, finish };
}

function watcher(): Running {
  const client = new WatchingClient(setup.hosts, volume, blocks, random);
  return { client, finish: async () => ({ compared: client.compared }) };
}

const { client, finish } = setup.role === "writer" ? await writer() : watcher();
const watching = client instanceof WatchingClient ? client : undefined;
client.start();
const saying = setInterval(() => say({ answers: client.acknowledged.answers }), SAY_EVERY_MS);

process.on("message", (order: ClientOrder) => {
  if (order.kind === "add") watching?.addSnapshot(order.snapshot);
  else if (order.kind === "remove") watching?.removeSnapshot(order.snapshot);
  else void report(order.uri);
});

async function report(uri: string): Promise<void> {
  clearInterval(saying);
  await client.stop();
  const more = await finish(uri);
  const { problems, acknowledged } = client;
  say({ report: { problems, spans: acknowledged.list(), stalls: [], compared: 0, ...more } });
  process.exit();
}
