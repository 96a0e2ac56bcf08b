/** Imports compiled modules, for what only works compiled: worker threads, and processes that tests start. */
import { existsSync, readdirSync, statSync } from "node:fs";
import { join, relative } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const SOURCE = join(ROOT, "src");
const OUTPUT = join(ROOT, "dist");

/** `importBuilt<typeof import("../../src/nbd/server.js")>("nbd/server.js")`; throws if the build is not fresh. */
export async function importBuilt<Module>(path: string): Promise<Module> {
  requireFresh(join(SOURCE, path.slice(0, path.indexOf("/"))));
  return (await import(pathToFileURL(join(OUTPUT, path)).href)) as Module;
}

function requireFresh(directory: string): void {
  for (const name of readdirSync(directory)) {
    if (!name.endsWith(".ts")) continue;
    const source = join(directory, name);
    const output = join(OUTPUT, relative(SOURCE, source)).replace(/\.ts$/, ".js");
    if (!existsSync(output) || statSync(output).mtimeMs < statSync(source).mtimeMs) {
      throw new Error(`${relative(ROOT, output)} is missing or older than its source: run npm run build:ts`);
    }
  }
}
