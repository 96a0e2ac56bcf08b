// The agent's figures as metrics. Nothing is counted here (tally.ts does).
import { type Family, type Labels, renderFamilies } from "../control/prometheus.js";
import type { DeviceRecord } from "./model.js";
import type { ServiceTally, Stall } from "./tally.js";

export interface DeviceFigures {
  readonly device: DeviceRecord;
  readonly stall: Stall;
}

export function renderAgentMetrics(
  devices: readonly DeviceFigures[],
  services: Iterable<[string, ServiceTally]>,
): string {
  const deviceFamily = (
    name: string,
    type: Family["type"],
    help: string,
    value: (figures: DeviceFigures) => number,
  ): Family => ({
    name,
    type,
    help,
    samples: devices.map((figures) => ({ labels: deviceLabels(figures.device), value: value(figures) })),
  });
  const tallies = [...services];
  const serviceCounter = (
    name: string,
    help: string,
    samples: (tally: ServiceTally) => [labels: Labels, value: number][],
  ): Family => ({
    name,
    type: "counter",
    help,
    samples: tallies.flatMap(([volume, tally]) =>
      samples(tally).map(([labels, value]) => ({ labels: { volume, ...labels }, value })),
    ),
  });
  return renderFamilies([
    deviceFamily("csnap_device_attached", "gauge", "Whether the device has a server.", ({ device }) =>
      device.state === "attached" ? 1 : 0,
    ),
    deviceFamily(
      "csnap_client_stalls_total",
      "counter",
      "How often the device was without a server since the agent started.",
      ({ stall }) => stall.count,
    ),
    deviceFamily(
      "csnap_client_stall_seconds_total",
      "counter",
      "How long the device was without a server since the agent started, a stall that lasts included.",
      ({ stall }) => Math.round(stall.ms) / 1000,
    ),
    serviceCounter("csnap_server_starts_total", "Servers started by this agent.", ({ starts }) => [
      [{}, starts],
    ]),
    serviceCounter(
      "csnap_failover_total",
      "Starts after a loss: a host that this agent had fenced, or a server of this host that died.",
      ({ failovers }) => Object.entries(failovers).map(([reason, count]) => [{ reason }, count]),
    ),
    serviceCounter("csnap_fence_total", "Fences of lost hosts by this agent.", ({ fences }) =>
      fences.map(({ method, confirmed, count }) => [
        { method, result: confirmed ? "confirmed" : "failed" },
        count,
      ]),
    ),
  ]);
}

function deviceLabels({ device, volume, snapshot }: DeviceRecord): Labels {
  return { volume, snapshot: snapshot ?? "", device: device ?? "" };
}
