/** `csnap serve` and `csnap volume` through the local broker, as users run them: who serves, with which epoch. */
import { readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { FileRecords } from "../../src/broker/file_records.js";
import { openBroker } from "../../src/broker/open.js";
import { native } from "../../src/native.js";
import { Ear } from "../support/broker-backend.js";
import { Sandbox } from "../support/csnap.js";

interface Shown {
  readonly state: string;
  readonly enabled: boolean;
  readonly epoch: number;
  readonly pid: number | null;
  readonly alive: boolean;
  readonly uris: readonly string[];
  readonly control_socket: string | null;
  readonly reason: string;
}

describe("a volume's server and the local broker", () => {
  let sandbox: Sandbox;

  beforeEach(async () => {
    sandbox = new Sandbox();
    await sandbox.init("vol", "8M", "16M");
  });
  afterEach(() => sandbox.close());

  const show = () => sandbox.json<Shown>("volume", "show", "vol");
  const explain = async () => (await sandbox.must("volume", "explain", "vol")).trim();
  const stamped = async () => Number((await native.readStore(sandbox.path("vol.store"))).epoch);
  const broker = () => openBroker("local:", { stateDir: sandbox.path("state") });

  it("publishes its listeners with the epoch it stamped, and withdraws in order", async () => {
    expect(await explain()).toContain("was never served");
    const users = broker();
    const ear = new Ear(users.request({ service: "vol" }));
    const server = await sandbox.serve("vol", "--listen", "127.0.0.1:0");
    const { epoch, uris, controlSocket } = await ear.until("address");
    expect(Number(epoch)).toBe(await stamped());
    expect(uris.length).toBe(2);
    expect(uris[0]).toBe(server.uri);
    expect(await show()).toMatchObject({
      state: "published",
      epoch: 1,
      pid: server.child.pid,
      alive: true,
      uris,
      control_socket: controlSocket,
    });
    expect(await explain()).toContain(`is served by process ${server.child.pid}`);
    expect(await server.stop()).toBe(0);
    expect((await ear.until("withdrawn")).reason).toContain("SIGTERM");
    expect(await show()).toMatchObject({ state: "vacant", pid: null, uris: [], reason: "stopped in order" });
    await users.close();
  });

  it("takes a killed server's place at once, with the next epoch", async () => {
    for (let term = 1; term <= 4; term++) {
      const server = await sandbox.serve("vol");
      expect(await show()).toMatchObject({ epoch: term, pid: server.child.pid });
      expect(await stamped()).toBe(term);
      await server.kill();
      expect(await show()).toMatchObject({ alive: false });
      expect(await explain()).toContain("is gone without stopping in order");
    }
  });

  it("goes on above the store's epoch where the broker's records are gone or behind", async () => {
    await (await sandbox.serve("vol")).stop();
    await sandbox.must("snapshot", "vol@offline");
    // The command's term counts, too.
    expect(await stamped()).toBe(2);
    expect(await show()).toMatchObject({ epoch: 2, state: "vacant" });
    const directory = sandbox.path("state/broker/vol");
    for (const name of readdirSync(directory)) writeFileSync(join(directory, name), "");
    const { status, stderr } = await sandbox.csnap("serve", "vol");
    expect(status).toBe(1);
    expect(stderr).toMatch(/^csnap: the broker's record \S+ is damaged .* remove the file[^\n]*\n$/);
    rmSync(directory, { recursive: true });
    await sandbox.serve("vol");
    expect(await stamped()).toBe(3);
    expect((await show()).epoch).toBe(3);
  });

  it("is disabled and enabled by an administrator", async () => {
    const server = await sandbox.serve("vol");
    const told = await sandbox.must("volume", "disable", "vol");
    expect(told).toContain("may not be served");
    expect(await server.exit()).toBe(0);
    expect(server.log).toContain("an administrator has disabled it: finishing what is under way");
    const refused = await sandbox.csnap("serve", "vol");
    expect(refused.status).toBe(1);
    expect(refused.stderr).toBe(
      "csnap: vol is disabled by an administrator: `csnap volume enable vol` allows it to be served\n",
    );
    expect(await explain()).toContain("csnap volume enable vol");
    await sandbox.must("snapshot", "vol@still-works");
    await sandbox.must("volume", "enable", "vol");
    await sandbox.serve("vol");
  });

  it("is disabled before it was ever served", async () => {
    await sandbox.must("volume", "disable", "vol");
    expect((await sandbox.csnap("serve", "vol")).status).toBe(1);
    expect(await show()).toMatchObject({ enabled: false, epoch: 0 });
  });

  it("stops when a newer term was granted, and does not disturb it", async () => {
    const server = await sandbox.serve("vol");
    const users = broker();
    // Only the same instance may take the slot of a server that lives.
    const view = await users.describe("vol");
    expect(view?.instance).toBeDefined();
    const claim = users.claim("vol", {
      instance: "another",
      storeEpoch: 1n,
      volumeUuid: view?.spec.volumeUuid ?? "",
      purpose: "serve",
    });
    await expect(claim).rejects.toMatchObject({ code: "BUSY" });
    await users.close();
    // Records of another term under a running server, as after a restored backup of the state directory.
    const store = new FileRecords(sandbox.path("state/broker"));
    const found = await store.read("vol");
    if (!found) throw new Error("no record");
    const swapped = await store.swap("vol", found, { ...found.record, epoch: 9n });
    expect(swapped).toBeDefined();
    expect(await server.exit()).toBe(1);
    expect(server.log).toContain("epoch 1 is not valid any more, epoch 9 was granted after it");
    expect((await store.read("vol"))?.record.epoch).toBe(9n);
    const again = await sandbox.serve("vol");
    expect(await show()).toMatchObject({ epoch: 10, pid: again.child.pid });
    expect(await stamped()).toBe(10);
  });

  it("leaves a failed start's slot free", async () => {
    const blocker = sandbox.path("no-socket-here");
    writeFileSync(blocker, "");
    const { status } = await sandbox.csnap("serve", "vol", "--socket", blocker);
    expect(status).toBe(1);
    expect(await show()).toMatchObject({ state: "vacant", pid: null });
    await sandbox.serve("vol");
  });

  it("is forgotten with its volume, so that the name is free", async () => {
    await (await sandbox.serve("vol")).stop();
    await sandbox.must("rename", "vol", "mail");
    await (await sandbox.serve("mail")).stop();
    await sandbox.must("remove", "mail", "--wipe-store", "--yes");
    await sandbox.init("mail", "8M", "16M", "--force");
    await sandbox.serve("mail");
  });

  it.each([
    [["--store-class", "shared-block"], "needs a broker that other hosts see"],
    [["--fence", "scsi-pr"], "of use between hosts only"],
    [["--fence", "magic"], "is not known"],
    [["--host", "elsewhere"], "is not among those declared"],
  ])("refuses a declaration that one host can't hold to: %s", async (options, words) => {
    const { status, stderr } = await sandbox.csnap("volume", "define", "vol", ...options);
    expect(status).not.toBe(0);
    expect(stderr).toContain(words);
    expect(stderr.trim().split("\n").length).toBe(1);
  });
});
