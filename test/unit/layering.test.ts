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

  it("loads the addon in native.ts only", () => {
    const users = files.filter((file) => /\.node\b['"]/.test(readFileSync(join(root, file), "utf8")));
    expect(users).toEqual(["src/native.ts"]);
  });
});
