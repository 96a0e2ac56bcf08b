/**
 * What the two machines of takeover.test.ts share: words to each other and to the test, as files in a directory that all
 * three see, and an agent that offers to serve the volume at this machine's address.
 */
import { appendFileSync, existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import * as rig from "./attach-rig.mjs";

export const [share, address] = process.argv.slice(2);

export function say(word, text = "") {
  writeFileSync(join(share, word), text);
}

/** What was said with it. */
export async function said(word, limitS) {
  const path = join(share, word);
  await rig.until(`the word ${word}`, () => existsSync(path), limitS);
  return readFileSync(path, "utf8");
}

/** The volume must be defined on this host. */
export function offer() {
  const serve = `\n[serve]\nlisten = ["${address}:10809"]\nplain = true\n`;
  appendFileSync(`${rig.stateDir}/volumes/disk1.toml`, serve);
  return rig.startAgent();
}
