// The units of packaging/systemd under a real systemd, in a virtual machine: systemd.sh there does the work, and
// this counts. One kernel: none of it depends on which. With CSNAP_TIER=full only: test/unit/packaging.test.ts has
// the units verified always.
import { it } from "vitest";
import { runInVm } from "../support/vm.js";

const LIMIT_S = 600;

it.runIf(process.env.CSNAP_TIER === "full")(
  "the units boot, survive restarts and kills, and shut down in order",
  () => runInVm({ limitS: LIMIT_S }, ["test/vm/systemd.sh", process.execPath]),
);
