// `csnap devices`: what this host's agent has attached.
import type { Command } from "commander";
import type { DeviceRecord } from "../../agent/model.js";
import { AgentClient, agentSocketPath } from "../../agent/service.js";
import { formatSize } from "../../volume/sizes.js";
import { contextOf, examples, jsonOption } from "../context.js";
import { type Column, print, printJson, printTable } from "../output.js";

export function registerDevices(program: Command): void {
  const command = program
    .command("devices")
    .summary("list attached devices")
    .description(
      "Lists what this host's agent has attached, or tries to: device, export, state, why it waits.",
    )
    .addOption(jsonOption())
    .action(async (options: { json?: boolean }) => {
      const devices = await new AgentClient(agentSocketPath(contextOf(command).runDir)).devices();
      if (options.json) printJson(devices);
      else if (devices.length === 0) print("nothing is attached: `csnap attach VOLUME` attaches");
      else printTable(columns, devices);
    });
  examples(command, "csnap devices", "csnap devices --json");
}

const columns: readonly Column<DeviceRecord>[] = [
  { title: "DEVICE", cell: (row) => row.device ?? "-" },
  { title: "EXPORT", cell: (row) => (row.snapshot === null ? row.volume : `${row.volume}@${row.snapshot}`) },
  { title: "SIZE", right: true, cell: (row) => formatSize(row.size) },
  { title: "MODE", cell: (row) => (row.read_only ? "ro" : "rw") },
  { title: "STATE", cell: (row) => (row.reason === null ? row.state : `${row.state}: ${row.reason}`) },
  { title: "MOUNTED AT", cell: (row) => row.mounts.join(" ") || "-" },
];
