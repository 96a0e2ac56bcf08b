// The broker over real etcd: the contract, and what is its own: members that die and hang, users, watches, leases.
import { randomUUID } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import tmp from "tmp";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Broker, Grant } from "../../src/broker/broker.js";
import { boottimeMs } from "../../src/broker/clock.js";
import type * as Records from "../../src/broker/etcd_records.js";
import { defaultTiming, silenceMs } from "../../src/broker/lease.js";
import type * as Keeper from "../../src/broker/lease_keeper.js";
import type * as Liveness from "../../src/broker/liveness.js";
import type * as Open from "../../src/broker/open.js";
import { ownIdentity } from "../../src/broker/process_identity.js";
import type * as RecordBrokerModule from "../../src/broker/record_broker.js";
import type * as Thread from "../../src/broker/renewal_thread.js";
import { type Backend, BrokerChild, Ear, UUID } from "../support/broker-backend.js";
import { importBuilt } from "../support/built.js";
import { makeCertificates } from "../support/certificates.js";
import { EtcdCluster } from "../support/etcd.js";
import { brokerConformance, claimOptions } from "../unit/broker.conformance.js";

const { openBroker } = await importBuilt<typeof Open>("broker/open.js");
const NO_STATE = { stateDir: "/nonexistent" };
const LONG_MS = 90_000;
const SILENCE_MS = silenceMs(defaultTiming.grantMs);

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

/** Another host, as far as the broker knows: a name of its own. */
async function hostNamed(host: string, url: string): Promise<Broker> {
  const { RecordBroker } = await importBuilt<typeof RecordBrokerModule>("broker/record_broker.js");
  const { EtcdRecords } = await importBuilt<typeof Records>("broker/etcd_records.js");
  const { RenewingLeaseKeeper } = await importBuilt<typeof Keeper>("broker/lease_keeper.js");
  const { RenewalThreads } = await importBuilt<typeof Thread>("broker/renewal_thread.js");
  const { SilenceLiveness } = await importBuilt<typeof Liveness>("broker/liveness.js");
  const self = { ...ownIdentity(), host };
  return new RecordBroker({
    store: EtcdRecords.open(url),
    reach: "cluster",
    self,
    liveness: new SilenceLiveness(self),
    leases: new RenewingLeaseKeeper({ startRenewal: (job) => new RenewalThreads(url).start(job) }),
  });
}

const refusal = (promise: Promise<unknown>) =>
  promise.then(
    () => expect.fail("it was not refused"),
    (error: { code: string; message: string }) => error,
  );

describe("etcd: grants between hosts", () => {
  it("of a host that stands still end before anybody else's begins, and that needs an administrator's word", {
    timeout: LONG_MS,
  }, async () => {
    const url = shared.url(`prefix=/csnap/${randomUUID()}`);
    const server = await new BrokerChild([url, NO_STATE.stateDir]).up();
    const beta = await hostNamed("beta", url);
    try {
      await server.must("claim", { service: "disk1", instance: "i", volumeUuid: UUID });
      await server.must("publish", { uris: ["nbd://alpha"] });
      const ear = new Ear(beta.request({ service: "disk1" }));
      await ear.until("address");
      // As long as it gives signs it stays, however long another one waits.
      await pause(SILENCE_MS + 500);
      expect(ear.types()).not.toContain("withdrawn");
      expect((await refusal(beta.claim("disk1", claimOptions()))).message).toContain("in use by process");
      server.process.kill("SIGSTOP");
      const { reason } = await ear.until("withdrawn");
      const silentMs = boottimeMs();
      expect(reason).toContain("nothing is heard of it");
      const { code, message } = await refusal(beta.claim("disk1", claimOptions()));
      expect(code).toBe("BUSY");
      expect(message).toContain("csnap volume fence-confirm disk1 --epoch 1");
      await beta.confirmFence("disk1", 1n, "root on beta");
      const grant = await beta.claim("disk1", claimOptions());
      expect(grant.epoch).toBe(2n);
      server.process.kill("SIGCONT");
      expect((await server.saying((answer) => answer.event === "lost")).reason).toMatch(
        /not renewed in time|epoch 2/,
      );
      // One kernel, one clock: what the stopped server may have believed was over by then.
      const { valid_until: validUntil = Number.POSITIVE_INFINITY } = await server.ask("valid");
      expect(validUntil).toBeLessThan(silentMs);
      await grant.release();
    } finally {
      await server.kill();
      await beta.close();
    }
  });

  it("are not confirmed as fenced while the holder gives signs", { timeout: LONG_MS }, async () => {
    const url = shared.url(`prefix=/csnap/${randomUUID()}`);
    const [alpha, beta] = [await hostNamed("alpha", url), await hostNamed("beta", url)];
    const grant = await alpha.claim("disk1", claimOptions());
    const { message } = await refusal(beta.confirmFence("disk1", 1n, "root on beta"));
    expect(message).toContain("nothing to confirm");
    await grant.release();
    await Promise.all([alpha.close(), beta.close()]);
  });
});

describe("etcd: members that fail", () => {
  let cluster: EtcdCluster;
  beforeAll(async () => {
    cluster = await EtcdCluster.start(3);
  });
  afterAll(() => cluster.close());

  it("cost no grant: the leader stands still, is killed, comes back; watchers hear on", {
    timeout: LONG_MS,
  }, async () => {
    const broker = openBroker(cluster.url(), NO_STATE);
    const other = openBroker(cluster.url(), NO_STATE);
    const grant = await broker.claim("disk1", claimOptions());
    const lost: string[] = [];
    grant.onLost((why) => lost.push(why));
    const ear = new Ear(other.request({ service: "disk1" }));
    const margins: number[] = [];
    const sampler = setInterval(() => margins.push(grant.validUntilMs() - boottimeMs()), 20);
    const heard = async (uri: string) => {
      const publish = async (): Promise<void> =>
        grant.publish({ uris: [uri] }).catch(async (error: { code: string }) => {
          expect(error.code).toBe("IO_ERROR");
          await pause(100);
          return publish();
        });
      await publish();
      await ear.until("address", ({ uris }) => uris[0] === uri);
    };
    await heard("nbd://all");
    for (let round = 0; round < 3; round++) {
      const leader = await cluster.leader();
      cluster.signal(leader, "SIGSTOP");
      await heard(`nbd://${round}/leader-stopped`);
      await pause(2500);
      cluster.signal(leader, "SIGCONT");
      const next = await cluster.leader();
      await cluster.kill(next);
      await heard(`nbd://${round}/leader-killed`);
      cluster.restart(next);
      await pause(1500);
    }
    clearInterval(sampler);
    expect(lost).toEqual([]);
    expect(Math.min(...margins)).toBeGreaterThan(0);
    await grant.release();
    await Promise.all([broker.close(), other.close()]);
  });

  it("leave a line when all are gone, and calls end", { timeout: LONG_MS }, async () => {
    const gone = await EtcdCluster.start(1);
    const broker = openBroker(gone.url(), NO_STATE);
    await gone.kill(0);
    const { code, message } = await refusal(broker.claim("disk1", claimOptions()));
    expect(code).toBe("IO_ERROR");
    expect(message).toMatch(/^etcd at 127\.0\.0\.1:\d+ does not answer \(.*ECONNREFUSED.*\): see that/);
    await broker.close();
    await gone.close();
  });

  it("that were compacted tell a gap, not a loss", { timeout: LONG_MS }, async () => {
    const broker = openBroker(cluster.url(), NO_STATE);
    const grant = await broker.claim("disk2", claimOptions());
    const ear = new Ear(broker.request({ service: "disk2" }));
    await grant.publish({ uris: ["nbd://a"] });
    await ear.until("address");
    const { header } = (await cluster.call("kv/range", { key: "AA==" })) as { header: { revision: string } };
    await cluster.call("kv/compaction", { revision: header.revision, physical: true });
    await grant.publish({ uris: ["nbd://b"] });
    await ear.until("address", ({ uris }) => uris[0] === "nbd://b");
    await grant.release();
    await broker.close();
  });
});

describe("etcd: who may", () => {
  const directory = tmp.dirSync({ prefix: "csnap-etcd-auth-", unsafeCleanup: true });
  afterAll(() => directory.removeCallback());

  it("users with a password work through a member's restart, which forgets their tokens; others get a line", {
    timeout: LONG_MS,
  }, async () => {
    const cluster = await EtcdCluster.start(1);
    const key = Buffer.from("/csnap/").toString("base64");
    const end = Buffer.from("/csnap0").toString("base64");
    for (const [path, body] of [
      ["auth/user/add", { name: "root", password: "secret" }],
      ["auth/user/grant", { user: "root", role: "root" }],
      ["auth/user/add", { name: "csnap", password: "right" }],
      ["auth/role/add", { name: "csnap" }],
      ["auth/role/grant", { name: "csnap", perm: { permType: "READWRITE", key, range_end: end } }],
      ["auth/user/grant", { user: "csnap", role: "csnap" }],
      ["auth/enable", {}],
    ] as const)
      await cluster.call(path, body);
    const file = (name: string, text: string) => {
      writeFileSync(join(directory.name, name), text);
      return join(directory.name, name);
    };
    const urlWith = (password: string, prefix = "/csnap/a") =>
      cluster.url(`prefix=${prefix}&user=csnap&password-file=${file(password, `${password}\n`)}`);
    const broker = openBroker(urlWith("right"), NO_STATE);
    const first = await broker.claim("disk1", claimOptions());
    await first.release();
    await cluster.kill(0);
    cluster.restart(0);
    await cluster.up();
    const second = await broker.claim("disk1", claimOptions());
    expect(second.epoch).toBe(2n);
    await second.release();
    await broker.close();
    for (const [url, words] of [
      [urlWith("wrong"), "authentication failed"],
      [urlWith("right", "/elsewhere"), "permission denied"],
      [cluster.url(), "user"],
    ] as const) {
      const stranger = openBroker(url, NO_STATE);
      const { code, message } = await refusal(stranger.claim("disk1", claimOptions()));
      expect({ code, url }).toEqual({ code: "PERMISSION", url });
      expect(message).toContain(words);
      expect(message).not.toContain("\n");
      await stranger.close();
    }
    await cluster.close();
  });

  it("TLS with certificates of both sides; a stranger's authority is refused", {
    timeout: LONG_MS,
  }, async () => {
    makeCertificates(directory.name);
    const path = (name: string) => join(directory.name, name);
    const cluster = await EtcdCluster.start(
      1,
      [
        `--cert-file=${path("server-cert.pem")}`,
        `--key-file=${path("server-key.pem")}`,
        `--trusted-ca-file=${path("ca-cert.pem")}`,
        "--client-cert-auth",
      ],
      "https",
    );
    const query = `ca=${path("ca-cert.pem")}&cert=${path("client-cert.pem")}&key=${path("client-key.pem")}`;
    const broker = openBroker(cluster.url(query), NO_STATE);
    const claimed = async (): Promise<Grant> =>
      broker.claim("disk1", claimOptions()).catch(async (error: { code: string }) => {
        expect(error.code).toBe("IO_ERROR");
        await pause(100);
        return claimed();
      });
    const grant = await claimed();
    const ear = new Ear(broker.request({ service: "disk1" }));
    await grant.publish({ uris: ["nbd://a"] });
    await ear.until("address");
    await pause(1500);
    await grant.release();
    await broker.close();
    for (const [plain, words] of [
      [`tls=1`, "certificate"],
      [`ca=${path("ca-cert.pem")}`, ""],
    ] as const) {
      const stranger = openBroker(cluster.url(plain), NO_STATE);
      const { code, message } = await refusal(stranger.claim("disk1", claimOptions()));
      expect(code).toBe("IO_ERROR");
      expect(message).toContain(words);
      await stranger.close();
    }
    await cluster.close();
  });
});
