// The kernel's NBD driver as csnap's client, in a virtual machine with a real kernel: nbd-regression.sh there does the
// work, and this counts. Default tier: each kernel and each file system once; CSNAP_TIER=full: all four pairs. Two
// machines run at a time.
import { describe, it } from "vitest";
import { runInVm } from "../support/vm.js";

const LIMIT_S = 600;

type Pair = [kernel: string, kind: string];
const pairs: Pair[][] = [
  [
    ["6.1", "ext4"],
    ["6.12", "xfs"],
  ],
  [
    ["6.12", "ext4"],
    ["6.1", "xfs"],
  ],
];

describe.each(pairs.slice(0, process.env.CSNAP_TIER === "full" ? 2 : 1))("the kernel's nbd", (...both) => {
  for (const [kernel, kind] of both) {
    it.concurrent(`${kernel}, ${kind}: verified load, snapshots come and go, what is kept is right`, () =>
      runInVm({ kernel, limitS: LIMIT_S }, ["test/vm/nbd-regression.sh", kind]));
  }
});
