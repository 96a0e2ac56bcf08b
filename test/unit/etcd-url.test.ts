/** Broker URLs of etcd: what they say, and the one line for what they can't. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import tmp from "tmp";
import { afterAll, describe, expect, it } from "vitest";
import { parseEtcdUrl } from "../../src/broker/etcd_url.js";

const directory = tmp.dirSync({ prefix: "csnap-etcd-url-", unsafeCleanup: true });
const file = join(directory.name, "text");
writeFileSync(file, "content\n");
afterAll(() => directory.removeCallback());

describe("etcd URLs", () => {
  it("name endpoints, with the usual port", () => {
    expect(parseEtcdUrl("etcd://127.0.0.1:2380,localhost,[::1]:99").endpoints).toEqual([
      { host: "127.0.0.1", port: 2380 },
      { host: "localhost", port: 2379 },
      { host: "::1", port: 99 },
    ]);
  });

  it("take TLS, a user, a prefix", () => {
    const url = `etcd://a,b/?ca=${file}&cert=${file}&key=${file}&user=u&password-file=${file}&prefix=/x/y`;
    expect(parseEtcdUrl(url)).toEqual({
      endpoints: [
        { host: "a", port: 2379 },
        { host: "b", port: 2379 },
      ],
      prefix: "/x/y",
      user: { name: "u", password: "content" },
      tls: { ca: "content\n", cert: "content\n", key: "content\n" },
      timing: { grantMs: 3500, renewMs: 700 },
    });
    expect(parseEtcdUrl("etcd://a?tls=1").tls).toEqual({});
    expect(parseEtcdUrl("etcd://a?insecure=1").tls).toBeUndefined();
    expect(parseEtcdUrl("etcd://a?tls=1&grant=10").timing).toEqual({ grantMs: 10_000, renewMs: 2000 });
  });

  it.each([
    ["etcd://", "is not like etcd://"],
    ["etcd:host", "is not like etcd://"],
    ["etcd://a:0?tls=1", "endpoint 'a:0'"],
    ["etcd://a:70000?tls=1", "endpoint 'a:70000'"],
    ["etcd://a,,b?tls=1", "endpoint ''"],
    ["etcd://a", "without TLS"],
    ["etcd://localhost,a", "would talk to a without TLS"],
    ["etcd://localhost?grant=1.9", "grant '1.9'"],
    ["etcd://localhost?grant=31", "grant '31'"],
    ["etcd://localhost?grant=4s", "grant '4s'"],
    ["etcd://localhost?colour=red", "option 'colour'"],
    ["etcd://localhost?prefix=no-slash", "prefix 'no-slash'"],
    ["etcd://localhost?prefix=/a/", "prefix '/a/'"],
    [`etcd://a?cert=${file}`, "both cert and key"],
    ["etcd://localhost?user=u", "both user and password-file"],
    [`etcd://localhost?password-file=${file}`, "both user and password-file"],
    ["etcd://a?ca=/nowhere/ca.pem", "/nowhere/ca.pem"],
  ])("'%s' is refused in one line", (url, words) => {
    try {
      parseEtcdUrl(url);
    } catch (error) {
      const { message, code } = error as Error & { code: string };
      expect(code).toBe("USAGE");
      expect(message).toContain(`broker URL '${url}'`);
      expect(message).toContain(words);
      expect(message).not.toContain("\n");
      return;
    }
    expect.fail("it was taken");
  });
});
