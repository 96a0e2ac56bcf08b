// Loads the addon when the first command needs it, so that help and usage errors work without it and
// a missing build gives one line.
import type { NativeBinding } from "../native.js";
import { CsnapError, oneLine } from "./errors.js";

export async function loadNative(): Promise<NativeBinding> {
  try {
    return (await import("../native.js")).native;
  } catch (error) {
    const code = error instanceof Error && "code" in error ? error.code : "";
    if (code !== "MODULE_NOT_FOUND" && code !== "ERR_DLOPEN_FAILED") throw error;
    const cause = code === "MODULE_NOT_FOUND" ? "it is not built" : oneLine((error as Error).message);
    throw new CsnapError(
      "MISSING_TOOL",
      `csnap's native addon can't be loaded: ${cause}: run \`npm rebuild\` in csnap's directory (it needs g++ and make)`,
    );
  }
}
