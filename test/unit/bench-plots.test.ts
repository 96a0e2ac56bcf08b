/** The charts that scripts/bench draws: what they show of rows, and that they can be read on GitHub. */
import { execFileSync } from "node:child_process";
import { describe, expect, it } from "vitest";
import { barChart, type Chart, COLOURS, shortNumber } from "../bench/plots/bar-chart.js";
import { chartsOf } from "../bench/plots/charts.js";

const bar = (label: string, value: number, low: number | null = null, high: number | null = null) => ({
  ...{ label, value, low, high },
  ours: label === "csnap",
});

const chart = (scale: Chart["scale"], ...bars: ReturnType<typeof bar>[]): Chart => ({
  title: "rates",
  unit: "requests per second",
  scale,
  groups: [{ name: "all", bars }],
  notes: ["measured somewhere"],
});

/** Of the rectangles, in their order. */
const widths = (svg: string) =>
  [...svg.matchAll(/<rect [^>]*width="([\d.]+)"/g)].map(([, width]) => Number(width));

/** Where intervals begin and end. */
const intervals = (svg: string) =>
  [...svg.matchAll(/<path class="interval" d="M([\d.]+) [\d.]+H([\d.]+)M/g)].map(([, low, high]) => [
    Number(low),
    Number(high),
  ]);

describe("a bar chart", () => {
  it("has bars in proportion on a linear scale", () => {
    const [long = 0, short = 0] = widths(barChart(chart("linear", bar("csnap", 300), bar("other", 100))));
    expect(long / short).toBeCloseTo(3, 1);
  });

  it("has equal steps for equal factors on a logarithmic one", () => {
    const [a = 0, b = 0, c = 0] = widths(
      barChart(chart("log", bar("csnap", 40_000), bar("x", 4_000), bar("y", 400))),
    );
    expect(a - b).toBeCloseTo(b - c, 0);
    expect(c).toBeGreaterThan(0);
  });

  it("draws an interval around the end of its bar, and none where it is unknown", () => {
    const svg = barChart(chart("linear", bar("csnap", 300, 200, 400), bar("other", 100)));
    const [[low = 0, high = 0] = []] = intervals(svg);
    const left = Number(/<rect [^>]*x="([\d.]+)"/.exec(svg)?.[1]);
    const [long = 0] = widths(svg);
    expect(intervals(svg)).toHaveLength(1);
    expect(left + long - low).toBeCloseTo(high - left - long, 0);
    expect(long / (low - left)).toBeCloseTo(1.5, 1);
  });

  it("stays within its picture, whatever the values", () => {
    for (const scale of ["linear", "log"] as const)
      for (const value of [0.3, 1, 9.99, 10, 61, 1000, 45_300, 999_999, 3e6]) {
        const svg = barChart(
          chart(scale, bar("csnap", value, value, value * 1.01), bar("other", value / 50)),
        );
        expect(Math.max(...widths(svg))).toBeLessThanOrEqual(500);
        expect(Math.max(...intervals(svg).flat())).toBeLessThanOrEqual(690);
      }
  });

  it("is the same text for the same chart, and XML whatever the names are", () => {
    const odd = chart("linear", bar('<a> & "b"', 1));
    expect(barChart(odd)).toBe(barChart(odd));
    expect(barChart(odd)).toContain("&lt;a> &amp; &quot;b&quot;</text>");
    const script = "import sys, xml.dom.minidom; xml.dom.minidom.parseString(sys.stdin.read())";
    execFileSync("python3", ["-c", script], { input: barChart(odd) });
  });

  it("refuses what it can't show", () => {
    expect(() => barChart(chart("linear"))).toThrow("no bars");
    expect(() => barChart(chart("log", bar("csnap", 0)))).toThrow("no place for 0");
    expect(() => barChart(chart("linear", bar("csnap", Number.NaN)))).toThrow("no place for NaN");
  });

  it("writes numbers shortly", () => {
    const short = [0.5, 970, 999.4, 999.6, 1340, 45_310, 999_499, 999_500, 2e6].map(shortNumber);
    expect(short).toEqual(["0.5", "970", "999", "1k", "1.34k", "45.3k", "999k", "1M", "2M"]);
  });
});

/** WCAG 2.1: relative luminance. */
function luminance(colour: string): number {
  const [r = 0, g = 0, b = 0] = [1, 3, 5]
    .map((at) => Number.parseInt(colour.slice(at, at + 2), 16) / 255)
    .map((part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function contrast(one: string, other: string): number {
  const [dark = 0, light = 0] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
}

describe("its colours", () => {
  // 4.33 is the most that one colour can have against both.
  it.each(["#ffffff", "#0d1117"])("stand out from GitHub's background %s", (background) => {
    expect(contrast(COLOURS.text, background)).toBeGreaterThan(4.2);
    for (const colour of [COLOURS.ours, COLOURS.others])
      expect(contrast(colour, background)).toBeGreaterThan(3);
  });
});

describe("an interval's line or its seam", () => {
  it.each(["#ffffff", "#0d1117", COLOURS.ours, COLOURS.others])("stands out from %s", (below) => {
    const best = Math.max(contrast(COLOURS.interval, below), contrast(COLOURS.seam, below));
    expect(best).toBeGreaterThan(3);
  });
});

describe("the charts of rows", () => {
  const rate = (workload: string, server: string, value: number) => ({
    ...{ workload, server, unit: "requests/s" as const, rate: value },
    ...{ low95: value * 0.9, high95: value * 1.1, rounds: 15 },
  });
  const read = "4k random read, QD16, 1 connection";
  const rows = [
    { machine: "2 cores, Linux 6.1", file_system: "ext4" },
    rate(read, "csnap", 200),
    rate(read, "nbdkit file", 100),
    { workload: read, server: "csnap", against: "nbdkit file", ratio: 2 },
    rate("4k random read, QD64", "csnap", 300),
  ];

  it("have what was measured, and say where", () => {
    const charts = chartsOf(rows);
    expect([...charts.keys()]).toEqual(["random-4k.svg"]);
    const [group, ...others] = charts.get("random-4k.svg")?.groups ?? [];
    expect(others).toEqual([]);
    expect(group?.bars).toEqual([
      { label: "csnap", value: 200, low: 180, high: 200 * 1.1, ours: true },
      { label: "nbdkit file", value: 100, low: 90, high: 100 * 1.1, ours: false },
    ]);
    expect(charts.get("random-4k.svg")?.notes.join()).toMatch(
      /15 interleaved rounds.*2 cores, Linux 6.1; ext4/,
    );
  });

  it("name the machine that their own rows are from", () => {
    const first = "first write after a snapshot, 16k chunks, QD16";
    const charts = chartsOf([...rows, { machine: "8 cores" }, rate(first, "csnap", 1)]);
    expect(charts.get("random-4k.svg")?.notes.slice(1)).toEqual(["2 cores, Linux 6.1; ext4"]);
    expect(charts.get("first-write.svg")?.notes.slice(1)).toEqual(["8 cores"]);
  });

  it("take the later row of two", () => {
    const bars = chartsOf([...rows, rate(read, "csnap", 250)]).get("random-4k.svg")?.groups[0]?.bars;
    expect(bars?.map(({ label, value }) => [label, value])).toEqual([
      ["csnap", 250],
      ["nbdkit file", 100],
    ]);
  });

  it("name workloads that there are", async () => {
    const { workloads } = await import("../bench/data/workloads.js");
    const every = workloads({ every: "", some: "" }).map(({ name }) => rate(name, "csnap", 1));
    const groups = [...chartsOf(every).values()].map((one) => one.groups.length);
    expect(groups).toEqual([4, 4, 4]);
  });
});
