/** Another host takes over a store that all reach: after a confirmed fence, by a planned move, and not otherwise (F8). */
import { rmSync, writeFileSync } from "node:fs";
import { setTimeout as pause } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { HostCluster, VOLUME } from "../support/host-cluster.js";
import { addressOf, NbdClient } from "../support/nbd-client.js";

const BLOCK = 4096;
const LIMIT_MS = 180_000;

/** Network namespaces and loop devices need root. */
describe.skipIf(process.getuid?.() !== 0)("a store that several hosts reach", () => {
  let cluster: HostCluster;

  beforeAll(async () => {
    cluster = await HostCluster.start(["alpha", "beta", "gamma"]);
    for (const host of cluster.hosts) await host.startAgent();
  });
  afterAll(() => cluster.close());

  const client = (uris: readonly string[]) => {
    const tcp = uris.find((uri) => uri.startsWith("nbd://")) ?? "";
    return NbdClient.open(addressOf(tcp), { export: VOLUME });
  };
  const filled = (byte: number) => Buffer.alloc(BLOCK, byte);

  it("moves by an administrator's word, with all that was acknowledged", { timeout: LIMIT_MS }, async () => {
    const first = await cluster.served();
    const other = cluster.hosts.find(({ hostName }) => hostName !== first.host);
    const writer = await client(first.uris);
    await writer.write(0, filled(1));
    await cluster.host(first.host).must("snapshot", `${VOLUME}@one`);
    await writer.write(0, filled(2));
    await cluster.hosts[0]?.must("volume", "move", VOLUME, "--to", other?.hostName ?? "");
    const second = await cluster.served(first.epoch);
    expect(second.host).toBe(other?.hostName);
    const reader = await client(second.uris);
    expect((await reader.read(0, BLOCK)).equals(filled(2))).toBe(true);
    const old = await NbdClient.open(addressOf(second.uris.find((uri) => uri.startsWith("nbd://")) ?? ""), {
      export: `${VOLUME}@one`,
    });
    expect((await old.read(0, BLOCK)).equals(filled(1))).toBe(true);
    expect(cluster.fenced()).toEqual([]);
  });

  it("is taken over from a host that is cut off, once that is fenced; not before", {
    timeout: LIMIT_MS,
  }, async () => {
    const first = await cluster.served();
    const lost = cluster.host(first.host);
    const near = cluster.hosts.find((host) => host !== lost);
    const writer = await client(first.uris);
    await writer.write(BLOCK, filled(3));
    writeFileSync(cluster.fenceFails, "");
    lost.isolate();
    // The gate shuts before anybody may begin; the fence fails, so nobody does.
    await pause(9000);
    const between = await near?.show();
    expect(between).toMatchObject({ epoch: first.epoch, alive: false });
    expect(await near?.must("volume", "explain", VOLUME)).toMatch(
      /no power switch answers|nothing is heard of/,
    );
    rmSync(cluster.fenceFails);
    const second = await cluster.served(first.epoch, near);
    expect(second.host).not.toBe(first.host);
    expect(cluster.fenced().at(-1)).toContain(`${first.host} epoch ${first.epoch}`);
    const reader = await client(second.uris);
    expect((await reader.read(BLOCK, BLOCK)).equals(filled(3))).toBe(true);
    lost.heal();
    await lost.startAgent();
  });

  it("comes back on the same host when its server is killed there: no fence is needed", {
    timeout: LIMIT_MS,
  }, async () => {
    const first = await cluster.served();
    const before = cluster.fenced().length;
    process.kill(first.pid ?? 0, "SIGKILL");
    const second = await cluster.served(first.epoch);
    expect(cluster.fenced().length).toBe(before);
    expect(second.epoch).toBeGreaterThan(first.epoch);
  });

  it("is refused to a declaration that can't be safe, with the reason", { timeout: LIMIT_MS }, async () => {
    for (const [words, reason] of [
      [["--store-class", "shared-block"], "without a fence"],
      [["--store-class", "shared-block", "--fence", "scsi-pr"], "takes no persistent reservations"],
      [["--store-class", "nfs4", "--fence", "command=true"], "NFS server"],
      [["--store-class", "shared-block", "--i-accept-stale-writes"], "can't keep them apart"],
      [["--fence", "command=true"], "store class local"],
    ] as const) {
      const { status, stderr } = (await cluster.hosts[0]?.csnap("volume", "define", VOLUME, ...words)) ?? {};
      expect(status).toBe(1);
      expect(stderr).toContain(reason);
      expect(stderr?.trim()).not.toContain("\n");
    }
  });
});
