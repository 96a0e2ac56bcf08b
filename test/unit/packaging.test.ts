// What a package brings beside the command: systemd accepts the units, with the fstab lines that the
// README shows, and in the order that a shutdown needs; the man page says what the commands say.
import { execFileSync, spawnSync } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import tmp from "tmp";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { manPage } from "../../scripts/lib/man-page.mjs";
import { buildProgram } from "../../src/cli/program.js";
import { version } from "../../src/volume/version.js";

const root = join(import.meta.dirname, "../..");
const read = (path: string) => readFileSync(join(root, path), "utf8");
const generator = "/lib/systemd/system-generators/systemd-fstab-generator";

describe("systemd units", () => {
  const directory = tmp.dirSync({ prefix: "csnap-test-" }).name;
  afterAll(() => rmSync(directory, { recursive: true }));
  const units = readdirSync(join(root, "packaging/systemd"));

  /** The units, with a command that exists, and the mounts of the README's fstab lines. */
  beforeAll(() => {
    const program = process.execPath;
    for (const unit of units) {
      const text = read(`packaging/systemd/${unit}`).replace(/^(Exec\w+=-?)csnap /gm, `$1${program} `);
      expect(text).toContain(program);
      writeFileSync(join(directory, unit), text);
    }
    const lines = [...read("README.md").matchAll(/^\/dev\/nbd.* .*_netdev.*$/gm)].map(([line]) => line);
    expect(lines).toHaveLength(2);
    const fstab = join(directory, "fstab");
    writeFileSync(fstab, `${lines.join("\n")}\n`);
    const outputs = ["normal", "early", "late"].map((name) => join(directory, name));
    for (const output of outputs) mkdirSync(output);
    execFileSync(generator, outputs, { env: { ...process.env, SYSTEMD_FSTAB: fstab } });
    for (const name of readdirSync(join(directory, "normal")).filter((entry) => entry.endsWith(".mount")))
      writeFileSync(join(directory, name), readFileSync(join(directory, "normal", name)));
  });

  /** What systemd has to say of these and of all that they pull in. */
  function verify(...names: string[]) {
    const { status, stdout, stderr } = spawnSync(
      "systemd-analyze",
      ["verify", "--man=no", ...names.map((name) => join(directory, name))],
      { env: { ...process.env, SYSTEMD_UNIT_PATH: `${directory}:` }, encoding: "utf8" },
    );
    return { status, said: stdout + stderr };
  }

  const silence = { status: 0, said: "" };

  it("are three, and systemd finds nothing wrong", () => {
    expect(units.sort()).toEqual(["csnap-agent.service", "csnap-attach@.service", "csnap-server@.service"]);
    for (const unit of units) expect(verify(unit)).toEqual(silence);
  });

  it("fit the README's fstab lines, a snapshot's name and all others of csnap included", () => {
    const mounts = readdirSync(directory).filter((name) => name.endsWith(".mount"));
    expect(mounts).toHaveLength(2);
    expect(verify(...mounts)).toEqual(silence);
    expect(mounts.map((mount) => directives(mount).get("Requires")?.[0]).sort()).toEqual([
      "csnap-attach@disk1.service",
      "csnap-attach@disk1@monday.service",
    ]);
    // Instances that are files of their own confuse systemd-analyze where a name has a colon.
    for (const name of ["Disk.1:a_b-c", "my-disk@mon-1", `${"x".repeat(100)}@y`]) {
      const needs = `csnap-attach@${name}.service csnap-server@${name}.service`;
      writeFileSync(
        join(directory, "needs.service"),
        `[Unit]\nRequires=${needs}\n[Service]\nExecStart=${process.execPath}\n`,
      );
      expect(verify("needs.service")).toEqual(silence);
    }
  });

  it("would be told of a directive that does not exist", () => {
    const text = readFileSync(join(directory, "csnap-agent.service"), "utf8");
    writeFileSync(join(directory, "wrong.service"), text.replace("RestartSec=", "RestartSecs="));
    expect(verify("wrong.service").said).toMatch(/Unknown key name 'RestartSecs'|Unknown key 'RestartSecs'/);
  });

  /** Every value of every key; lists are split. */
  function directives(unit: string): Map<string, string[]> {
    const found = new Map<string, string[]>();
    for (const line of readFileSync(join(directory, unit), "utf8").split("\n")) {
      const [, key = "", value = ""] = /^(\w+)=(.*)$/.exec(line) ?? [];
      if (key !== "") found.set(key, [...(found.get(key) ?? []), ...value.split(" ")]);
    }
    return found;
  }

  const [agent, attach, server] = ["csnap-agent.service", "csnap-attach@.service", "csnap-server@.service"];

  it("stop in the order umount, detach, agent, server, network", () => {
    const mount = directives("mnt-disk1.mount");
    expect(mount.get("After")).toContain("csnap-attach@disk1.service");
    // _netdev makes systemd order a mount behind remote-fs-pre.target.
    expect(mount.get("Options")?.[0]?.split(",")).toContain("_netdev");
    expect(directives(attach).get("After")).toEqual(["csnap-agent.service", "csnap-server@%i.service"]);
    expect(directives(server).get("Before")).toContain("csnap-agent.service");
    for (const unit of [agent, server])
      expect(directives(unit).get("After")).toContain("network-online.target");
    for (const unit of units.filter((name) => name.startsWith("csnap-"))) {
      expect(directives(unit).get("Before")).toContain("remote-fs-pre.target");
      // Without the default dependencies they would not be stopped at shutdown at all.
      expect(directives(unit).get("Conflicts")).toEqual(["shutdown.target"]);
      expect(directives(unit).get("Before")).toContain("shutdown.target");
    }
  });

  it("do not detach when the agent is stopped or restarted", () => {
    for (const key of ["Requires", "BindsTo", "PartOf", "Requisite"])
      for (const unit of units)
        expect([unit, key, directives(unit).get(key)]).toEqual([unit, key, undefined]);
    expect(directives(agent).get("KillMode")).toEqual(["process"]);
    expect(directives(agent).get("ExecStop")).toBeUndefined();
    expect(directives(agent).get("Restart")).toEqual(["always"]);
  });

  it("keep server and agent out of the swap and from the killer of processes", () => {
    for (const unit of [agent, server]) {
      const found = directives(unit);
      expect(["OOMScoreAdjust", "LimitMEMLOCK", "MemorySwapMax"].map((key) => found.get(key)?.[0])).toEqual([
        "-1000",
        "infinity",
        "0",
      ]);
    }
  });
});

describe("the man page", () => {
  const page = "packaging/man/csnap.1";

  it("says what the commands say (else run scripts/lib/man-page.mjs)", () => {
    expect(read(page)).toBe(manPage(buildProgram(), version));
  });

  it("names every command", () => {
    const names = buildProgram().commands.map((command) => command.name());
    expect(names.length).toBeGreaterThan(15);
    for (const name of names) expect(read(page)).toContain(`.SS "csnap ${name} `.replace(/ $/, ""));
  });

  it("is roff without a warning", () => {
    const env = { ...process.env, LC_ALL: "C.UTF-8", MANROFFOPT: "-ww", MANWIDTH: "80" };
    const { status, stdout, stderr } = spawnSync("man", ["--warnings", "-l", join(root, page)], {
      env,
      encoding: "utf8",
    });
    expect([status, stderr]).toEqual([0, ""]);
    expect(stdout).toMatch(/^CSNAP\(1\) /);
    expect(stdout).toContain("--accept-loss");
  });
});
