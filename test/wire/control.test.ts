// A volume on real files with a real server: what commands say with and without it, the control API
// over its socket, and how a server starts, stops, is killed and comes back.
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, readFileSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { connect } from "node:net";
import { createInterface } from "node:readline";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { EventRecord } from "../../src/control/events.js";
import type { CheckRecord, SnapshotRecord, VolumeRecord } from "../../src/volume/model.js";
import { collect, MAIN, Sandbox } from "../support/csnap.js";

let sandbox: Sandbox;
beforeEach(() => {
  sandbox = new Sandbox();
});
afterEach(() => sandbox.close());

/** The system's Python: nbdsh's module belongs to it. */
const toolEnv = { ...process.env, PATH: `/usr/bin:/bin:${process.env.PATH}` };

function nbdsh(uri: string, script: string) {
  return collect(
    spawn("nbdsh", ["-u", uri, "-c", script], { env: toolEnv, stdio: ["ignore", "pipe", "pipe"] }),
  );
}

function python(script: string) {
  return collect(spawn("/usr/bin/python3", ["-c", script], { stdio: ["ignore", "pipe", "pipe"] }));
}

async function write(uri: string, byte: number, offset: number, length: number): Promise<void> {
  // In pieces: no request may have more than 32 MiB.
  const script = `
for at in range(${offset}, ${offset + length}, 1 << 20):
    h.pwrite(bytes([${byte}]) * min(1 << 20, ${offset + length} - at), at)
h.flush()`;
  const done = await nbdsh(uri, script);
  expect(done).toMatchObject({ status: 0, stderr: "" });
}

async function readByte(uri: string, offset: number): Promise<number> {
  const { status, stdout, stderr } = await nbdsh(uri, `print(h.pread(1, ${offset})[0])`);
  expect([status, stderr]).toEqual([0, ""]);
  return Number(stdout);
}

interface Answer {
  readonly status: number;
  readonly body: unknown;
}

function api(volume: string, method: string, path: string, body?: string | Buffer): Promise<Answer> {
  const socketPath = sandbox.path(`run/${volume}.control`);
  return new Promise((resolve, reject) => {
    const call = request({ socketPath, method, path, agent: false }, (response) => {
      let text = "";
      response.setEncoding("utf8").on("data", (part: string) => {
        text += part;
      });
      response.on("end", () =>
        resolve({ status: response.statusCode ?? 0, body: JSON.parse(text) as unknown }),
      );
    });
    call.on("error", reject);
    call.end(body);
  });
}

describe("with and without a server", () => {
  it("commands answer the same", async () => {
    await sandbox.init("v", "16M", "64M");
    await sandbox.must("snapshot", "v@offline", "--pin", "--priority", "80", "--label", "kind=test");
    const before = await sandbox.json<SnapshotRecord[]>("list", "v");
    const server = await sandbox.serve("v");
    expect(await sandbox.json("list", "v")).toMatchObject([{ volume: "v", state: "serving" }]);
    expect(withoutState(await sandbox.json("list", "v"))).toEqual(withoutState(before));
    const made = await sandbox.json<SnapshotRecord>("snapshot", "v@online", "--label", "kind=test");
    expect(made).toMatchObject({ volume: "v", name: "online", size: 16 << 20, labels: { kind: "test" } });
    await write(server.exportUri("v"), 7, 0, 100_000);
    const commands = [
      ["list", "v"],
      ["get", "v"],
      ["get", "v@offline"],
      ["get", "v@online"],
    ];
    const online = [];
    for (const args of commands) online.push(withoutState(await sandbox.json(...args)));
    expect(await server.stop()).toBe(0);
    const offline = [];
    for (const args of commands) offline.push(withoutState(await sandbox.json(...args)));
    expect(offline).toEqual(online);
    expect(await sandbox.json("list", "v")).toMatchObject([{ state: "stopped" }]);
  });

  it.each([false, true])("checks, dumps, changes and deletes (served: %s)", async (served) => {
    await sandbox.init("v", "16M", "64M");
    const server = served ? await sandbox.serve("v") : undefined;
    await sandbox.must("snapshot", "v@s");
    const changed = await sandbox.json("set", "v@s", "pin=on", "priority=3", "label.a=1");
    expect(changed).toMatchObject({ pinned: true, priority: 3, labels: { a: "1" } });
    await sandbox.must("set", "v@s", "pin=off", "label.a=");
    expect(await sandbox.json("get", "v@s")).toMatchObject({ pinned: false, priority: 3, labels: {} });
    await sandbox.must("set", "v", "on-full=refuse-writes");
    expect(await sandbox.must("get", "v", "on-full")).toBe("refuse-writes\n");
    expect(await sandbox.json<CheckRecord>("check", "v", "--data")).toMatchObject({
      clean: true,
      problems: [],
    });
    const dumped = (await sandbox.must("dump", "v")).trimEnd().split("\n");
    expect(dumped.map((line) => JSON.parse(line) as object)).toContainEqual(
      expect.objectContaining({ type: "snapshot", name: "s" }),
    );
    const dry = await sandbox.json("delete", "--dry-run", "v@s");
    expect(dry).toMatchObject({ deleted: [], would_delete: [{ name: "s" }] });
    // One that is missing keeps the other from being deleted.
    expect(await sandbox.csnap("delete", "v@s", "v@missing")).toMatchObject({
      status: 1,
      stderr: "csnap: v@missing does not exist: `csnap list v` shows the snapshots\n",
    });
    expect(await sandbox.must("delete", "v@s")).toMatch(/^v@s deleted\n1 snapshot: /);
    expect(await sandbox.json("list", "v")).toMatchObject([{ snapshots: [] }]);
    if (server) expect(await server.stop()).toBe(0);
  });

  it("a look writes nothing, a change claims an epoch", async () => {
    await sandbox.init("v", "16M", "64M");
    await sandbox.must("snapshot", "v@a");
    const bytes = readFileSync(sandbox.path("v.store"));
    const { epoch } = await sandbox.json<VolumeRecord>("status", "v");
    for (const args of [["list"], ["status"], ["check", "v", "--data"], ["dump", "v"], ["get", "v@a"]])
      await sandbox.must(...args);
    expect(readFileSync(sandbox.path("v.store")).equals(bytes)).toBe(true);
    await sandbox.must("set", "v@a", "priority=1");
    expect((await sandbox.json<VolumeRecord>("status", "v")).epoch).toBe(epoch + 1);
  });
});

/** What may differ between served and not: the state, and figures of the term. */
function withoutState(value: unknown): unknown {
  const hidden = new Set(["state", "store_free", "use_count"]);
  return JSON.parse(JSON.stringify(value, (key, inner) => (hidden.has(key) ? undefined : inner)));
}

describe("the control API", () => {
  it("does what curl asks, and refuses the rest with a code", async () => {
    await sandbox.init("v", "16M", "64M");
    await sandbox.serve("v");
    expect(statSync(sandbox.path("run/v.control")).mode & 0o777).toBe(0o660);
    expect(statSync(sandbox.path("run/v.sock")).mode & 0o777).toBe(0o660);
    const made = await api("v", "POST", "/v1/snapshots", '{"name":"a","priority":9}');
    expect(made).toMatchObject({ status: 201, body: { volume: "v", name: "a", priority: 9, pinned: false } });
    const { uuid } = made.body as SnapshotRecord;
    expect(await api("v", "GET", `/v1/snapshots/${uuid}`)).toMatchObject({
      status: 200,
      body: { name: "a" },
    });
    expect(await api("v", "PATCH", "/v1/snapshots/a", '{"pinned":true}')).toMatchObject({
      body: { pinned: true },
    });
    expect(await api("v", "PATCH", "/v1/properties", '{"on_full":"refuse-writes"}')).toMatchObject({
      status: 200,
      body: { properties: { on_full: "refuse-writes" } },
    });
    expect(await api("v", "GET", "/v1/status")).toMatchObject({
      body: { volume: "v", state: "serving", snapshots: { live: 1 } },
    });

    const refusals: [method: string, path: string, body: string | undefined, status: number, code: string][] =
      [
        ["GET", "/v1/nope", undefined, 404, "USAGE"],
        ["GET", "/", undefined, 404, "USAGE"],
        ["PUT", "/v1/status", undefined, 405, "USAGE"],
        ["POST", "/v1/snapshots", "{", 400, "USAGE"],
        ["POST", "/v1/snapshots", '{"name":"a/b"}', 400, "USAGE"],
        ["POST", "/v1/snapshots", '{"name":"a"}', 409, "ALREADY_EXISTS"],
        ["POST", "/v1/snapshots", `{"name":"${"x".repeat(70_000)}"}`, 413, "USAGE"],
        ["PATCH", "/v1/snapshots/nope", "{}", 404, "NOT_FOUND"],
        ["DELETE", "/v1/snapshots/nope", undefined, 404, "NOT_FOUND"],
        ["DELETE", "/v1/snapshots/%zz", undefined, 400, "USAGE"],
        ["GET", "/v1/events?since=soon", undefined, 400, "USAGE"],
      ];
    for (const [method, path, body, status, code] of refusals) {
      const answer = await api("v", method, path, body);
      expect([method, path, answer]).toMatchObject([
        method,
        path,
        { status, body: { code, message: expect.any(String) } },
      ]);
    }
    expect(await api("v", "DELETE", `/v1/snapshots/${uuid}`)).toMatchObject({
      status: 200,
      body: { deleted: [{ name: "a" }] },
    });
  });

  it("survives what is no HTTP", async () => {
    await sandbox.init("v", "16M", "64M");
    await sandbox.serve("v");
    for (const bytes of [
      Buffer.from("NBDMAGIC\0\0\0\0"),
      Buffer.alloc(100_000, 65),
      Buffer.from("GET / HTTP/1.1\r\n"),
    ]) {
      const socket = connect(sandbox.path("run/v.control"));
      socket.on("error", () => {});
      socket.resume();
      const closed = new Promise((resolve) => socket.once("close", resolve));
      socket.end(bytes);
      await closed;
    }
    expect(await api("v", "GET", "/v1/status")).toMatchObject({ status: 200 });
  });

  it("streams events as they happen, and those that are kept", async () => {
    await sandbox.init("v", "16M", "64M");
    const server = await sandbox.serve("v");
    await sandbox.must("snapshot", "v@early");
    const follower = spawn(process.execPath, [MAIN, "events", "v", "--past", "--json"], {
      env: sandbox.env,
      stdio: ["ignore", "pipe", "pipe"],
    });
    const events = lineReader(follower);
    expect(await events.until((event) => event.kind === "snapshot-created")).toMatchObject({
      volume: "v",
      snapshot: "early",
    });
    await sandbox.must("snapshot", "v@late");
    const late = await events.until((event) => event.snapshot === "late");
    expect(late.kind).toBe("snapshot-created");
    expect(late.time).toMatch(/^\d{4}-\d\d-\d\dT.*Z$/);
    await sandbox.must("delete", "v@late");
    await events.until((event) => event.kind === "snapshot-deleted" && event.snapshot === "late");
    const ended = collect(follower);
    expect(await server.stop()).toBe(0);
    expect(await ended).toMatchObject({ status: 0, stderr: "" });
    expect(events.seen.map((event) => event.id)).toEqual(events.seen.map((_, i) => i + 1));
  });
});

function lineReader(child: ChildProcess) {
  if (!child.stdout) throw new Error("no stdout");
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const seen: EventRecord[] = [];
  return {
    seen,
    until: async (wanted: (event: EventRecord) => boolean): Promise<EventRecord> => {
      for (;;) {
        const { value, done } = await lines.next();
        if (done) throw new Error(`the events ended; seen: ${seen.map((event) => event.kind).join(", ")}`);
        const event = JSON.parse(value) as EventRecord;
        seen.push(event);
        if (wanted(event)) return event;
      }
    },
  };
}

describe("a server", () => {
  it("keeps snapshots unchanged while the origin is written, and lists its clients", async () => {
    await sandbox.init("v", "16M", "64M");
    const server = await sandbox.serve("v", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0");
    await write(server.exportUri("v"), 1, 5000, 50_000);
    await sandbox.must("snapshot", "v@one");
    await write(server.exportUri("v"), 2, 5000, 50_000);
    expect(await readByte(server.exportUri("v@one"), 5000)).toBe(1);
    expect(await readByte(server.exportUri("v"), 5000)).toBe(2);
    expect(await readByte(server.uri, 5000)).toBe(2);
    const readOnly = await nbdsh(server.exportUri("v@one"), "h.set_strict_mode(0); h.pwrite(b'x', 0)");
    expect(readOnly.stderr).toMatch(/EPERM|Operation not permitted/);

    const client = spawn(
      "nbdsh",
      ["-u", server.exportUri("v@one"), "-c", "import sys; print('in', flush=True); sys.stdin.read()"],
      {
        env: toolEnv,
        stdio: ["pipe", "pipe", "inherit"],
      },
    );
    await new Promise((resolve) => client.stdout?.once("data", resolve));
    const status = await sandbox.json<VolumeRecord>("status", "v");
    expect(status.server?.listeners).toHaveLength(2);
    expect(status.server?.clients).toMatchObject([
      { export: "v@one", read_only: true, tls: false, peer: "unix socket" },
    ]);
    const metrics = await fetch(status.server?.metrics ?? "");
    expect(await metrics.text()).toContain('csnap_clients{volume="v"} 1\n');
    await sandbox.must("delete", "v@one");
    const gone = await nbdsh(server.exportUri("v@one"), "pass");
    expect(gone.stderr).toMatch(/v@one/);
    client.stdin?.end();
    await collect(client);
    expect(await server.stop()).toBe(0);
    expect(existsSync(sandbox.path("run/v.sock")) || existsSync(sandbox.path("run/v.control"))).toBe(false);
  });

  it("refuses a second one, and every change behind its back", async () => {
    await sandbox.init("v", "16M", "64M");
    const server = await sandbox.serve("v");
    const pid = server.child.pid;
    const env = { ...sandbox.env };
    expect(await sandbox.csnap("serve", "v")).toMatchObject({
      status: 1,
      stderr: `csnap: v is served already, by process ${pid}: stop that one first\n`,
    });
    for (const args of [
      ["remove", "v"],
      ["rename", "v", "w"],
    ]) {
      const { status, stderr } = await sandbox.csnap(...args);
      expect([status, stderr]).toEqual([
        1,
        expect.stringMatching(/^csnap: v is being served: stop its server first/),
      ]);
    }
    // From a place where its control socket is not seen: the lock refuses.
    env.CSNAP_RUN_DIR = sandbox.path("elsewhere");
    for (const args of [
      ["serve", "v"],
      ["list", "v"],
      ["snapshot", "v@x"],
    ]) {
      const { status, stderr } = await collect(
        spawn(process.execPath, [MAIN, ...args], { env, stdio: ["ignore", "pipe", "pipe"] }),
      );
      expect([args, status, stderr.trimEnd().split("\n")]).toEqual([
        args,
        1,
        [expect.stringMatching(/^csnap: v: .*in use by process/)],
      ]);
    }
    expect(await server.stop()).toBe(0);
  });

  it("that is killed leaves a volume that says so, and the next one recovers", async () => {
    await sandbox.init("v", "16M", "64M");
    const first = await sandbox.serve("v");
    await sandbox.must("snapshot", "v@one");
    await write(first.exportUri("v"), 9, 0, 70_000);
    await first.kill();
    const status = await sandbox.csnap("status", "v", "--json");
    expect(status.stderr).toMatch(/^csnap: v was not stopped in order: .* may lack acknowledged writes/);
    expect(JSON.parse(status.stdout)).toMatchObject({ state: "unclean", snapshots: { live: 1 } });
    const second = await sandbox.serve("v");
    expect(await readByte(second.exportUri("v"), 69_999)).toBe(9);
    expect(await readByte(second.exportUri("v@one"), 69_999)).toBe(0);
    expect(await second.stop()).toBe(0);
    expect(await sandbox.csnap("check", "v", "--data")).toMatchObject({ status: 0, stderr: "" });
  });

  it("finishes on SIGINT as on SIGTERM, with clients connected", async () => {
    await sandbox.init("v", "16M", "64M");
    for (const signal of ["SIGINT", "SIGTERM"] as const) {
      const server = await sandbox.serve("v");
      const client = spawn(
        "nbdsh",
        ["-u", server.exportUri("v"), "-c", "import sys; print('in', flush=True); sys.stdin.read()"],
        {
          env: toolEnv,
          stdio: ["pipe", "pipe", "ignore"],
        },
      );
      await new Promise((resolve) => client.stdout?.once("data", resolve));
      expect(await server.stop(signal)).toBe(0);
      client.stdin?.end();
      await collect(client);
      expect(await sandbox.json("status", "v")).toMatchObject({ state: "stopped" });
    }
  });

  it("is started by a client through socket activation, and keeps stdout clean for it", async () => {
    await sandbox.init("v", "16M", "64M");
    const run = await collect(
      spawn("nbdinfo", ["--json", "--", "[", process.execPath, MAIN, "serve", "v", "]"], {
        env: sandbox.env,
        stdio: ["ignore", "pipe", "pipe"],
      }),
    );
    expect(JSON.parse(run.stdout)).toMatchObject({
      exports: [{ "export-size": 16 << 20, is_read_only: false }],
    });
    expect(run.stderr).toMatch(/^csnap: v ready nbd\+unix:/m);
  });

  it("tells the service manager when it is ready and when it stops", async () => {
    await sandbox.init("v", "16M", "64M");
    const path = sandbox.path("notify");
    const script =
      "import socket,sys\ns=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM)\ns.bind(sys.argv[1])\nprint('bound',flush=True)\n" +
      "while True:\n m=s.recv(4096).decode()\n print(m.replace('\\n',' '),flush=True)\n if 'STOPPING=1' in m: break\n";
    const manager = spawn("/usr/bin/python3", ["-c", script, path], { stdio: ["ignore", "pipe", "inherit"] });
    const heard = collect(manager);
    await new Promise((resolve) => manager.stdout?.once("data", resolve));
    sandbox.env.NOTIFY_SOCKET = path;
    sandbox.env.WATCHDOG_USEC = "100000";
    const server = await sandbox.serve("v");
    expect(await server.stop()).toBe(0);
    expect((await heard).stdout).toMatch(
      /^bound\nREADY=1 STATUS=serving v, connections: 0\n(?:WATCHDOG=1\n)*STOPPING=1 STATUS=/,
    );
  });

  it("takes TLS with pre-shared keys and rules", async () => {
    await sandbox.init("v", "16M", "64M");
    const keys = sandbox.path("keys.psk");
    writeFileSync(keys, `alice:${"ab".repeat(32)}\nbob:${"cd".repeat(32)}\n`, { mode: 0o600 });
    const server = await sandbox.serve(
      "v",
      "--listen",
      "127.0.0.1:0",
      "--tls-psk",
      keys,
      "--allow",
      "psk=alice=v:rw",
      "--allow",
      "psk=bob=v",
    );
    const tcp = (await sandbox.json<VolumeRecord>("status", "v")).server?.listeners[1] ?? "";
    expect(tcp).toMatch(/^nbds:\/\/127\.0\.0\.1:\d+\/$/);
    // A URI may name a file of keys only where the program allows that.
    const as = (user: string, script: string) => {
      const uri = `${tcp.replace("//", `//${user}@`)}v?tls-psk-file=${keys}`;
      const connect = `h = nbd.NBD(); h.set_uri_allow_local_file(True); h.connect_uri("${uri}")`;
      return python(`import nbd\n${connect}\n${script}`);
    };
    expect(await as("alice", "h.pwrite(b'x', 0); print(h.is_read_only())")).toMatchObject({
      status: 0,
      stdout: "False\n",
    });
    expect(await as("bob", "print(h.is_read_only())")).toMatchObject({ status: 0, stdout: "True\n" });
    expect((await nbdsh(`${tcp.replace("nbds:", "nbd:")}v`, "pass")).stderr).not.toBe("");
    expect(await server.stop()).toBe(0);
  });
});

describe("attachments", () => {
  it("belong to the greatest try; smaller ones are cut and refused", async () => {
    await sandbox.init("v", "16M", "64M");
    const server = await sandbox.serve("v");
    const uuid = "6f1c4d8e-0d2b-4a55-9a3e-3f6d0f2b7a11";
    const script = (attempts: number[], then: string) =>
      `import nbd
def open(attempt):
    h = nbd.NBD()
    h.connect_uri("${server.exportUri(`v%3Fattachment%3D${uuid}.TRY`)}".replace("TRY", str(attempt)))
    return h
def ends(h):
    try:
        h.pread(1, 0)
        return False
    except nbd.Error:
        return True
hs = [open(a) for a in ${JSON.stringify(attempts)}]
${then}`;
    expect(await python(script([1, 1], "print([ends(h) for h in hs])"))).toMatchObject({
      stdout: "[False, False]\n",
    });
    expect(await python(script([2, 3, 3], "print([ends(h) for h in hs])"))).toMatchObject({
      stdout: "[True, False, False]\n",
    });
    const older = await python(script([2], "print('in')"));
    expect(older.stdout).toBe("");
    expect(older.stderr).toMatch(/attempt 3 of this attachment has taken over|ECONNRESET|policy/i);
    expect(await server.stop()).toBe(0);
  });
});

describe("bad days", () => {
  it("an origin that was changed meanwhile is refused, until it is accepted", async () => {
    await sandbox.init("v", "16M", "64M");
    const server = await sandbox.serve("v");
    await sandbox.must("snapshot", "v@one");
    expect(await server.stop()).toBe(0);
    writeFileSync(sandbox.path("v.img"), "x", { flag: "r+" });
    // A look shows what the store holds all the same.
    expect(await sandbox.json("list", "v")).toMatchObject([{ snapshots: [{ name: "one" }] }]);
    for (const args of [
      ["snapshot", "v@two"],
      ["serve", "v"],
    ]) {
      const { status, stderr } = await sandbox.csnap(...args);
      expect([args, status, stderr.trimEnd().split("\n")]).toEqual([
        args,
        1,
        [expect.stringMatching(/^csnap: v: .*--accept-origin/)],
      ]);
    }
    const accepted = await sandbox.serve("v", "--accept-origin");
    expect(await sandbox.json("list", "v")).toMatchObject([{ snapshots: [{ name: "one", suspect: true }] }]);
    expect(await accepted.stop()).toBe(0);
  });

  it("stores that are none, cut off, or another's give one line", async () => {
    await sandbox.init("v", "16M", "64M");
    await sandbox.init("w", "16M", "64M");
    const definition = readFileSync(sandbox.path("state/volumes/v.toml"), "utf8");
    const lines = async (...args: string[]) => {
      const { status, stderr } = await sandbox.csnap(...args);
      expect(status).toBe(1);
      const all = stderr.trimEnd().split("\n");
      expect(all).toHaveLength(1);
      return all[0];
    };
    writeFileSync(sandbox.path("state/volumes/v.toml"), definition.replace("v.store", "w.store"));
    expect(await lines("serve", "v")).toMatch(/^csnap: v: .*(another volume|origin)/);
    writeFileSync(sandbox.path("state/volumes/v.toml"), definition);
    truncateSync(sandbox.path("v.store"), 32 << 20);
    expect(await lines("list", "v")).toMatch(/^csnap: v: .*v\.store/);
    writeFileSync(sandbox.path("v.store"), Buffer.alloc(1 << 20, 7));
    expect(await lines("serve", "v")).toMatch(/^csnap: v: .*v\.store/);
    const { status, stdout } = await sandbox.csnap("list", "--json");
    expect(status).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject([
      { volume: "w", state: "stopped" },
      { volume: "v", state: "unavailable" },
    ]);
  });

  it("a port or path that is taken is named, and the volume stays sound", async () => {
    await sandbox.init("v", "16M", "64M");
    await sandbox.init("w", "16M", "64M");
    const server = await sandbox.serve("v", "--listen", "127.0.0.1:0");
    const port = /:(\d+)\/$/.exec(
      (await sandbox.json<VolumeRecord>("status", "v")).server?.listeners[1] ?? "",
    )?.[1];
    for (const args of [
      ["--listen", `127.0.0.1:${port}`],
      ["--socket", sandbox.path("run/v.sock")],
      ["--metrics", `127.0.0.1:${port}`],
    ]) {
      const { status, stderr } = await sandbox.csnap("serve", "w", ...args);
      expect([args, status, stderr]).toEqual([
        args,
        1,
        expect.stringMatching(/^csnap: w: .*(in use|listens there)[^\n]*\n$/),
      ]);
    }
    expect(await sandbox.json("status", "w")).toMatchObject({ state: "stopped" });
    expect(await server.stop()).toBe(0);
  });

  it("a store that fills drops the snapshot that matters least, says so, and writes go on", async () => {
    await sandbox.init("v", "64M", "32M");
    const server = await sandbox.serve("v");
    const origin = server.exportUri("v");
    const MiB = 1 << 20;
    await write(origin, 1, 0, 40 * MiB);
    await sandbox.must("snapshot", "v@low", "--priority", "10");
    await sandbox.must("snapshot", "v@cheap", "--priority", "5");
    await write(origin, 2, 0, 12 * MiB);
    await sandbox.must("snapshot", "v@high", "--priority", "90");
    await write(origin, 3, 0, 12 * MiB);
    await sandbox.must("snapshot", "v@pinned", "--pin", "--priority", "0");
    await write(origin, 4, 20 * MiB, 8 * MiB);
    const [listed] = await sandbox.json<{ snapshots: SnapshotRecord[] }[]>("list", "v");
    expect(listed?.snapshots.map((snapshot) => snapshot.name)).toEqual(["high", "pinned"]);
    expect(server.log).toMatch(/snapshot cheap dropped.*\n(?:.*\n)*?.*snapshot low dropped/);
    expect(await readByte(server.exportUri("v@high"), 0)).toBe(2);
    expect(await readByte(server.exportUri("v@pinned"), 0)).toBe(3);
    expect(await readByte(server.exportUri("v@pinned"), 20 * MiB)).toBe(1);
    expect(await readByte(origin, 20 * MiB)).toBe(4);
    const { body } = await api("v", "GET", "/v1/status");
    expect(body).toMatchObject({ state: "serving" });
    expect(await server.stop()).toBe(0);
    expect(await sandbox.csnap("check", "v", "--data")).toMatchObject({ status: 0 });
  });
});

describe("moving and forgetting", () => {
  it("renames, removes and imports again, with the origin current", async () => {
    await sandbox.init("v", "16M", "64M");
    const server = await sandbox.serve("v");
    await sandbox.must("snapshot", "v@one");
    await write(server.exportUri("v"), 5, 1000, 2000);
    await server.kill();
    await sandbox.must("rename", "v", "w");
    expect(await sandbox.must("remove", "w")).toMatch(
      /^volume w is forgotten; the origin .* stays, the store .* stays\n$/,
    );
    expect(readFileSync(sandbox.path("v.img"))[1000]).toBe(5);
    expect(await sandbox.json("list")).toEqual([]);
    expect(await sandbox.json("import", sandbox.path("v.store"))).toMatchObject({
      volume: "v",
      origin: sandbox.path("v.img"),
    });
    expect(await sandbox.json("list", "v")).toMatchObject([{ snapshots: [{ name: "one" }] }]);
    const again = await sandbox.csnap("import", sandbox.path("v.store"), "--name", "other");
    expect(again.stderr).toMatch(/^csnap: this store is volume 'v' here already/);
    const taken = await sandbox.csnap(
      "init",
      "n",
      "--origin",
      sandbox.path("v.img"),
      "--store",
      sandbox.path("n.store"),
    );
    expect(taken.stderr).toMatch(/^csnap: origin .* is the origin of volume 'v' already/);
    expect(await sandbox.must("remove", "v", "--wipe-store", "--yes")).toMatch(/the store is destroyed\n$/);
    expect(existsSync(sandbox.path("v.store"))).toBe(false);
    expect(readFileSync(sandbox.path("v.img"))[1000]).toBe(5);
  });
});
