#!/usr/bin/env node
// The `csnap` command. Everything is in program.ts; this file is only the process around it.
import { exitDone, exitFailed, run } from "./program.js";

// `csnap list | head`: the reader has what it wanted.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  process.exit(error.code === "EPIPE" ? exitDone : exitFailed);
});

process.exitCode = await run(process.argv.slice(2));
