// What a reader may rely on everywhere: tables that exist twice agree, rules that are named exist, files
// say what they are, and nothing of the machine they were written on is left in them.
import { execFileSync } from "node:child_process";
import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { native } from "../../src/native.js";

const root = join(import.meta.dirname, "../..");
const read = (file: string) => readFileSync(join(root, file), "utf8");

/** All files of the project as git sees them: tracked, and new but not ignored. */
const files = execFileSync("git", ["ls-files", "-z", "--cached", "--others", "--exclude-standard"], {
  cwd: root,
  encoding: "utf8",
})
  .split("\0")
  .filter((file) => file !== "" && statSync(join(root, file), { throwIfNoEntry: false })?.isFile() === true);

const sources = files.filter((file) => /^(native|src|test)\/.*\.(h|cc|ts)$/.test(file));
const scripts = files.filter(
  (file) => /^(scripts|\.ci|test|packaging)\//.test(file) && read(file).startsWith("#!"),
);
const texts = files.filter(
  (file) => /\.(h|cc|def|ts|mjs|json|md|sh|mk|gyp|yml|toml)$/.test(file) || scripts.includes(file),
);

/** "file:line: text" of every line that matches. */
function lines(among: string[], pattern: RegExp): string[] {
  return among.flatMap((file) =>
    read(file)
      .split("\n")
      .flatMap((line, index) => (pattern.test(line) ? [`${file}:${index + 1}: ${line.trim()}`] : [])),
  );
}

describe("error codes", () => {
  const table = [...read("native/base/error_codes.def").matchAll(/^X\((\w+), (\d+), "/gm)];

  it("are the same in error_codes.def and native.ts", () => {
    const union = /export type NativeErrorCode =([^;]*);/.exec(read("src/native.ts"))?.[1] ?? "";
    const names = [...union.matchAll(/["'](\w+)["']/g)].map(([, name]) => name);
    expect(names).toEqual(table.map(([, name]) => name));
  });

  it("have the table's values in the addon", () => {
    expect(native.errorCodes).toEqual(
      Object.fromEntries(table.map(([, name, value]) => [name, Number(value)])),
    );
  });

  it("have values that are used once", () => {
    const values = table.map(([, , value]) => Number(value));
    expect(values.length).toBeGreaterThan(0);
    expect(new Set(values).size).toBe(values.length);
    expect(values).not.toContain(0);
  });
});

describe("rules", () => {
  const known = new Set(
    [...read("README.md").matchAll(/^\| \*\*([WF]\d+)\*\* \|/gm)].map(([, rule]) => rule),
  );

  it("named anywhere are in the README's list", () => {
    expect(known.size).toBe(18);
    const unknown = texts
      .filter((file) => file !== "package-lock.json")
      .flatMap((file) =>
        [...read(file).matchAll(/(?<![\w#/.])([WF]\d{1,2})(?!\w)/g)]
          .filter(([, rule = ""]) => !known.has(rule))
          .map(([, rule]) => `${file}: ${rule}`),
      );
    expect(unknown).toEqual([]);
  });
});

describe("files", () => {
  it("start by saying what they are", () => {
    const silent = [...sources, ...scripts].filter((file) => {
      const [first = "", second = ""] = read(file).split("\n");
      return !/^(\/\/|\/\*|#|""") ?\S|^\/\*\*?$/.test(first.startsWith("#!") ? second : first);
    });
    expect(silent).toEqual([]);
  });

  it("keep scripts executable", () => {
    expect(scripts.length).toBeGreaterThan(5);
    // What lies in a directory NAME.d is sent elsewhere by script NAME, and run there.
    const here = scripts.filter((file) => !/\.d\//.test(file));
    expect(here.filter((file) => (statSync(join(root, file)).mode & 0o111) !== 0o111)).toEqual([]);
  });

  it("leave nothing unfinished", () => {
    const self = "test/unit/tidy.test.ts";
    const marks = /\b(TODO|FIXME|XXX)\b|\b(it|test|describe)\.(only|skip|todo)\b|\bdoctest::(skip|may_fail)/;
    expect(
      lines(
        [...sources, ...scripts].filter((file) => file !== self),
        marks,
      ),
    ).toEqual([]);
  });

  it("name no path of a developer's machine", () => {
    // Put together here, so that this file does not name them either.
    const paths = [`${root}/`, ...["home", "Users"].map((parent) => `/${parent}/[A-Za-z]`), "file:" + "//"];
    expect(lines(texts, new RegExp(paths.join("|")))).toEqual([]);
  });

  it("record no download address in the lock file", () => {
    expect(lines(["package-lock.json"], /"resolved": "http/)).toEqual([]);
  });
});

describe("mutants", () => {
  it("each change one place of a file that is there", () => {
    const strays = files
      .filter((file) => /^native\/testing\/mutants\/.*\.json$/.test(file))
      .filter((mutant) => {
        const { file, find } = JSON.parse(read(mutant)) as { file: string; find: string | string[] };
        return !files.includes(file) || read(file).split([find].flat().join("\n")).length !== 2;
      });
    expect(strays).toEqual([]);
  });
});

describe("native code", () => {
  const native = sources.filter((file) => /^native\/.*\.(h|cc)$/.test(file));

  it("neither sleeps nor takes chance from outside the seed", () => {
    expect(lines(native, /\b(usleep|nanosleep|sleep_for|sleep_until|rand|srand|random_device)\s*\(/)).toEqual(
      [],
    );
  });

  it("owns memory through types", () => {
    const owned = native.flatMap((file) =>
      read(file)
        .split("\n")
        .map(
          (line, index) => [`${file}:${index + 1}`, line.replace(/\/\/.*|"(?:[^"\\]|\\.)*"/g, "")] as const,
        )
        .filter(([, code]) => /\bdelete(\[\])? \w|\b(malloc|calloc|realloc|free)\(/.test(code))
        // A deleter is what makes a type an owner.
        .filter(([, code]) => !code.includes("operator()")),
    );
    expect(owned).toEqual([]);
  });
});
