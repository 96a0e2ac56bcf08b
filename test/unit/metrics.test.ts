/** What the agent counts (tally.ts), and how it and a server's term read as metrics. */
import { describe, expect, it } from "vitest";
import { renderAgentMetrics } from "../../src/agent/metrics.js";
import type { DeviceRecord } from "../../src/agent/model.js";
import { ServiceTallies, StallClock } from "../../src/agent/tally.js";

const device: DeviceRecord = {
  device: "/dev/nbd0",
  volume: "disk1",
  snapshot: null,
  attachment: "6f1c4d8e-0d2b-4a55-9a3e-3f6d0f2b7a12",
  state: "attached",
  reason: null,
  read_only: false,
  size: 1 << 20,
  epoch: 7,
  on_lost: "hang",
  since: "2024-08-05T10:11:12.000Z",
  in_flight: 0,
  mounts: [],
};

/** Value of the sample with this name and these labels; undefined: there is none. */
function sample(text: string, series: string): number | undefined {
  const line = text.split("\n").find((one) => one.startsWith(`${series} `));
  return line === undefined ? undefined : Number(line.slice(series.length + 1));
}

describe("failovers", () => {
  const of = (tallies: ServiceTallies) => renderAgentMetrics([], tallies.entries());

  it("are starts after a loss; a first start and a move are none", () => {
    const tallies = new ServiceTallies();
    tallies.started("disk1");
    tallies.lost("disk1", "died");
    tallies.started("disk1");
    tallies.started("disk1");
    expect(sample(of(tallies), 'csnap_server_starts_total{volume="disk1"}')).toBe(3);
    expect(sample(of(tallies), 'csnap_failover_total{volume="disk1",reason="died"}')).toBe(1);
    expect(sample(of(tallies), 'csnap_failover_total{volume="disk1",reason="fenced"}')).toBe(0);
  });

  it("follow a confirmed fence only; every fence is counted by its result", () => {
    const tallies = new ServiceTallies();
    tallies.fenced("disk1", "command", false);
    tallies.fenced("disk1", "command", false);
    tallies.started("disk1");
    tallies.fenced("disk1", "command", true);
    tallies.started("disk1");
    tallies.started("disk2");
    const text = of(tallies);
    expect(sample(text, 'csnap_fence_total{volume="disk1",method="command",result="failed"}')).toBe(2);
    expect(sample(text, 'csnap_fence_total{volume="disk1",method="command",result="confirmed"}')).toBe(1);
    expect(sample(text, 'csnap_failover_total{volume="disk1",reason="fenced"}')).toBe(1);
    expect(sample(text, 'csnap_failover_total{volume="disk2",reason="fenced"}')).toBe(0);
  });
});

describe("stalls", () => {
  it("count from loss to return, one that lasts as far as it has come", () => {
    const clock = new StallClock();
    clock.over(100);
    expect(clock.at(200)).toEqual({ count: 0, ms: 0 });
    clock.lost(1000);
    clock.lost(1200);
    expect(clock.at(1500)).toEqual({ count: 1, ms: 500 });
    clock.over(3000);
    clock.lost(10_000);
    expect(clock.at(10_250)).toEqual({ count: 2, ms: 2250 });
  });

  it("are told by device, in seconds", () => {
    const text = renderAgentMetrics(
      [
        { device, stall: { count: 2, ms: 2250.4 } },
        {
          device: { ...device, device: null, snapshot: "mon", state: "waiting" },
          stall: { count: 0, ms: 0 },
        },
      ],
      [],
    );
    const labels = '{volume="disk1",snapshot="",device="/dev/nbd0"}';
    expect(sample(text, `csnap_client_stall_seconds_total${labels}`)).toBe(2.25);
    expect(sample(text, `csnap_client_stalls_total${labels}`)).toBe(2);
    expect(sample(text, `csnap_device_attached${labels}`)).toBe(1);
    expect(sample(text, 'csnap_device_attached{volume="disk1",snapshot="mon",device=""}')).toBe(0);
  });

  it("are no family where nothing is attached", () => {
    expect(renderAgentMetrics([], [])).toBe("");
  });
});
