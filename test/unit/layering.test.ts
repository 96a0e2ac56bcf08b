// Imports point one way, in both languages (README, "Layout"). A layer may use those before it.
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";

const root = join(import.meta.dirname, "../..");

/** A layer uses itself and what stands before it; layers of one step do not know each other. */
const NATIVE_STEPS = [["base"], ["io"], ["store"], ["volume"], ["nbd", "netlink"], ["addon"]];
const TYPESCRIPT_STEPS = [
  ["native.ts"],
  ["volume"],
  ["nbd", "broker"],
  ["control", "transfer"],
  ["server", "agent"],
  ["cli"],
];

interface Import {
  readonly file: string;
  readonly line: number;
  readonly from: string;
  readonly to: string;
}

function filesBelow(directory: string, ending: RegExp): string[] {
  return readdirSync(join(root, directory), { recursive: true, encoding: "utf8" })
    .filter((path) => ending.test(path))
    .map((path) => join(directory, path))
    .sort();
}

/** Every match of `pattern` (first group: the imported path) in the files, `resolve`d to a layer. */
function imports(files: string[], pattern: RegExp, layer: (file: string, path: string) => string): Import[] {
  return files.flatMap((file) =>
    readFileSync(join(root, file), "utf8")
      .split("\n")
      .flatMap((text, index) => {
        const path = pattern.exec(text)?.[1];
        if (path === undefined) return [];
        return [{ file, line: index + 1, from: file.split("/")[1] ?? "", to: layer(file, path) }];
      }),
  );
}

function wrong(found: Import[], steps: string[][]): string[] {
  const step = (name: string) => steps.findIndex((names) => names.includes(name));
  return found
    .filter(({ from, to }) => from !== to && (step(to) < 0 || step(from) < 0 || step(to) >= step(from)))
    .map(({ file, line, to }) => `${file}:${line} must not use ${to}`);
}

describe("native", () => {
  const files = filesBelow("native", /\.(h|cc)$/);
  const product = files.filter(
    (file) => !/^native\/(testing|bench)\/|_(test|fuzz)(_\w+)?\.(h|cc)$/.test(file),
  );
  const found = imports(product, /^\s*#include "([\w./]+)"/, (_file, path) => path.split("/")[0] ?? "");

  it("includes only what stands below", () => {
    expect(found.length).toBeGreaterThan(20);
    expect(wrong(found, NATIVE_STEPS)).toEqual([]);
  });

  it("knows Node in one directory only", () => {
    const users = files.filter((file) =>
      /#include\s*[<"](napi\.h|node_api\.h|node\.h|uv\.h|js_native_api)/.test(
        readFileSync(join(root, file), "utf8"),
      ),
    );
    expect(users.length).toBeGreaterThan(0);
    expect(users.filter((file) => !file.startsWith("native/addon/"))).toEqual([]);
  });
});

describe("TypeScript", () => {
  const files = filesBelow("src", /\.ts$/);

  it("imports only what stands below", () => {
    const pattern = /(?:^(?:import|export)\b.*|^\} )from ["'](\.[^"']*)["']|\bimport\(["'](\.[^"']*)["']\)/;
    const found = imports(files, pattern, (file, path) => {
      const target = join(file, "..", path);
      expect(target.startsWith("src/"), `${file} leaves src: ${path}`).toBe(true);
      return target === "src/native.js" ? "native.ts" : (target.split("/")[1] ?? "");
    });
    expect(found.length).toBeGreaterThan(20);
    expect(wrong(found, TYPESCRIPT_STEPS)).toEqual([]);
  });

  /** RT1 of src/broker/runtime.ts: these are where the outside world begins. */
  const ADAPTERS = [
    "clock.ts",
    "directory_watch.ts",
    "etcd_client.ts",
    "etcd_records.ts",
    "etcd_watch.ts",
    "fence.ts",
    "file_records.ts",
    "process_identity.ts",
    "renewal_thread.ts",
    "renewal_worker.ts",
    "runtime.ts",
  ].map((name) => `src/broker/${name}`);
  const TIME_OR_CHANCE =
    /(?<![.\w])(setTimeout|setInterval|setImmediate|queueMicrotask|performance\.|Date\.now|new Date\(\)|Math\.random|random(UUID|Bytes|Int)|process\.(hrtime|nextTick)|AbortSignal\.timeout)|node:timers/;

  it("asks for time and chance by the runtime only, where it must run in virtual time", () => {
    const inVirtualTime = files.filter(
      (file) =>
        (file.startsWith("src/broker/") && !ADAPTERS.includes(file)) ||
        ["src/agent/servers.ts", "src/server/term.ts"].includes(file),
    );
    const direct = inVirtualTime.flatMap((file) =>
      readFileSync(join(root, file), "utf8")
        .split("\n")
        .flatMap((text, index) => {
          const found = TIME_OR_CHANCE.exec(text)?.[0];
          return found === undefined ? [] : [`${file}:${index + 1}: ${found}`];
        }),
    );
    expect(inVirtualTime.length).toBeGreaterThan(20);
    expect(direct).toEqual([]);
  });

  it("loads the addon in native.ts only", () => {
    const users = files.filter((file) => /\.node\b['"]/.test(readFileSync(join(root, file), "utf8")));
    expect(users).toEqual(["src/native.ts"]);
  });
});
