// The addon's netlink calls against real kernels: netlink-devices.mjs in the machine does the work, and this counts.
import { describe, it } from "vitest";
import { runInVm } from "../support/vm.js";

const LIMIT_S = 400;

describe("the kernel's nbd over netlink", () => {
  for (const kernel of ["6.1", "6.12"])
    it.concurrent(`${kernel}: attached, cut, reconnected, detached; refusals say why`, () =>
      runInVm({ kernel, limitS: LIMIT_S }, [process.execPath, "test/vm/netlink-devices.mjs"]));
});
