/**
 * The clients that people have, against origin and snapshot: libnbd's tools, its Python shell, qemu's tools, fio and
 * nbdfuse. What they wrote is compared by the raw client, so that no tool vouches for itself; what they write to a
 * snapshot must be refused, and the snapshot stays what it was.
 */
import { spawn } from "node:child_process";
import { randomInt } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { makeCertificates } from "../support/certificates.js";
import { collect, MAIN, type Outcome } from "../support/csnap.js";
import { expectBytes, KIB, MIB, pattern, ServedVolume } from "../support/server-volume.js";

const SIZE = 32 * MIB;
/** Data, and holes that are worth finding. */
const image = Buffer.alloc(SIZE);
pattern(1, 6 * MIB + 777).copy(image, 0);
pattern(2, 3 * MIB).copy(image, 16 * MIB);

const seed = Number(process.env.CSNAP_SEED ?? randomInt(2 ** 31));

let volume: ServedVolume;

beforeAll(async () => {
  volume = await ServedVolume.start({ size: `${SIZE}`, storeSize: "256M" });
  writeFileSync(volume.sandbox.path("image"), image);
  const client = await volume.open();
  for (const [start, end] of [
    [0, 7 * MIB],
    [16 * MIB, 19 * MIB],
  ] as const)
    await client.write(start, image.subarray(start, end));
  await volume.snapshot("kept");
  await client.disconnect();
});
afterAll(() => volume?.close());

const path = (name: string) => volume.sandbox.path(name);

async function run(command: string, ...args: string[]): Promise<Outcome> {
  const child = spawn(command, args, {
    // Debian's own Python has libnbd.
    env: { ...volume.sandbox.env, PATH: `/usr/bin:/bin:${process.env.PATH}` },
    cwd: volume.sandbox.directory,
    stdio: ["ignore", "pipe", "pipe"],
    timeout: 40_000,
    killSignal: "SIGKILL",
  });
  return collect(child);
}

/** Stdout of a command that must succeed. */
async function must(command: string, ...args: string[]): Promise<string> {
  const { status, signal, stdout, stderr } = await run(command, ...args);
  if (status !== 0) throw new Error(`${command} ${args.join(" ")}: ${status ?? signal}: ${stderr}${stdout}`);
  return stdout;
}

/** What a command that must fail of itself says. */
async function refused(command: string, ...args: string[]): Promise<string> {
  const { status, stdout, stderr } = await run(command, ...args);
  expect(status, `${command} ${args.join(" ")}: ${stdout}${stderr}`).toBeGreaterThan(0);
  return stdout + stderr;
}

const contentOf = async (name: string): Promise<Buffer> => {
  const client = await volume.open({ export: name });
  const content = await client.read(0, SIZE);
  await client.disconnect();
  return content;
};

/** Makes the origin `content`. */
async function reset(content: Buffer): Promise<void> {
  const client = await volume.open();
  await client.write(0, content);
  await client.disconnect();
}

describe.each(["unix", "tcp"] as const)("over %s", (transport) => {
  const uri = (name: string) =>
    transport === "unix" ? volume.server.exportUri(name) : `${volume.tcp.replace(/\/[^/]*$/, "")}/${name}`;
  const origin = () => uri("vol");
  const snapshot = () => uri("vol@kept");

  afterEach(async () => {
    expectBytes(await contentOf("vol@kept"), image);
  });

  it("nbdinfo", async () => {
    const { exports: listed } = JSON.parse(await must("nbdinfo", "--list", "--json", origin())) as {
      exports: { "export-name": string; is_read_only: boolean; "export-size": number }[];
    };
    const readOnly = Object.fromEntries(listed.map((found) => [found["export-name"], found.is_read_only]));
    expect(readOnly).toEqual({ vol: false, "vol@kept": true });
    expect(listed.map((found) => found["export-size"])).toEqual([SIZE, SIZE]);
    for (const can of ["multi-conn", "fua", "flush", "df", "cache"]) {
      await must("nbdinfo", "--can", can, origin());
      await must("nbdinfo", "--can", can, snapshot());
    }
    for (const can of ["trim", "zero", "fast-zero"]) {
      await must("nbdinfo", "--can", can, origin());
      expect((await run("nbdinfo", "--can", can, snapshot())).status).toBe(2);
    }
    await must("nbdinfo", "--is", "read-only", snapshot());
    expect((await run("nbdinfo", "--is", "read-only", origin())).status).toBe(2);
    const map = JSON.parse(await must("nbdinfo", "--map", "--json", snapshot())) as {
      offset: number;
      length: number;
      type: number;
    }[];
    expect(map.reduce((end, extent) => (extent.offset === end ? end + extent.length : -1), 0)).toBe(SIZE);
    for (const { offset, length, type } of map) {
      if ((type & 2) !== 0) expectBytes(image.subarray(offset, offset + length), Buffer.alloc(length));
    }
    expect(map.some(({ type }) => (type & 2) !== 0)).toBe(true);
    await must("nbdinfo", "--map", "--totals", origin());
  });

  it("nbdcopy, four connections, both directions", async () => {
    const options = ["--connections=4", "--requests=16"];
    await reset(pattern(3, SIZE));
    await must("nbdcopy", "--flush", ...options, path("image"), origin());
    expectBytes(await contentOf("vol"), image);
    for (const source of [origin(), snapshot()]) {
      await must("nbdcopy", ...options, source, path("copy"));
      expectBytes(readFileSync(path("copy")), image);
    }
    await must("nbdcopy", "--synchronous", snapshot(), path("copy"));
    expectBytes(readFileSync(path("copy")), image);
    expect(await refused("nbdcopy", ...options, path("image"), snapshot())).toMatch(/read.only/i);
  });

  it("nbdsh", async () => {
    const script = (lines: string[]) => lines.flatMap((line) => ["-c", line]);
    await must(
      "nbdsh",
      ...["--base-allocation", "-u", origin()],
      ...script([
        "data = bytes(i * 7 % 251 for i in range(100000))",
        "h.pwrite(data, 12345, nbd.CMD_FLAG_FUA)",
        "assert h.pread(100000, 12345) == data",
        "assert h.pread_structured(100000, 12345, lambda *a: 0, nbd.CMD_FLAG_DF) == data",
        "h.zero(5000, 20000, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE)",
        "assert h.pread(5000, 20000) == bytes(5000)",
        "h.zero(1 << 20, 8 << 20, nbd.CMD_FLAG_FAST_ZERO)",
        "h.trim(1 << 20, 8 << 20, nbd.CMD_FLAG_FUA)",
        "h.cache(1 << 20, 0)",
        "h.flush()",
        "seen = []",
        "h.block_status(1 << 20, 8 << 20, lambda context, offset, entries, error: seen.append((context, offset, list(entries))))",
        "assert seen == [('base:allocation', 8 << 20, [1 << 20, 3])], seen",
        "h.block_status(1 << 20, 8 << 20, lambda c, o, entries, e: seen.append(len(list(entries))), nbd.CMD_FLAG_REQ_ONE)",
        "assert seen[-1] == 2",
        "h.shutdown()",
      ]),
    );
    const expected = Buffer.from(Array.from({ length: 100_000 }, (_, i) => ((i * 7) % 251) & 0xff)).fill(
      0,
      20000 - 12345,
      25000 - 12345,
    );
    expectBytes((await contentOf("vol")).subarray(12345, 112345), expected);
    const denied = ["h.pwrite(b'x' * 512, 0)", "h.zero(512, 0)", "h.trim(512, 0)"];
    for (const write of denied) {
      expect(await refused("nbdsh", "-u", snapshot(), "-c", "h.set_strict_mode(0)", "-c", write)).toMatch(
        /EPERM|not permitted/i,
      );
    }
    await must("nbdsh", "-u", snapshot(), "-c", "h.flush(); assert len(h.pread(4096, 0)) == 4096");
  });

  it("qemu-img convert, compare and map", async () => {
    const raw = ["-f", "raw"];
    await reset(pattern(4, SIZE));
    await must("qemu-img", "convert", "-n", "-W", "-m", "8", ...raw, "-O", "raw", path("image"), origin());
    expectBytes(await contentOf("vol"), image);
    for (const source of [origin(), snapshot()]) {
      await must("qemu-img", "compare", ...raw, "-F", "raw", source, path("image"));
      await must("qemu-img", "convert", ...raw, "-O", "raw", source, path("copy"));
      expectBytes(readFileSync(path("copy")), image);
      const map = JSON.parse(await must("qemu-img", "map", "--output=json", ...raw, source)) as {
        start: number;
        length: number;
        zero: boolean;
      }[];
      expect(map.reduce((end, { start, length }) => (start === end ? end + length : -1), 0)).toBe(SIZE);
      for (const { start, length, zero } of map)
        if (zero) expectBytes(image.subarray(start, start + length), Buffer.alloc(length));
    }
    const convert = ["convert", "-n", ...raw, "-O", "raw", path("image"), snapshot()];
    expect(await refused("qemu-img", ...convert)).toMatch(/permission denied/i);
  });

  it("qemu-io", async () => {
    const commands = (...list: string[]) => list.flatMap((command) => ["-c", command]);
    const output = await must(
      "qemu-io",
      ...["-t", "writeback", "-f", "raw"],
      ...commands(
        "write -P 7 0 64k",
        "write -P 8 100k 1000k",
        "write -z -u 64k 36k",
        "write -z 200k 100k",
        "discard 300k 64k",
        "write -f -P 9 512 1024",
        "flush",
        "read -P 7 2k 62k",
        "read -P 9 512 1024",
        "read -P 0 64k 36k",
        "read -P 0 200k 100k",
        "read -P 8 364k 736k",
      ),
      origin(),
    );
    expect(output).not.toMatch(/pattern verification failed/i);
    const content = await contentOf("vol");
    expectBytes(content.subarray(512, 1536), Buffer.alloc(1024, 9));
    expectBytes(content.subarray(2 * KIB, 64 * KIB), Buffer.alloc(62 * KIB, 7));
    expect(await refused("qemu-io", "-f", "raw", "-c", "write -P 7 0 64k", snapshot())).toMatch(
      /permission denied/i,
    );
    await must("qemu-io", "-r", "-f", "raw", "-c", "read 0 1M", snapshot());
  });

  it(`fio verifies while snapshots come and go (seed ${seed})`, async () => {
    const fio = (name: string, target: string, ...more: string[]) =>
      run(
        "fio",
        ...[`--name=${name}`, "--ioengine=nbd", `--uri=${target}`, "--thread=1", "--bsrange=512-128k"],
        ...["--iodepth=64", `--randseed=${seed}`, "--verify_state_save=0", ...more],
      );
    const made: string[] = [];
    const keep = async (name: string) => {
      await volume.snapshot(name);
      made.push(name);
    };
    const remove = async () => volume.sandbox.must("delete", `vol@${made.pop()}`);
    await keep("watched");
    try {
      const watched = await contentOf("vol@watched");
      let over = false;
      let rounds = 0;
      const snapshots = (async () => {
        for (; !over; rounds++) {
          await keep(`${transport}${rounds}a`);
          await keep(`${transport}${rounds}b`);
          await remove();
          await remove();
        }
      })();
      const checked = ["--verify=crc32c", "--verify_fatal=1", "--fsync=32"];
      const load = await fio("load", origin(), "--rw=randrw", "--size=12m", "--offset=4m", ...checked);
      over = true;
      await snapshots;
      expect(load.status, load.stdout + load.stderr).toBe(0);
      expect(load.stdout).toMatch(/write:/);
      expect(rounds).toBeGreaterThan(0);
      expectBytes(await contentOf("vol@watched"), watched);
    } finally {
      while (made.length > 0) await remove();
    }
    const read = await fio("read", snapshot(), "--rw=randread", "--size=8m");
    expect(read.status, read.stdout + read.stderr).toBe(0);
    const denied = await fio("denied", snapshot(), "--rw=randwrite", "--size=1m");
    expect(denied.status, denied.stdout + denied.stderr).toBeGreaterThan(0);
  });

  it("nbdfuse", async () => {
    const use = async (
      target: string,
      body: (file: string) => void | Promise<void>,
      ...options: string[]
    ) => {
      const directory = path(`mount-${transport}`);
      mkdirSync(directory, { recursive: true });
      const pidFile = path("nbdfuse.pid");
      writeFileSync(pidFile, "");
      const file = join(directory, "nbd");
      const child = spawn("nbdfuse", [...options, "--pidfile", pidFile, file, target], {
        stdio: ["ignore", "ignore", "pipe"],
      });
      const ended = collect(child);
      let running = true;
      void ended.then(() => {
        running = false;
      });
      try {
        await expect
          .poll(() => !running || readFileSync(pidFile, "utf8") !== "", { timeout: 20_000, interval: 20 })
          .toBe(true);
        if (!running) throw new Error(`nbdfuse ended: ${(await ended).stderr}`);
        await body(file);
      } finally {
        await run("fusermount3", "-u", directory);
        if (running && !(await Promise.race([ended.then(() => true), limit(10_000)]))) child.kill("SIGKILL");
      }
      expect((await ended).status).toBe(0);
    };
    const data = pattern(5, 300 * KIB + 11);
    await use(origin(), async (file) => {
      await must("dd", "if=/dev/zero", `of=${file}`, "bs=64k", "count=16", "conv=notrunc,fsync");
      await writeAt(file, data, 3 * KIB + 5);
      await must("cmp", "-n", "1024", file, "/dev/zero");
    });
    const content = await contentOf("vol");
    expectBytes(content.subarray(3 * KIB + 5, 3 * KIB + 5 + data.length), data);
    expectBytes(content.subarray(0, 3 * KIB + 5), Buffer.alloc(3 * KIB + 5));
    await use(snapshot(), async (file) => {
      await must("cmp", file, path("image"));
      await refused("dd", "if=/dev/zero", `of=${file}`, "bs=4k", "count=1", "conv=notrunc,fsync");
    });
  });
});

const limit = (ms: number) => new Promise<false>((resolve) => setTimeout(() => resolve(false), ms).unref());

/** By a process of its own: a call into a FUSE mount would block the one that feeds nbdfuse's pipes. */
async function writeAt(file: string, data: Buffer, offset: number): Promise<void> {
  writeFileSync(path("data"), data);
  const to = [`of=${file}`, `seek=${offset}`, "oflag=seek_bytes", "conv=notrunc,fsync"];
  await must("dd", `if=${path("data")}`, "bs=128k", ...to);
}

describe("socket activation", () => {
  it("nbdinfo and nbdcopy start a server of their own", async () => {
    await volume.sandbox.init("own", "8M", "64M");
    const server = ["[", process.execPath, MAIN, "serve", "own", "]"];
    const info = JSON.parse(await must("nbdinfo", "--json", "--", ...server)) as {
      exports: { "export-name": string; "export-size": number }[];
    };
    expect(info.exports).toMatchObject([{ "export-size": 8 * MIB }]);
    await must("nbdinfo", "--list", "--", ...server);
    writeFileSync(path("eight"), image.subarray(0, 8 * MIB));
    await must("nbdcopy", "--flush", path("eight"), ...server);
    await must("nbdcopy", "--", ...server, path("copy"));
    expectBytes(readFileSync(path("copy")), image.subarray(0, 8 * MIB));
  });
});

describe.each(["psk", "certificates"])("TLS with %s", (kind) => {
  it("nbdcopy carries a whole disk both ways", async () => {
    const directory = path(`tls-${kind}`);
    mkdirSync(directory);
    const { psk } = makeCertificates(directory);
    const file = (name: string) => join(directory, name);
    const certificates = ["--tls-cert", file("server-cert.pem"), "--tls-key", file("server-key.pem")];
    const options = kind === "psk" ? ["--tls-psk", psk] : [...certificates, "--tls-ca", file("ca-cert.pem")];
    const secure = await ServedVolume.start({ size: `${SIZE}`, serve: options });
    try {
      const { port } = new URL(secure.tcp);
      const uri = (name: string) =>
        kind === "psk"
          ? `nbds://alice@localhost:${port}/${name}?tls-psk-file=${psk}`
          : `nbds://localhost:${port}/${name}?tls-certificates=${directory}`;
      await must("nbdcopy", "--connections=4", "--flush", path("image"), uri("vol"));
      await secure.sandbox.must("snapshot", "vol@sealed");
      const connect = ["h.set_uri_allow_local_file(True)", `h.connect_uri("${uri("vol")}")`];
      const scripts = [...connect, "h.pwrite(b'z' * 100000, 50)", "h.flush()"];
      await must("nbdsh", ...scripts.flatMap((script) => ["-c", script]));
      await must("nbdcopy", "--connections=4", uri("vol@sealed"), path("copy"));
      expectBytes(readFileSync(path("copy")), image);
      await must("nbdcopy", uri("vol"), path("copy"));
      expectBytes(readFileSync(path("copy")).subarray(50, 100_050), Buffer.alloc(100_000, "z"));
      await refused("nbdcopy", path("image"), uri("vol@sealed"));
      await refused("nbdinfo", `nbd://localhost:${port}/vol`);
    } finally {
      await secure.close();
    }
  });
});
