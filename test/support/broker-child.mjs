// A process of its own that uses a broker, for the conformance suite: commands come as JSON lines on
// stdin, answers go as JSON lines to stdout. `churn` claims, publishes, withdraws and releases without
// end, and prints each epoch the moment it is granted, until it is killed.
import { writeSync } from "node:fs";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const { openBroker } = await import(fileURLToPath(new URL("../../dist/broker/open.js", import.meta.url)));
const [url, stateDir] = process.argv.slice(2);
const broker = openBroker(url, { stateDir });

const say = (answer) =>
  writeSync(
    1,
    `${JSON.stringify(answer, (_key, value) => (typeof value === "bigint" ? `${value}` : value))}\n`,
  );

let grant;

async function claim({ service, instance, storeEpoch = "0", volumeUuid, purpose = "serve" }) {
  grant = await broker.claim(service, { instance, storeEpoch: BigInt(storeEpoch), volumeUuid, purpose });
  grant.onStopAsked((reason) => say({ event: "stop-asked", reason }));
  grant.onLost((reason) => say({ event: "lost", reason }));
  return { epoch: grant.epoch };
}

const commands = {
  claim,
  publish: async ({ uris }) => grant.publish({ uris }),
  valid: async () => ({ valid_until: grant.validUntilMs() }),
  withdraw: async ({ reason }) => grant.withdraw(reason),
  release: async ({ failure }) => grant.release(failure),
  /** As a server of an agent's does: takes the slot over, publishes, ends when asked. */
  serve: async (command) => {
    const result = await claim(command);
    grant.onStopAsked(async () => {
      await grant.release();
      process.exit(0);
    });
    await grant.publish({ uris: command.uris });
    return result;
  },
  /** Listens and lets go: with nothing left to wait for the process ends by itself. */
  close: async ({ service }) => {
    const ticket = broker.request({ service, deadlineMs: 3_600_000 });
    await new Promise((resolve) => ticket.on(resolve));
    await broker.close();
    input.close();
  },
  churn: async (command) => {
    for (let i = 0; ; i++) {
      say(await claim({ ...command, instance: `${command.instance}-${i}` }));
      await grant.publish({ uris: [`nbd://host/${grant.epoch}`] });
      await grant.withdraw("churning");
      await grant.release();
    }
  },
};

const input = createInterface({ input: process.stdin });
input.on("line", async (line) => {
  const command = JSON.parse(line);
  try {
    say({ ok: true, ...(await commands[command.command](command)) });
  } catch (error) {
    say({ ok: false, code: error.code, message: error.message });
  }
});
say({ event: "up" });
