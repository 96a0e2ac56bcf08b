/**
 * The host that is lost: serves the volume on the shared disks until its power goes. Started by takeover.test.ts in a
 * machine of its own, beside takeover-survivor.mjs; ends only when it could not begin.
 *     takeover-lost.mjs SHARE ADDRESS
 */
import assert from "node:assert/strict";
import * as rig from "./attach-rig.mjs";
import { offer, said, say } from "./takeover-rig.mjs";

let isServing = false;
await rig.test(
  "this host serves the volume",
  async () => {
    await said("declared", 180);
    await rig.ok(["import", "/dev/vdb", "--name", "disk1", "--origin", "/dev/vda"]);
    await offer();
    const end = rig.now() + 120;
    for (;;) {
      const { state, host } = JSON.parse(await rig.ok(["volume", "show", "disk1", "--json"]));
      if (state === "published" && host === process.env.CSNAP_HOST) break;
      assert.ok(rig.now() < end, await rig.ok(["volume", "explain", "disk1"]));
    }
    say("served");
    isServing = true;
  },
  300,
);
if (!isServing) rig.finish();
setInterval(() => {}, 1000);
