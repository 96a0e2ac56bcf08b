// Settings in TOML: /etc/csnap/csnap.toml or --config, and the same [serve] table in a volume's
// definition. Keys are the long options of the commands, values are written as on the command line.
//
// S1 An unknown key or a value of the wrong type is refused with file and key, never ignored.
import { readFileSync } from "node:fs";
import { parse, TomlError } from "smol-toml";
import type { Durability, OnFull } from "../native.js";
import { codeOf, oneLine, systemText, usageError } from "./errors.js";

export const defaultConfigPath = "/etc/csnap/csnap.toml";

export type TlsMode = "allow" | "require";

/** What `csnap serve` takes, from options, definition and csnap.toml alike. */
export interface ServeSettings {
  readonly listen?: readonly string[];
  readonly socket?: string;
  readonly durability?: Durability;
  readonly metrics?: string;
  readonly tlsCert?: string;
  readonly tlsKey?: string;
  readonly tlsCa?: string;
  readonly tlsPsk?: string;
  readonly tls?: TlsMode;
  readonly allow?: readonly string[];
  readonly plain?: boolean;
}

export interface InitSettings {
  readonly chunkSize?: string;
  readonly onFull?: OnFull;
}

export interface Settings {
  readonly stateDir?: string;
  readonly runDir?: string;
  readonly broker?: string;
  readonly init: InitSettings;
  readonly serve: ServeSettings;
}

export type TomlTable = Readonly<Record<string, unknown>>;

/** `path` undefined: the default file, which may be missing; a named one may not. */
export function loadSettings(path: string | undefined): Settings {
  const file = path ?? defaultConfigPath;
  const text = readIfThere(file, path !== undefined);
  return text === undefined ? { init: {}, serve: {} } : parseSettings(text, file);
}

export function parseSettings(text: string, file: string): Settings {
  const reader = new TableReader(parseToml(text, file), file, "");
  const stateDir = reader.text("state-dir");
  const runDir = reader.text("run-dir");
  const broker = reader.text("broker");
  const init = readInit(reader.table("init"));
  const serve = readServe(reader.table("serve"));
  reader.refuseRest();
  return {
    ...(stateDir !== undefined && { stateDir }),
    ...(runDir !== undefined && { runDir }),
    ...(broker !== undefined && { broker }),
    init,
    serve,
  };
}

function readInit(reader: TableReader): InitSettings {
  const chunkSize = reader.text("chunk-size");
  const onFull = reader.choice("on-full", ["drop-snapshots", "refuse-writes"]);
  reader.refuseRest();
  return { ...(chunkSize !== undefined && { chunkSize }), ...(onFull !== undefined && { onFull }) };
}

export function readServe(reader: TableReader): ServeSettings {
  const settings = {
    listen: reader.texts("listen"),
    socket: reader.text("socket"),
    durability: reader.choice("durability", ["flush", "sync"]),
    metrics: reader.text("metrics"),
    tlsCert: reader.text("tls-cert"),
    tlsKey: reader.text("tls-key"),
    tlsCa: reader.text("tls-ca"),
    tlsPsk: reader.text("tls-psk"),
    tls: reader.choice("tls", ["allow", "require"]),
    allow: reader.texts("allow"),
    plain: reader.flag("plain"),
  };
  reader.refuseRest();
  return withoutUndefined(settings);
}

type Defined<T> = { [K in keyof T]?: Exclude<T[K], undefined> };

function withoutUndefined<T extends object>(value: T): Defined<T> {
  return Object.fromEntries(Object.entries(value).filter(([, v]) => v !== undefined)) as Defined<T>;
}

/** Later ones win, key by key. */
export function mergeServe(...layers: readonly ServeSettings[]): ServeSettings {
  return Object.assign({}, ...layers.map(withoutUndefined)) as ServeSettings;
}

export function parseToml(text: string, file: string): TomlTable {
  try {
    return parse(text);
  } catch (error) {
    if (!(error instanceof TomlError)) throw error;
    const reason = oneLine(error.message.split("\n")[0] ?? "").replace(/^Invalid TOML document: /, "");
    throw usageError(`${file}:${error.line}: not valid TOML: ${reason}: correct the line`);
  }
}

function readIfThere(file: string, needed: boolean): string | undefined {
  try {
    return readFileSync(file, "utf8");
  } catch (error) {
    if (!needed && codeOf(error) === "NOT_FOUND") return undefined;
    throw usageError(`settings can't be read: ${systemText(error)}: name another file with --config`);
  }
}

/** Takes typed values out of a TOML table and says what is left over (S1). */
export class TableReader {
  private readonly rest: Set<string>;

  constructor(
    private readonly values: TomlTable,
    private readonly file: string,
    private readonly prefix: string,
  ) {
    this.rest = new Set(Object.keys(values));
  }

  text(key: string): string | undefined {
    return this.take(key, "a text in quotes", (value): value is string => typeof value === "string");
  }

  flag(key: string): boolean | undefined {
    return this.take(key, "true or false", (value): value is boolean => typeof value === "boolean");
  }

  texts(key: string): readonly string[] | undefined {
    return this.take(
      key,
      "a list of texts in quotes",
      (value): value is string[] => Array.isArray(value) && value.every((item) => typeof item === "string"),
    );
  }

  choice<T extends string>(key: string, choices: readonly T[]): T | undefined {
    return this.take(
      key,
      `one of ${choices.map((choice) => `"${choice}"`).join(", ")}`,
      (value): value is T => choices.some((choice) => choice === value),
    );
  }

  table(key: string): TableReader {
    const value = this.take(
      key,
      "a table",
      (found): found is TomlTable => typeof found === "object" && found !== null && !Array.isArray(found),
    );
    return new TableReader(value ?? {}, this.file, `${this.prefix}${key}.`);
  }

  refuseRest(): void {
    for (const key of this.rest) {
      throw usageError(`${this.file}: unknown key '${this.prefix}${key}': remove it or correct its spelling`);
    }
  }

  private take<T>(key: string, expected: string, test: (value: unknown) => value is T): T | undefined {
    this.rest.delete(key);
    const value = this.values[key];
    if (value === undefined) return undefined;
    if (!test(value)) throw usageError(`${this.file}: '${this.prefix}${key}' must be ${expected}`);
    return value;
  }
}
