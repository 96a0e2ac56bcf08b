/**
 * Each safety layer by itself, in a configuration where no other covers it: green here, red when the layer is switched off.
 * `scripts/mutants` does that, by the names of these cases; see "control" in native/testing/mutants/README.md.
 */
import { randomUUID } from "node:crypto";
import { closeSync, openSync, rmSync, writeFileSync } from "node:fs";
import { setTimeout as pause } from "node:timers/promises";
import tmp from "tmp";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { claimEpoch } from "../../src/broker/claim_epoch.js";
import { openBroker } from "../../src/broker/open.js";
import { native } from "../../src/native.js";
import { loadDefinition } from "../../src/volume/definition.js";
import { openVolume } from "../../src/volume/open.js";
import { Sandbox } from "../support/csnap.js";
import { EtcdCluster } from "../support/etcd.js";
import { GrantWatch } from "../support/grant-watch.js";
import { type Host, HostCluster, type Shown, until, VOLUME } from "../support/host-cluster.js";
import { addressOf, NbdClient } from "../support/nbd-client.js";
import { part, sh } from "../support/network-node.js";
import { seededRandom } from "../support/random.js";
import { SyncGate } from "../support/server-gate.js";
import { StoppedThread } from "../support/stop-thread.js";
import { BLOCK } from "../support/verified-client.js";
import { WatchingClient } from "../support/watching-client.js";

const LIMIT_MS = 60_000;
const BLOCKS = 64;
/** So long a watcher hears both terms, where both answer. */
const LISTEN_MS = 1500;

interface Judges {
  readonly watcher: WatchingClient;
  readonly grants: GrantWatch;
}

const filled = (byte: number) => Buffer.alloc(BLOCK, byte);

/** Network namespaces and loop devices need root. */
const isRoot = process.getuid?.() === 0;

describe.skipIf(!isRoot)("between hosts", () => {
  let cluster: HostCluster;
  let alpha: Host;
  let beta: Host;
  /** Alpha's devices: what is held here is under way in them. */
  let device: SyncGate;
  const directory = tmp.dirSync({ prefix: "csnap-controls-", unsafeCleanup: true });

  beforeAll(async () => {
    device = await SyncGate.open(directory.name, true);
    cluster = await HostCluster.start(["alpha", "beta"], {
      env: (host) => (host === "alpha" ? device.env : {}),
    });
    alpha = cluster.host("alpha");
    beta = cluster.host("beta");
  });
  afterAll(async () => {
    await cluster?.close();
    device?.close();
    directory.removeCallback();
  });

  beforeEach(async () => {
    for (const host of cluster.hosts) if (!host.isAgentAlive) await host.startAgent();
  });
  afterEach(() => {
    device.release();
    rmSync(cluster.fenceLies, { force: true });
    for (const node of [...cluster.hosts, ...cluster.etcdNodes]) node.heal();
  });

  async function servedOn(host: Host): Promise<Shown> {
    const shown = await cluster.served();
    if (shown.host === host.hostName) return shown;
    await host.must("volume", "move", VOLUME, "--to", host.hostName);
    return cluster.served(shown.epoch, host);
  }

  function clientOf({ uris }: Shown): Promise<NbdClient> {
    return NbdClient.open(addressOf(uris.find((uri) => uri.startsWith("nbd://")) ?? ""), { export: VOLUME });
  }

  /** The nemesis' judges, asking all the time. */
  async function watched(): Promise<Judges> {
    const addresses = cluster.hosts.map(({ address }) => address);
    const watcher = new WatchingClient(addresses, VOLUME, BLOCKS, seededRandom(1));
    watcher.start();
    const grants = new GrantWatch(
      cluster.hosts.map(({ controlSocket }) => controlSocket),
      VOLUME,
    );
    await until(
      () => watcher.acknowledged.answers > 0 && grants.valid.answers > 0,
      () => cluster.logs(),
    );
    return { watcher, grants };
  }

  /** The watcher has heard a term above this one. */
  async function heard({ watcher }: Judges, above: number): Promise<void> {
    await until(
      () => watcher.acknowledged.list().some(({ epoch }) => epoch > above),
      () => cluster.logs(),
    );
  }

  async function verdict({ watcher, grants }: Judges, former: number): Promise<void> {
    await watcher.stop();
    await grants.stop();
    expect(watcher.acknowledged.list().find(({ epoch }) => epoch === former)?.answers).toBeGreaterThan(0);
    const problems = [
      ...watcher.acknowledged.stale("an answer of a former term"),
      ...grants.valid.stale("two servers with valid grants"),
      ...watcher.problems,
    ];
    // One text, so that a mutant's line says what was noticed.
    expect(problems.join("; ")).toBe("");
  }

  it("gate: the core of a server that can't renew its grant answers nothing, whatever its main thread does (F2)", {
    timeout: LIMIT_MS,
  }, async () => {
    const former = await servedOn(alpha);
    const judges = await watched();
    writeFileSync(cluster.fenceLies, "");
    part([alpha], cluster.etcdNodes);
    // It would cut all connections as soon as it notices.
    const main = await StoppedThread.stop(former.pid ?? 0, directory.name);
    try {
      await cluster.served(former.epoch, beta);
      await heard(judges, former.epoch);
      await pause(LISTEN_MS);
    } finally {
      await main.release();
    }
    await verdict(judges, former.epoch);
  });

  it("window: nobody takes over while a host that lost the broker may still answer (F1)", {
    timeout: LIMIT_MS,
  }, async () => {
    const former = await servedOn(alpha);
    const judges = await watched();
    writeFileSync(cluster.fenceLies, "");
    part([alpha], cluster.etcdNodes);
    await cluster.served(former.epoch, beta);
    await heard(judges, former.epoch);
    await pause(LISTEN_MS);
    await verdict(judges, former.epoch);
  });

  it("fence: what a lost host's devices still had to do is not done after a takeover (F8)", {
    timeout: LIMIT_MS,
  }, async () => {
    const former = await servedOn(alpha);
    const writer = await clientOf(former);
    device.holdWrites(alpha.devices.origin);
    // Never answered: it may be done or not, but not after a newer one (I3).
    writer.write(0, filled(1)).catch(() => {});
    await device.held();
    part([alpha], cluster.etcdNodes);
    // What waits in a device outlives the server; here it would end with it.
    const main = await StoppedThread.stop(former.pid ?? 0, directory.name);
    const next = await cluster.served(former.epoch, beta);
    const reader = await clientOf(next);
    await reader.write(0, filled(2));
    await reader.disconnect();
    // Stopped in order, the origin alone is current.
    await beta.must("volume", "disable", VOLUME);
    await until(
      async () => !(await beta.show()).alive,
      () => "it is still served",
    );
    device.release();
    await pause(LISTEN_MS);
    await main.release();
    await beta.must("volume", "enable", VOLUME);
    const last = await clientOf(await cluster.served(next.epoch, beta));
    expect((await last.read(0, BLOCK))[0]).toBe(2);
  });

  it("epoch: a store that another broker rules is not served (F1)", { timeout: LIMIT_MS }, async () => {
    const former = await servedOn(alpha);
    const judges = await watched();
    beta.crash();
    const other = await EtcdCluster.start(1, [], "http", cluster.etcdNodes);
    const broker = ["--broker", other.url("insecure=1")];
    try {
      const words = ["--store-class", "shared-block", "--fence", "command=true"];
      await beta.must(...broker, "volume", "define", VOLUME, ...words);
      const agent = beta.spawn([...broker, "agent"]);
      let shown: Shown | undefined;
      await until(
        async () => {
          shown = JSON.parse(await beta.must(...broker, "volume", "show", VOLUME, "--json")) as Shown;
          return shown.state === "failed" || shown.state === "published";
        },
        () => JSON.stringify(shown),
      );
      await pause(LISTEN_MS);
      agent.kill("SIGKILL");
      await verdict(judges, former.epoch);
      expect(shown?.reason).toContain("another broker may rule it");
    } finally {
      beta.crash();
      await other.close();
    }
  });

  it("direct: no host reads what it had in its page cache before another served (F8)", {
    timeout: LIMIT_MS,
  }, async () => {
    // A cache is kept as long as somebody has the device open.
    const kept = cluster.hosts.flatMap(({ devices }) => [devices.origin, devices.store]);
    const open = kept.map((path) => openSync(path, "r"));
    try {
      for (let byte = 1; byte <= 3; byte++) {
        const writer = await clientOf(await servedOn(byte % 2 === 0 ? alpha : beta));
        await writer.write(BLOCK, filled(byte));
        const reader = await clientOf(await servedOn(byte % 2 === 0 ? beta : alpha));
        expect((await reader.read(BLOCK, BLOCK)).equals(filled(byte))).toBe(true);
      }
    } finally {
      for (const fd of open) closeSync(fd);
    }
  });
});

/** Two state directories are two brokers: neither knows of the other's servers. */
describe("on one host", () => {
  let mine: Sandbox;
  let theirs: Sandbox;

  beforeEach(() => {
    mine = new Sandbox();
    theirs = new Sandbox();
  });
  afterEach(async () => {
    await theirs.close();
    await mine.close();
  });

  async function secondServer(store: string, origin: string): Promise<string> {
    await theirs.must("import", store, "--name", "vol", "--origin", origin);
    await mine.serve("vol");
    return theirs.serve("vol").then(
      () => "two servers of one store",
      (error: Error) => error.message,
    );
  }

  it("lock: a file is served once, whatever the brokers know (C1)", { timeout: LIMIT_MS }, async () => {
    await mine.init("vol", "8M", "16M");
    expect(await secondServer(mine.path("vol.store"), mine.path("vol.img"))).toContain("is in use by");
  });

  it("stamp: a grant that was overtaken before its holder came to the store opens nothing (F3)", {
    timeout: LIMIT_MS,
  }, async () => {
    await mine.init("vol", "8M", "16M");
    await theirs.must("import", mine.path("vol.store"), "--name", "vol", "--origin", mine.path("vol.img"));
    const definition = loadDefinition(theirs.path("state"), "vol");
    const broker = openBroker("local:", { stateDir: theirs.path("state") });
    const { epoch } = await claimEpoch(broker, native, definition, {
      purpose: "serve",
      instance: randomUUID(),
    });
    await (await mine.serve("vol")).stop();
    const outcome = await openVolume(native, definition, {
      durability: "flush",
      direct: false,
      lookOnly: false,
      acceptOrigin: false,
      acceptLoss: false,
      epoch,
      onEvent: () => {},
    }).then(
      async (volume) => {
        await volume.close();
        return `opened with epoch ${epoch}, which was used before`;
      },
      (error: Error) => error.message,
    );
    await broker.close();
    expect(outcome).toContain(`epoch ${epoch} was granted, but the store is at epoch ${epoch}`);
  });

  it.skipIf(!isRoot)(
    "exclusive: a device is served once, whatever the brokers know (C1)",
    {
      timeout: LIMIT_MS,
    },
    async () => {
      const loop = (name: string, size: string) =>
        sh(`truncate -s ${size} ${mine.path(name)}; losetup --find --show ${mine.path(name)}`);
      const devices = [loop("origin", "8M"), loop("store", "16M")];
      const [origin = "", store = ""] = devices;
      try {
        // Out of sight, so that the lock on the backing file can't help.
        for (const name of ["origin", "store"]) rmSync(mine.path(name));
        await mine.must("init", "vol", "--origin", origin, "--store", store);
        expect(await secondServer(store, origin)).toContain("is in use by");
      } finally {
        await theirs.close();
        await mine.close();
        for (const path of devices) sh(`losetup -d ${path}`);
      }
    },
  );
});
