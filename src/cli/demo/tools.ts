// The programs of others that the demo uses, and running them.
import { type SpawnOptions, spawn } from "node:child_process";
import { CsnapError, oneLine } from "../../volume/errors.js";

/** System directories first: mkfs lives in sbin, which is not in everybody's PATH. */
export const toolEnv: NodeJS.ProcessEnv = {
  ...process.env,
  PATH: `/usr/sbin:/usr/bin:/sbin:/bin:${process.env.PATH ?? ""}`,
};

interface Tool {
  readonly probe: readonly [command: string, ...args: string[]];
  readonly debianPackage: string;
}

const tools: readonly Tool[] = [
  { probe: ["mkfs.ext4", "-V"], debianPackage: "e2fsprogs" },
  { probe: ["debugfs", "-V"], debianPackage: "e2fsprogs" },
  { probe: ["e2fsck", "-V"], debianPackage: "e2fsprogs" },
  { probe: ["nbdcopy", "--version"], debianPackage: "libnbd-bin" },
  { probe: ["nbdsh", "-c", "pass"], debianPackage: "python3-libnbd" },
];

/** Throws one line that names every missing program and the packages that hold them. */
export async function needTools(): Promise<void> {
  const missing: Tool[] = [];
  for (const tool of tools) {
    const { status } = await runTool(...tool.probe);
    if (status !== 0) missing.push(tool);
  }
  if (missing.length === 0) return;
  const names = missing.map(({ probe }) => probe[0]).join(", ");
  const packages = [...new Set(missing.map((tool) => tool.debianPackage))].join(" ");
  throw new CsnapError("MISSING_TOOL", `csnap demo needs ${names}: apt-get install ${packages}`);
}

export interface ToolResult {
  /** -1: it could not be started */
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

export function runTool(command: string, ...args: readonly string[]): Promise<ToolResult> {
  return runWith({}, command, ...args);
}

export function runWith(
  options: SpawnOptions,
  command: string,
  ...args: readonly string[]
): Promise<ToolResult> {
  return new Promise((resolve) => {
    const child = spawn(command, args, { env: toolEnv, stdio: ["ignore", "pipe", "pipe"], ...options });
    let stdout = "";
    let stderr = "";
    child.stdout?.setEncoding("utf8").on("data", (text: string) => {
      stdout += text;
    });
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      stderr += text;
    });
    child.on("error", (error) => resolve({ status: -1, stdout, stderr: error.message }));
    child.on("close", (code) => resolve({ status: code ?? -1, stdout, stderr }));
  });
}

/** Runs a program that must succeed; returns its stdout. */
export async function mustRun(command: string, ...args: readonly string[]): Promise<string> {
  const { status, stdout, stderr } = await runTool(command, ...args);
  if (status === 0) return stdout;
  throw new CsnapError(
    "FAILED",
    `demo: ${command} ${args[0] ?? ""} failed (${status}): ${oneLine(`${stderr} ${stdout}`)}`,
  );
}
