// One vitest project per directory of tests, named like it; scripts/test runs each as a suite.
import { defineConfig } from "vitest/config";

const MINUTE_MS = 60_000;

/** Tests of one directory. Those that start servers or machines run one file at a time. */
function project(name: string, timeout_ms: number, alone: boolean) {
  return {
    test: {
      name,
      include: [`test/${name}/**/*.test.ts`],
      testTimeout: timeout_ms,
      hookTimeout: timeout_ms,
      fileParallelism: !alone,
      pool: "forks" as const,
    },
  };
}

export default defineConfig({
  test: {
    projects: [
      project("unit", 30_000, false),
      project("wire", MINUTE_MS, true),
      project("crash", 10 * MINUTE_MS, true),
      project("failover", 15 * MINUTE_MS, true),
      { test: { name: "fuzz", include: ["test/fuzz/**/*.fuzz.ts"] } },
      {
        test: {
          name: "bench",
          include: ["test/bench/**/*.bench.ts"],
          hookTimeout: 2 * MINUTE_MS,
          pool: "forks",
        },
      },
      project("schedules", 60 * MINUTE_MS, false),
      project("vm", 15 * MINUTE_MS, true),
    ],
  },
});
