/** `--allow` rules and the URIs that serve prints. */
import { describe, expect, it } from "vitest";
import { accessMode, parseAccessRule, restrict } from "../../src/nbd/access.js";
import type { ClientInfo, ExportDirectory } from "../../src/nbd/exports.js";
import { nbdUri } from "../../src/nbd/uri.js";
import { exportNamed, fixedDirectory } from "../support/exports.js";

const unix: ClientInfo = { transport: "unix", address: "", local: true, tls: false };
const loopback: ClientInfo = { transport: "tcp", address: "127.0.0.1", local: true, tls: false };
const remote: ClientInfo = { transport: "tcp", address: "192.0.2.7", local: false, tls: false };
const host1: ClientInfo = {
  ...remote,
  tls: true,
  identity: { kind: "certificate", names: ["cn=host1", "dns=host1.lan", "ip=192.0.2.7"] },
};
const alice: ClientInfo = { ...remote, tls: true, identity: { kind: "psk", names: ["psk=alice"] } };

const rules = (...texts: string[]) => ({ rules: texts.map(parseAccessRule), openToNetwork: false });
const modes = (policy: ReturnType<typeof rules>, client: ClientInfo, ...names: string[]) =>
  names.map((name) => accessMode(policy, client, name));

describe("access rules", () => {
  it("without rules: local and identified clients do everything, others where the network is open", () => {
    const seen = [unix, loopback, remote, host1, alice].map((client) => accessMode(rules(), client, "vol"));
    expect(seen).toEqual(["rw", "rw", "none", "rw", "rw"]);
    expect(accessMode({ rules: [], openToNetwork: true }, remote, "vol")).toBe("rw");
    const anonymousTls: ClientInfo = { ...remote, tls: true };
    expect(accessMode(rules(), anonymousTls, "vol")).toBe("none");
  });

  it("with rules: what is not allowed does not exist, for local clients too", () => {
    const policy = rules("cn=host1=vol,vol@*:ro");
    expect(modes(policy, host1, "vol", "vol@a", "other")).toEqual(["ro", "ro", "none"]);
    for (const client of [unix, loopback, remote, alice])
      expect(accessMode(policy, client, "vol")).toBe("none");
  });

  it("a mode reaches the exports before it, and nothing means read-only", () => {
    expect(modes(rules("cn=host1=vol:rw,vol@*:ro"), host1, "vol", "vol@a")).toEqual(["rw", "ro"]);
    expect(modes(rules("cn=host1=a,b:rw,c"), host1, "a", "b", "c")).toEqual(["rw", "rw", "ro"]);
    expect(modes(rules("psk=alice=*:rw"), alice, "vol", "vol@a")).toEqual(["rw", "rw"]);
    expect(modes(rules("cn=host1=vol@a:ro:ro"), host1, "vol@a:ro")).toEqual(["ro"]);
  });

  it("rules add up and rw wins", () => {
    const policy = rules("anyone=*:ro", "local=vol:rw", "dns=*.lan=vol:rw");
    const seen = [unix, loopback, remote, host1].map((client) => accessMode(policy, client, "vol"));
    expect(seen).toEqual(["rw", "ro", "ro", "rw"]);
  });

  it("a name is matched whole and by its kind", () => {
    expect(accessMode(rules("cn=host=vol"), host1, "vol")).toBe("none");
    expect(accessMode(rules("psk=host1=vol"), host1, "vol")).toBe("none");
    expect(accessMode(rules("dns=host1xlan=vol"), host1, "vol")).toBe("none");
    expect(accessMode(rules("dns=host1.lan=vo"), host1, "vol")).toBe("none");
    const uri: ClientInfo = { ...remote, identity: { kind: "certificate", names: ["uri=spiffe://x/?a=b"] } };
    expect(accessMode(rules("uri=spiffe://x/?a=b=vol"), uri, "vol")).toBe("ro");
    expect(accessMode(rules("uri=spiffe://x/.a=b=vol"), uri, "vol")).toBe("none");
  });

  it.each([
    ["vol", "it names no client"],
    ["=vol", "it names no client"],
    ["host1=vol", "'host1' is no kind of client"],
    ["cn=vol", "'cn' needs a name"],
    ["cn==vol", "'cn' needs a name"],
    ["cn=host1=", "'' is no export name"],
    ["cn=host1=vol,", "'' is no export name"],
    ["cn=host1=vol:wo;", "'vol:wo;' is no export name"],
  ])("refuses '%s': %s", (text, why) => {
    expect(() => parseAccessRule(text)).toThrow(why);
    expect(() => parseAccessRule(text)).toThrow("for example cn=host1=vol:rw");
  });
});

describe("a restricted directory", () => {
  const policy = rules("cn=host1=vol,vol@*:ro", "psk=alice=*:rw");
  const directory = restrict(fixedDirectory(["vol", "vol@a"]), policy);
  const ask = (client: ClientInfo, name: string) => directory.resolve({ name, client, purpose: "use" });

  it("lists and resolves what the client may see, as it may use it", () => {
    expect(directory.list(alice).map((info) => [info.name, info.readOnly])).toEqual([
      ["vol", false],
      ["vol@a", true],
    ]);
    expect(directory.list(host1).map((info) => [info.name, info.readOnly])).toEqual([
      ["vol", true],
      ["vol@a", true],
    ]);
    expect(directory.list(unix)).toEqual([]);
    expect(ask(alice, "")).toEqual(exportNamed("vol"));
    expect(ask(host1, "")).toEqual({ ...exportNamed("vol"), readOnly: true });
  });

  it("hidden and missing look the same, also when the directory would refuse for another reason", () => {
    expect(ask(unix, "vol")).toEqual({ refused: "UNKNOWN", text: "no export named 'vol'" });
    const held: ExportDirectory = {
      list: () => [],
      resolve: () => ({ refused: "POLICY", text: "held by an attachment" }),
    };
    const strict = restrict(held, policy);
    expect(strict.resolve({ name: "vol", client: unix, purpose: "use" })).toMatchObject({
      refused: "UNKNOWN",
    });
    expect(strict.resolve({ name: "vol", client: alice, purpose: "use" })).toMatchObject({
      refused: "POLICY",
    });
  });
});

describe("URIs", () => {
  it("prints every kind of listener", () => {
    const tcp = { transport: "tcp", host: "127.0.0.1", port: 10809 } as const;
    expect(nbdUri(tcp, false, "vol@a")).toBe("nbd://127.0.0.1:10809/vol@a");
    expect(nbdUri({ ...tcp, host: "::1" }, true)).toBe("nbds://[::1]:10809/");
    const path = "/run/csnap/a b?é&.sock";
    expect(nbdUri({ transport: "unix", path }, false, "vol")).toBe(
      "nbd+unix:///vol?socket=/run/csnap/a%20b%3F%C3%A9%26.sock",
    );
    expect(nbdUri({ transport: "unix", path: "/s" }, true, "v%l")).toBe("nbds+unix:///v%25l?socket=/s");
  });
});
