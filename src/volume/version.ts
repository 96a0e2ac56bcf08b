// The package's version, for --version, the server's record and metrics.
import { createRequire } from "node:module";

const packageJson = createRequire(import.meta.url)("../../package.json") as { version: string };

export const version = packageJson.version;
