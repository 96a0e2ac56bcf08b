// Persistent reservations against real kernels: reservation.mjs in the machine does the work, and this counts.
import { describe, it } from "vitest";
import { runInVm } from "../support/vm.js";

const isFull = process.env.CSNAP_TIER === "full";
const LIMIT_S = 600;

/** In the default tier what the devices do, with CSNAP_TIER=full the hosts too. */
describe("fencing by persistent reservations", () => {
  for (const kernel of isFull ? ["6.1", "6.12"] : ["6.1"])
    it(`${kernel}: a lost host is shut out by the devices, and no client sees an error`, () =>
      runInVm({ kernel, limitS: LIMIT_S, options: ["--env", "CSNAP_TIER"] }, [
        process.execPath,
        "test/vm/reservation.mjs",
      ]));
});
