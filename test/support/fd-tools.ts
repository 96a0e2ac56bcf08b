/** Builds and loads fd-tools.c, so that the listener can be tested without the addon. Needs a C compiler. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import type { NativeSockets } from "../../src/nbd/tls-tunnel.js";

export function loadFdTools(): NativeSockets {
  const source = fileURLToPath(new URL("./fd-tools.c", import.meta.url));
  const directory = mkdtempSync(join(tmpdir(), "csnap-fd-tools-"));
  const output = join(directory, "fd_tools.node");
  const headers = join(dirname(dirname(process.execPath)), "include", "node");
  execFileSync("cc", ["-shared", "-fPIC", "-Wall", "-Werror", `-I${headers}`, "-o", output, source]);
  const tools = createRequire(import.meta.url)(output) as NativeSockets;
  rmSync(directory, { recursive: true });
  return tools;
}
