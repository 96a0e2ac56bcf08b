// The broker over real etcd: the contract, and what is its own: members that die and hang, users, watches, leases.
import { randomUUID } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";
import { afterAll, beforeAll } from "vitest";
import type * as Open from "../../src/broker/open.js";
import type { Backend } from "../support/broker-backend.js";
import { importBuilt } from "../support/built.js";
import { EtcdCluster } from "../support/etcd.js";
import { brokerConformance } from "../unit/broker.conformance.js";

const { openBroker } = await importBuilt<typeof Open>("broker/open.js");
const NO_STATE = { stateDir: "/nonexistent" };

let shared: EtcdCluster;

beforeAll(async () => {
  shared = await EtcdCluster.start(1);
});
afterAll(() => shared.close());

async function etcdBackend(): Promise<Backend> {
  const prefix = `/csnap/${randomUUID()}`;
  const url = shared.url(`prefix=${prefix}`);
  return {
    open: () => openBroker(url, NO_STATE),
    childArguments: [url, NO_STATE.stateDir],
    hang: async () => {
      shared.signal(0, "SIGSTOP");
      return async () => shared.signal(0, "SIGCONT");
    },
    vanish: async (service) => {
      const key = Buffer.from(`${prefix}/svc/${service}`).toString("base64");
      await shared.call("kv/deleterange", { key });
    },
    close: () => pause(0),
  };
}

brokerConformance("etcd", etcdBackend);
