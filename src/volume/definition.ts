// Volume definitions: `volumes/NAME.toml` in the state directory says where a volume's origin and
// store are and how it is served. Read by every command, written by init, import and rename.
//
// DE1 A definition appears, changes name and goes in one step: written to a temporary file, synced,
//     linked to its name (which fails if the name is taken), the directory synced.
// DE2 The file's name is the volume's name; nothing inside repeats it.
import { randomBytes } from "node:crypto";
import {
  closeSync,
  existsSync,
  fsyncSync,
  linkSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { stringify } from "smol-toml";
import { CsnapError, codeOf, systemText } from "./errors.js";
import { isName, isUuid } from "./names.js";
import { parseToml, readServe, type ServeSettings, TableReader } from "./settings.js";

export interface VolumeDefinition {
  readonly name: string;
  readonly uuid: string;
  readonly origin: string;
  readonly store: string;
  readonly serve: ServeSettings;
}

const suffix = ".toml";

export function definitionPath(stateDir: string, name: string): string {
  return join(stateDir, "volumes", `${name}${suffix}`);
}

/** Names of all defined volumes, sorted. */
export function listDefinitions(stateDir: string): string[] {
  const directory = join(stateDir, "volumes");
  if (!existsSync(directory)) return [];
  return reading(directory, () =>
    readdirSync(directory)
      .filter((file) => file.endsWith(suffix))
      .map((file) => file.slice(0, -suffix.length))
      .filter(isName)
      .sort(),
  );
}

export function loadDefinition(stateDir: string, name: string): VolumeDefinition {
  const file = definitionPath(stateDir, name);
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (error) {
    if (codeOf(error) !== "NOT_FOUND") throw unreadable(error);
    throw new CsnapError(
      "NOT_FOUND",
      `no volume '${name}' is defined in ${stateDir}: \`csnap list\` shows those that are, \`csnap init\` and \`csnap import\` define one`,
    );
  }
  return parseDefinition(text, file, name);
}

export function parseDefinition(text: string, file: string, name: string): VolumeDefinition {
  const reader = new TableReader(parseToml(text, file), file, "");
  const definition = {
    name,
    uuid: needed(reader.text("uuid"), "uuid", file),
    origin: needed(reader.text("origin"), "origin", file),
    store: needed(reader.text("store"), "store", file),
    serve: readServe(reader.table("serve")),
  };
  reader.refuseRest();
  if (!isUuid(definition.uuid)) {
    throw new CsnapError(
      "USAGE",
      `${file}: 'uuid' must be a uuid in lower case, as \`csnap status\` shows it`,
    );
  }
  return definition;
}

function needed(value: string | undefined, key: string, file: string): string {
  if (value === undefined || value === "")
    throw new CsnapError("USAGE", `${file}: '${key}' is missing: add it`);
  return value;
}

export function definitionText(definition: VolumeDefinition): string {
  const { uuid, origin, store, serve } = definition;
  const head = "# A csnap volume. `csnap serve` takes the [serve] table as its options.\n";
  const table = Object.fromEntries(Object.entries(serve).map(([key, value]) => [kebab(key), value]));
  return `${head}${stringify({ uuid, origin, store, ...(Object.keys(table).length > 0 && { serve: table }) })}`;
}

function kebab(key: string): string {
  return key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
}

/** Refuses a name that is taken (DE1). */
export function writeDefinition(stateDir: string, definition: VolumeDefinition): void {
  const directory = join(stateDir, "volumes");
  const temporary = join(directory, `.${definition.name}.${randomBytes(6).toString("hex")}`);
  try {
    mkdirSync(directory, { recursive: true, mode: 0o755 });
    const fd = openSync(temporary, "wx", 0o644);
    try {
      writeSync(fd, definitionText(definition));
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    linkSync(temporary, definitionPath(stateDir, definition.name));
    syncDirectory(directory);
  } catch (error) {
    throw unwritable(error, definition.name, stateDir);
  } finally {
    if (existsSync(temporary)) unlinkSync(temporary);
  }
}

export function renameDefinition(stateDir: string, from: string, to: string): void {
  try {
    linkSync(definitionPath(stateDir, from), definitionPath(stateDir, to));
    unlinkSync(definitionPath(stateDir, from));
    syncDirectory(join(stateDir, "volumes"));
  } catch (error) {
    throw unwritable(error, to, stateDir);
  }
}

export function removeDefinition(stateDir: string, name: string): void {
  try {
    unlinkSync(definitionPath(stateDir, name));
    syncDirectory(join(stateDir, "volumes"));
  } catch (error) {
    throw unwritable(error, name, stateDir);
  }
}

export function checkNameIsFree(stateDir: string, name: string): void {
  if (existsSync(definitionPath(stateDir, name))) throw nameTaken(stateDir, name);
}

function nameTaken(stateDir: string, name: string): CsnapError {
  return new CsnapError(
    "ALREADY_EXISTS",
    `volume '${name}' is defined already in ${definitionPath(stateDir, name)}: choose another name, or \`csnap remove ${name}\` first`,
  );
}

function unwritable(error: unknown, name: string, stateDir: string): CsnapError {
  if (codeOf(error) === "ALREADY_EXISTS") return nameTaken(stateDir, name);
  return new CsnapError(
    codeOf(error),
    `the definition of '${name}' can't be written: ${systemText(error)}: check the state directory, or choose another with --state-dir`,
  );
}

function unreadable(error: unknown): CsnapError {
  return new CsnapError(codeOf(error), `the volume's definition can't be read: ${systemText(error)}`);
}

function reading<T>(_directory: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    throw unreadable(error);
  }
}

function syncDirectory(directory: string): void {
  const fd = openSync(directory, "r");
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}
