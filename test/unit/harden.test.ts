// What is told of precautions that could not be taken, and to whom.
import { hostname } from "node:os";
import { describe, expect, it } from "vitest";
import { swapProblems, warningsOf } from "../../src/server/harden.js";

describe("swap", () => {
  const header = "Filename\tType\tSize\tUsed\tPriority\n";
  const swap = `${header}/dev/vda2 partition 1000 0 -2\n`;
  const cgroup = "0::/system.slice/csnap-agent.service\n";
  const group = "/sys/fs/cgroup/system.slice/csnap-agent.service/memory.swap.max";

  function problems(files: Readonly<Record<string, string>>): number {
    return swapProblems((path) => files[path] ?? "").length;
  }

  it("is no matter where there is none, or where a control group keeps the process out of it", () => {
    expect(problems({})).toBe(0);
    expect(problems({ "/proc/swaps": header })).toBe(0);
    expect(problems({ "/proc/swaps": swap, "/proc/self/cgroup": cgroup, [group]: "0\n" })).toBe(0);
    const slice = "/sys/fs/cgroup/system.slice/memory.swap.max";
    const both = { [group]: "max\n", [slice]: "0\n" };
    expect(problems({ "/proc/swaps": swap, "/proc/self/cgroup": cgroup, ...both })).toBe(0);
  });

  it("is told of where the process may be put there", () => {
    expect(problems({ "/proc/swaps": swap })).toBe(1);
    expect(problems({ "/proc/swaps": swap, "/proc/self/cgroup": "1:memory:/old\n" })).toBe(1);
    expect(problems({ "/proc/swaps": swap, "/proc/self/cgroup": cgroup })).toBe(1);
    expect(problems({ "/proc/swaps": swap, "/proc/self/cgroup": cgroup, [group]: "max\n" })).toBe(1);
  });
});

describe("warnings", () => {
  const problems = ["no memory is locked"];
  const attached = (peer: string) => [{ attachment: "uuid.1", peer }];

  it("are always shown of root's server", () => {
    expect(warningsOf(problems, true, { holder: undefined, clients: [] })).toEqual(problems);
  });

  it("are shown of others while a device of this host may depend on it", () => {
    expect(warningsOf(problems, false, { holder: hostname(), clients: [] })).toEqual(problems);
    for (const peer of ["unix socket", "127.0.0.1", "::1"])
      expect(warningsOf(problems, false, { holder: undefined, clients: attached(peer) })).toEqual(problems);
  });

  it("are not shown where no deadlock can be", () => {
    expect(warningsOf(problems, false, { holder: undefined, clients: [] })).toEqual([]);
    const plain = [{ attachment: null, peer: "unix socket" }];
    expect(warningsOf(problems, false, { holder: "elsewhere", clients: plain })).toEqual([]);
    expect(warningsOf(problems, false, { holder: "elsewhere", clients: attached("192.0.2.7") })).toEqual([]);
  });
});
