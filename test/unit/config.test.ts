// Settings, definitions and directories: what a file may say, what is refused, and with which line.
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import tmp from "tmp";
import { afterAll, describe, expect, it } from "vitest";
import {
  definitionPath,
  definitionText,
  listDefinitions,
  loadDefinition,
  parseDefinition,
  removeDefinition,
  renameDefinition,
  writeDefinition,
} from "../../src/volume/definition.js";
import { CsnapError } from "../../src/volume/errors.js";
import {
  checkSocketPath,
  controlSocketPath,
  findDirectories,
  nbdSocketPath,
} from "../../src/volume/paths.js";
import { mergeServe, parseSettings } from "../../src/volume/settings.js";

tmp.setGracefulCleanup();
const scratch = tmp.dirSync({ prefix: "csnap-config-", unsafeCleanup: true });
afterAll(() => scratch.removeCallback());

function refusal(action: () => unknown): string {
  try {
    action();
  } catch (error) {
    expect(error).toBeInstanceOf(CsnapError);
    return (error as CsnapError).message;
  }
  throw new Error("nothing was refused");
}

describe("settings", () => {
  it("take the long options of the commands as keys", () => {
    const text = `
state-dir = "/srv/csnap"
[init]
chunk-size = "64k"
[serve]
listen = ["127.0.0.1:10809"]
tls-cert = "cert.pem"
plain = true
`;
    expect(parseSettings(text, "x.toml")).toEqual({
      stateDir: "/srv/csnap",
      init: { chunkSize: "64k" },
      serve: { listen: ["127.0.0.1:10809"], tlsCert: "cert.pem", plain: true },
    });
  });

  it.each([
    ["sate-dir = '/x'", "x.toml: unknown key 'sate-dir': remove it or correct its spelling"],
    ["[serve]\nlisen = []", "x.toml: unknown key 'serve.lisen': remove it or correct its spelling"],
    ["[serve]\nlisten = 'a:1'", "x.toml: 'serve.listen' must be a list of texts in quotes"],
    ["[serve]\ndurability = 'maybe'", 'x.toml: \'serve.durability\' must be one of "flush", "sync"'],
    ["serve = 3", "x.toml: 'serve' must be a table"],
    ["[serve]\nplain = 'yes'", "x.toml: 'serve.plain' must be true or false"],
  ])("refuse %j with one line", (text, line) => {
    expect(refusal(() => parseSettings(text, "x.toml"))).toBe(line);
  });

  it("name the line where TOML is broken, without the parser's drawing", () => {
    const line = refusal(() => parseSettings("[serve]\nplain = = true\n", "x.toml"));
    expect(line).toMatch(/^x\.toml:2: not valid TOML: .+: correct the line$/);
    expect(line).not.toContain("\n");
  });

  it("give way key by key: command line over definition over settings", () => {
    const merged = mergeServe(
      { durability: "sync", listen: ["a"], plain: true },
      { listen: ["b"] },
      { socket: "s", durability: undefined as never },
    );
    expect(merged).toEqual({ durability: "sync", listen: ["b"], plain: true, socket: "s" });
  });
});

const uuid = "6f1c4d8e-0d2b-4a55-9a3e-3f6d0f2b7a11";

describe("definitions", () => {
  const state = join(scratch.name, "state");
  const disk = { name: "disk1", uuid, origin: "/data/a b.img", store: '/data/"q".store', serve: {} };

  it("come back as they were written", () => {
    const full = {
      ...disk,
      serve: { listen: ["[::1]:10809"], tlsPsk: "/etc/psk", durability: "sync" as const },
    };
    expect(parseDefinition(definitionText(full), "f", "disk1")).toEqual(full);
  });

  it("are written, listed, renamed and removed, and leave nothing else behind", () => {
    writeDefinition(state, disk);
    expect(loadDefinition(state, "disk1")).toEqual(disk);
    renameDefinition(state, "disk1", "mail");
    expect(listDefinitions(state)).toEqual(["mail"]);
    expect(loadDefinition(state, "mail")).toEqual({ ...disk, name: "mail" });
    expect(readdirSync(join(state, "volumes"))).toEqual(["mail.toml"]);
    removeDefinition(state, "mail");
    expect(readdirSync(join(state, "volumes"))).toEqual([]);
  });

  it("never replace a name that is taken, by writing or by renaming", () => {
    writeDefinition(state, disk);
    writeDefinition(state, { ...disk, name: "other", origin: "/other" });
    const before = readFileSync(definitionPath(state, "disk1"), "utf8");
    expect(refusal(() => writeDefinition(state, { ...disk, origin: "/x" }))).toMatch(
      /^volume 'disk1' is defined already/,
    );
    expect(refusal(() => renameDefinition(state, "other", "disk1"))).toMatch(
      /^volume 'disk1' is defined already/,
    );
    expect(readFileSync(definitionPath(state, "disk1"), "utf8")).toBe(before);
    expect(existsSync(definitionPath(state, "other"))).toBe(true);
  });

  it("are refused with the file's name if something is missing or unknown", () => {
    mkdirSync(join(state, "volumes"), { recursive: true });
    const file = definitionPath(state, "broken");
    writeFileSync(file, `uuid = "${uuid}"\norigin = "/x"\n`);
    expect(refusal(() => loadDefinition(state, "broken"))).toBe(`${file}: 'store' is missing: add it`);
    writeFileSync(file, `uuid = "${uuid}"\norigin = "/x"\nstore = "/y"\nsize = 3\n`);
    expect(refusal(() => loadDefinition(state, "broken"))).toMatch(/unknown key 'size'/);
    expect(refusal(() => loadDefinition(state, "nowhere"))).toMatch(
      /^no volume 'nowhere' is defined in .*csnap list/,
    );
  });
});

describe("directories", () => {
  const none = { env: {}, isRoot: true };

  it("follow cli.md for root and for others", () => {
    expect(findDirectories(none)).toEqual({ stateDir: "/var/lib/csnap", runDir: "/run/csnap" });
    expect(
      findDirectories({
        env: { XDG_STATE_HOME: "/h/s", XDG_RUNTIME_DIR: "/run/user/5", HOME: "/h" },
        isRoot: false,
      }),
    ).toEqual({ stateDir: "/h/s/csnap", runDir: "/run/user/5/csnap" });
    expect(findDirectories({ env: { HOME: "/h" }, isRoot: false })).toEqual({
      stateDir: "/h/.local/state/csnap",
      runDir: "/h/.local/state/csnap/run",
    });
  });

  it("let the option win over the environment, and that over the settings", () => {
    const env = { CSNAP_STATE_DIR: "/env", CSNAP_RUN_DIR: "/env-run" };
    const settings = { configStateDir: "/cfg", configRunDir: "/cfg-run" };
    expect(findDirectories({ ...none, ...settings })).toEqual({ stateDir: "/cfg", runDir: "/cfg-run" });
    expect(findDirectories({ ...none, ...settings, env })).toEqual({ stateDir: "/env", runDir: "/env-run" });
    expect(findDirectories({ ...none, ...settings, env, stateDirOption: "/opt" }).stateDir).toBe("/opt");
  });

  it("give no two volumes one socket", () => {
    const names = ["a", "a.control", "a.sock", "a.sock.control", "a.control.sock"];
    const paths = names.flatMap((name) => [nbdSocketPath("/r", name), controlSocketPath("/r", name)]);
    expect(new Set(paths).size).toBe(paths.length);
  });

  it("refuse a socket path that Linux would cut off", () => {
    expect(checkSocketPath(`/${"x".repeat(106)}`)).toHaveLength(107);
    expect(refusal(() => checkSocketPath(`/${"x".repeat(107)}`))).toMatch(/108 bytes.*CSNAP_RUN_DIR/);
  });
});
