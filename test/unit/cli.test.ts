// The command as a stranger uses it who gets everything wrong: one line, the right exit status, and
// nothing written. Needs no addon: every refusal here comes before the core is asked.
import { existsSync, mkdirSync, readdirSync, truncateSync, writeFileSync } from "node:fs";
import { afterAll, describe, expect, it } from "vitest";
import { Sandbox } from "../support/csnap.js";

const sandbox = new Sandbox();
afterAll(() => sandbox.close());

const file = (name: string, bytes: number | Buffer) => {
  const path = sandbox.path(name);
  writeFileSync(path, typeof bytes === "number" ? "" : bytes);
  if (typeof bytes === "number") truncateSync(path, bytes);
  return path;
};

const origin = file("origin.img", 1 << 20);
const store = sandbox.path("new.store");

const commands = [
  "init",
  "serve",
  "snapshot",
  "list",
  "delete",
  "get",
  "set",
  "status",
  "attach",
  "detach",
  "devices",
  "events",
  "check",
  "dump",
  "import",
  "rename",
  "remove",
  "volume",
  "agent",
  "demo",
];

describe("help", () => {
  it.each(commands)("of %s ends with two examples", async (command) => {
    const { status, stdout, stderr } = await sandbox.csnap(command, "--help");
    expect([status, stderr]).toEqual([0, ""]);
    expect(stdout).toMatch(
      new RegExp(`\\nExamples:\\n  .*csnap .*${command}.*\\n  .*csnap .*${command}.*\\n$`),
    );
  });

  it("lists exactly the commands there are", async () => {
    const { stdout } = await sandbox.csnap("--help");
    const listed = [...stdout.matchAll(/^ {2}([a-z]+) .*/gm)].map(([, name]) => name);
    expect(listed.filter((name) => name !== "help" && name !== "csnap").sort()).toEqual([...commands].sort());
  });

  it("is what a bare csnap shows, on stderr", async () => {
    const { status, stdout, stderr } = await sandbox.csnap();
    expect([status, stdout]).toEqual([2, ""]);
    expect(stderr).toContain("Usage: csnap");
  });

  it("has the version beside it", async () => {
    const { status, stdout } = await sandbox.csnap("--version");
    expect(status).toBe(0);
    expect(stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
  });
});

/** Arguments, exit status, the line on stderr. */
const refusals: [args: string[], status: number, line: RegExp][] = [
  [["frobnicate"], 2, /^csnap: unknown command 'frobnicate': see `csnap --help`$/],
  [["lst"], 2, /^csnap: unknown command 'lst' \(Did you mean list\?\)/],
  [["list", "a", "b"], 2, /^csnap: too many arguments for 'list'.*see `csnap list --help`$/],
  [["list", "--frob"], 2, /^csnap: unknown option '--frob': see `csnap list --help`$/],
  [["list", "nope"], 1, /^csnap: no volume 'nope' is defined in .*csnap init/],
  [["list", "a@b"], 2, /^csnap: 'a@b' names a snapshot, but a volume is asked for/],
  [["status", "a b"], 2, /^csnap: volume name 'a b' is not allowed/],
  [["init", "v"], 2, /^csnap: required option '--origin <path>' not specified: see `csnap init --help`$/],
  [["init", "a/b", "--origin", origin, "--store", store], 2, /^csnap: volume name 'a\/b' is not allowed/],
  [
    ["init", "v", "--origin", "/nowhere/x", "--store", store],
    1,
    /^csnap: origin \/nowhere\/x does not exist: .*--size/,
  ],
  [
    ["init", "v", "--origin", "/tmp", "--store", store],
    1,
    /^csnap: origin \/tmp is a directory: name a disk image/,
  ],
  [
    ["init", "v", "--origin", "/dev/null", "--store", store],
    1,
    /^csnap: origin \/dev\/null is neither a file nor/,
  ],
  [
    ["init", "v", "--origin", file("tiny", 511), "--store", store],
    1,
    /has 511 bytes, less than one sector of 512/,
  ],
  [["init", "v", "--origin", origin, "--store", origin], 1, /^csnap: origin and store are the same, /],
  [
    ["init", "v", "--origin", origin, "--store", "/nowhere/s"],
    1,
    /the directory \/nowhere does not exist: make it first$/,
  ],
  [
    ["init", "v", "--origin", origin, "--store", file("precious", Buffer.from("data"))],
    1,
    /holds data already .*--force$/,
  ],
  [["init", "v", "--origin", origin, "--store", store, "--store-size", "7P"], 1, /needs 7\.00 PiB/],
  [
    ["init", "v", "--origin", origin, "--store", store, "--store-size", "1x"],
    2,
    /^csnap: --store-size '1x' is not a size/,
  ],
  [
    ["init", "v", "--origin", origin, "--store", store, "--chunk-size", "5000"],
    2,
    /power of two from 4k to 1M$/,
  ],
  [
    ["init", "v", "--origin", origin, "--store", store, "--on-full", "cry"],
    2,
    /drop-snapshots, refuse-writes/,
  ],
  [
    ["init", "v", "--origin", origin, "--store", store, "--size", "1M"],
    1,
    /exists already \(1\.00 MiB\): leave out --size/,
  ],
  [
    ["init", "v", "--origin", sandbox.path("n"), "--store", store, "--size", "5000"],
    2,
    /not a multiple of 4096: use 8k$/,
  ],
  [["snapshot", "v"], 2, /^csnap: 'v' names no snapshot: write VOLUME@NAME$/],
  [["snapshot", "v@a", "--priority", "101"], 2, /whole number from 0 to 100$/],
  [["snapshot", "v@a", "--label", "kind"], 2, /^csnap: label 'kind' is not K=V$/],
  [["snapshot", "v@a", "--freeze-limit", "3s"], 2, /says nothing without --freeze/],
  [
    ["snapshot", "v@a", "--freeze", "/x", "--freeze-limit", "soon"],
    2,
    /^csnap: --freeze-limit 'soon' is not a time/,
  ],
  [["delete", "v"], 2, /^csnap: 'v' is not a snapshot/],
  [["set", "v@a", "pin=maybe"], 2, /^csnap: pin 'maybe' is not allowed: it is on or off$/],
  [["set", "v", "pin=on"], 2, /belong to snapshots\)$/],
  [["serve", "v", "--durability", "maybe"], 2, /flush, sync/],
  [["events"], 1, /^csnap: no volume is being served: start `csnap serve VOLUME`$/],
  [["import", "/nowhere/s"], 1, /^csnap: store \/nowhere\/s does not exist: check the path$/],
  [["rename", "v", "w"], 1, /^csnap: no volume 'v' is defined/],
  [["remove", "v"], 1, /^csnap: no volume 'v' is defined/],
  [
    ["--config", "/nowhere.toml", "list"],
    2,
    /\/nowhere\.toml: there is no such file or directory: .*--config$/,
  ],
];

describe("a stranger", () => {
  it.each(refusals)("who says %j gets %d and one line", async (args, expected, line) => {
    const { status, stdout, stderr } = await sandbox.csnap(...args);
    expect(stderr.trimEnd().split("\n")).toEqual([expect.stringMatching(line)]);
    expect([status, stdout]).toEqual([expected, ""]);
    expect(stderr).not.toMatch(/\n\s+at /);
  });

  it("has written nothing by all that", () => {
    expect(existsSync(sandbox.path("state"))).toBe(false);
    expect(readdirSync(sandbox.directory).sort()).toEqual(["origin.img", "precious", "tiny"]);
  });

  it("without any volume gets an empty list and a hint", async () => {
    const { status, stdout, stderr } = await sandbox.csnap("list", "--json");
    expect([status, JSON.parse(stdout)]).toEqual([0, []]);
    expect(stderr).toMatch(/`csnap init` makes one/);
  });

  it("with a broken definition is told file and cause", async () => {
    mkdirSync(sandbox.path("other/volumes"), { recursive: true });
    writeFileSync(sandbox.path("other/volumes/bad.toml"), "uuid = 3\n");
    const { status, stderr } = await sandbox.csnap("--state-dir", sandbox.path("other"), "status", "bad");
    expect([status, stderr]).toEqual([
      2,
      `csnap: ${sandbox.path("other/volumes/bad.toml")}: 'uuid' must be a text in quotes\n`,
    ]);
  });
});

const uuid = "6f1c4d8e-0d2b-4a55-9a3e-3f6d0f2b7a11";

describe("serve", () => {
  it.each([
    [["--listen", "0.0.0.0:1"], /would offer v to the network without TLS: .*--plain/],
    [["--listen", "[::]:1"], /would offer v to the network without TLS/],
    [["--listen", "somewhere:99999"], /'somewhere:99999' is no address; write HOST:PORT/],
    [["--tls", "require"], /^csnap: --tls require needs --tls-cert and --tls-key, or --tls-psk$/],
    [["--tls-cert", "/nowhere.pem"], /--tls-cert and --tls-key belong together/],
    [["--tls-psk", "/nowhere.psk"], /cannot read --tls-psk '\/nowhere\.psk'/],
    [["--allow", "host1"], /--allow 'host1': it names no client/],
    [["--metrics", "x:y:z"], /'x:y:z' is no address/],
    [["--socket", `/${"x".repeat(200)}`], /socket path .* has 201 bytes, and Linux allows 107/],
  ])("%j is refused before anything is opened", async (args, line) => {
    mkdirSync(sandbox.path("state2/volumes"), { recursive: true });
    const definition = `uuid = "${uuid}"\norigin = "${origin}"\nstore = "${store}"\n`;
    writeFileSync(sandbox.path("state2/volumes/v.toml"), definition);
    const { status, stderr } = await sandbox.csnap(
      "--state-dir",
      sandbox.path("state2"),
      "serve",
      "v",
      ...args,
    );
    expect(stderr.trimEnd().split("\n")).toEqual([expect.stringMatching(line)]);
    expect(status).toBe(2);
  });
});
