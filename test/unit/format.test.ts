// native/store/FORMAT.md says what native/store/format.h says: every struct, field, constant and enum
// value of the header is in the document with the offset, size and number the compiler gives it.
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import tmp from "tmp";
import { describe, expect, it } from "vitest";

const root = join(import.meta.dirname, "../..");
const header = readFileSync(join(root, "native/store/format.h"), "utf8");
const document = readFileSync(join(root, "native/store/FORMAT.md"), "utf8");

interface Documented {
  /** 'Superblock' -> size of the struct */
  readonly structs: Map<string, number>;
  /** 'Superblock.crc' -> 'offset size' */
  readonly fields: Map<string, string>;
  /** 'kBlockMagic', 'RecordKind::DATA' -> value */
  readonly values: Map<string, string>;
}

/** Cells of a table row, code marks stripped. */
function cells(line: string): string[] {
  return line
    .split("|")
    .slice(1, -1)
    .map((cell) => cell.trim().replace(/^`(.*)`$/, "$1"));
}

function readDocument(text: string): Documented {
  const documented: Documented = { structs: new Map(), fields: new Map(), values: new Map() };
  let struct = "";
  let table = "";
  for (const line of text.split("\n")) {
    const heading = /^#+ (?:`(\w+)`, (\d+) bytes)?/.exec(line);
    if (heading !== null) {
      struct = heading[1] ?? "";
      if (struct !== "") documented.structs.set(struct, Number(heading[2]));
    }
    if (!line.startsWith("|")) {
      table = "";
      continue;
    }
    const [name = "", first = "", second = ""] = cells(line);
    if (table === "") table = name;
    else if (name.startsWith("---")) continue;
    else if (table === "field") documented.fields.set(`${struct}.${name}`, `${first} ${second}`);
    else if (table === "constant" || table === "enum value") {
      documented.values.set(name, first.startsWith("0x") ? String(Number(first)) : first);
    }
  }
  return documented;
}

/** Names that the header declares, found by its own layout: one declaration per line. */
function readHeader(text: string): { structs: string[]; fields: string[]; values: string[] } {
  const values: string[] = [];
  for (const [, name = "", array = ""] of text.matchAll(/^constexpr [\w ]+? (k\w+)(?:\[(\d*)\])? = /gm)) {
    if (array === "" || name === "kSuperblockMagic") values.push(name);
    else for (let i = 0; i < Number(array); i++) values.push(`${name}[${i}]`);
  }
  for (const [, name = "", body = ""] of text.matchAll(/^enum class (\w+)[^{]*\{([^}]*)\};/gm)) {
    for (const [, value = ""] of body.matchAll(/\b([A-Z_]+) = \d+/g)) values.push(`${name}::${value}`);
  }
  const structs: string[] = [];
  const fields: string[] = [];
  for (const [, struct = "", body = ""] of text.matchAll(/^struct (\w+) \{\n(.*?)^\};/gms)) {
    structs.push(struct);
    for (const [, field = ""] of body.matchAll(/^ +\w+ (\w+)(?:\[\w+\])?;/gm))
      fields.push(`${struct}.${field}`);
  }
  return { structs, fields, values };
}

/** What the compiler makes of every name in the header. */
function compile(declared: ReturnType<typeof readHeader>): Documented {
  const lines = declared.structs.map((name) => `std::printf("S ${name} %zu\\n", sizeof(${name}));`);
  for (const field of declared.fields) {
    const [struct, name] = field.split(".");
    lines.push(
      `std::printf("F ${field} %zu %zu\\n", offsetof(${struct}, ${name}), sizeof(${struct}::${name}));`,
    );
  }
  for (const name of declared.values) {
    lines.push(
      name === "kSuperblockMagic"
        ? `std::printf("V ${name} %.8s\\n", ${name});`
        : `std::printf("V ${name} %llu\\n", static_cast<unsigned long long>(${name}));`,
    );
  }
  const work = tmp.dirSync({ prefix: "csnap-format", unsafeCleanup: true });
  try {
    const source = join(work.name, "layout.cc");
    const program = join(work.name, "layout");
    writeFileSync(
      source,
      `#include <cstdio>\n#include "store/format.h"\nusing namespace csnap::format;\nint main() {\n${lines.join("\n")}\n}\n`,
    );
    execFileSync("g++", ["-std=c++20", "-I", join(root, "native"), "-o", program, source]);
    const compiled: Documented = { structs: new Map(), fields: new Map(), values: new Map() };
    for (const line of execFileSync(program, { encoding: "utf8" }).trim().split("\n")) {
      const [kind, name = "", ...rest] = line.split(" ");
      if (kind === "S") compiled.structs.set(name, Number(rest[0]));
      else if (kind === "F") compiled.fields.set(name, rest.join(" "));
      else compiled.values.set(name, rest.join(" "));
    }
    return compiled;
  } finally {
    work.removeCallback();
  }
}

/** Where the fields of a struct leave a gap, overlap, or miss its end. */
function gaps(documented: Documented, struct: string): string[] {
  const found: string[] = [];
  let end = 0;
  for (const [name, place] of documented.fields) {
    if (!name.startsWith(`${struct}.`)) continue;
    const [offset = 0, size = 0] = place.split(" ").map(Number);
    if (offset !== end) found.push(`${name} starts at ${offset}, the field before it ends at ${end}`);
    end = offset + size;
  }
  if (end !== documented.structs.get(struct)) found.push(`${struct}'s last field ends at ${end}`);
  return found;
}

describe("FORMAT.md", () => {
  const documented = readDocument(document);
  const compiled = compile(readHeader(header));

  it("has every struct of format.h with its compiled size, and no other", () => {
    expect(compiled.structs.size).toBeGreaterThan(20);
    expect(Object.fromEntries(documented.structs)).toEqual(Object.fromEntries(compiled.structs));
  });

  it("has every field with its compiled offset and size, and no other", () => {
    expect(Object.fromEntries(documented.fields)).toEqual(Object.fromEntries(compiled.fields));
  });

  it("has every constant and enum value with its compiled value, and no other", () => {
    expect(Object.fromEntries(documented.values)).toEqual(Object.fromEntries(compiled.values));
  });

  it("accounts for every byte of every struct", () => {
    expect([...documented.structs.keys()].flatMap((struct) => gaps(documented, struct))).toEqual([]);
  });
});
