/**
 * A horizontal bar chart with intervals, as SVG text. The same chart gives the same bytes, so that a picture in the
 * repository changes only with its figures. It has no background: its colours are readable on white and on black, as a
 * picture in a README can't know which of GitHub's themes shows it.
 */

export interface Bar {
  readonly label: string;
  readonly value: number;
  /** null: unknown; then no interval is drawn */
  readonly low: number | null;
  readonly high: number | null;
  /** drawn in the colour that stands out */
  readonly ours: boolean;
}

export interface Chart {
  readonly title: string;
  /** of the values, beside the title */
  readonly unit: string;
  /** log: bars begin at a power of ten below the smallest value */
  readonly scale: "linear" | "log";
  readonly groups: readonly { readonly name: string; readonly bars: readonly Bar[] }[];
  /** lines below the chart */
  readonly notes: readonly string[];
}

export const COLOURS = {
  ours: "#2f7de1",
  others: "#8a8f98",
  text: "#767b83",
  /** An interval lies over bar and background: a dark line with a light seam. */
  interval: "#1f2328",
  seam: "#ffffff",
  grid: "#8a8f98",
} as const;

const WIDTH = 760;
const LABELS = 190;
/** For the value behind the longest bar. */
const VALUES = 70;
const PLOT = WIDTH - LABELS - VALUES;
const BAR = 15;
const BAR_STEP = 20;
const GROUP_HEAD = 26;
const TOP = 48;
const LINE = 17;

interface Axis {
  readonly ticks: readonly number[];
  /** the end of a value's bar, from 0 to 1 */
  readonly at: (value: number) => number;
}

/** Round steps, 3 to 6 of them, the last at `max` or above. */
function linearAxis(max: number): Axis {
  const power = 10 ** Math.floor(Math.log10(max));
  const step = [0.2, 0.5, 1, 2].map((factor) => factor * power).find((size) => max / size <= 6) ?? 2 * power;
  const count = Math.ceil(max / step - 1e-9);
  const ticks = Array.from({ length: count + 1 }, (_, i) => i * step);
  return { ticks, at: (value) => value / (count * step) };
}

/** The powers of ten around them, the first below `min`, so that every bar has a length. */
function logAxis(min: number, max: number): Axis {
  const first = Math.ceil(Math.log10(min)) - 1;
  const last = Math.max(first + 1, Math.ceil(Math.log10(max)));
  const ticks = Array.from({ length: last - first + 1 }, (_, i) => 10 ** (first + i));
  return { ticks, at: (value) => Math.max(0, (Math.log10(value) - first) / (last - first)) };
}

/** Three digits: 970, 1.34k, 45.3k, 2M. */
export function shortNumber(value: number): string {
  const [size, letter] = value >= 999_500 ? [1e6, "M"] : value >= 999.5 ? [1e3, "k"] : [1, ""];
  return `${Number((value / size).toPrecision(3))}${letter}`;
}

const escaped = (text: string) =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll('"', "&quot;");

/** In pixels; no two machines print these digits differently. */
const px = (value: number) => String(Number(value.toFixed(1)));

function text(x: number, y: number, content: string, attributes = ""): string {
  return `<text x="${px(x)}" y="${px(y)}"${attributes}>${escaped(content)}</text>`;
}

function line(x1: number, y1: number, x2: number, y2: number, kind: string): string {
  return `<line class="${kind}" x1="${px(x1)}" y1="${px(y1)}" x2="${px(x2)}" y2="${px(y2)}"/>`;
}

function drawInterval(low: number, high: number, y: number): string[] {
  const [top, bottom] = [px(y - 4), px(y + 4)];
  const path = `M${px(low)} ${px(y)}H${px(high)}M${px(low)} ${top}V${bottom}M${px(high)} ${top}V${bottom}`;
  return ["seam", "interval"].map((kind) => `<path class="${kind}" d="${path}"/>`);
}

function drawBar({ label, value, low, high, ours }: Bar, y: number, x: (value: number) => number): string[] {
  const middle = y + BAR / 2;
  const interval = low === null || high === null ? [] : drawInterval(x(low), x(high), middle);
  const weight = ours ? ' font-weight="600"' : "";
  return [
    text(LABELS - 8, middle + 4, label, ` text-anchor="end"${weight}`),
    `<rect class="${ours ? "ours" : "others"}" x="${px(LABELS)}" y="${px(y)}" width="${px(x(value) - LABELS)}" height="${BAR}"/>`,
    ...interval,
    text(Math.max(x(value), x(high ?? value)) + 6, middle + 4, shortNumber(value), weight),
  ];
}

/** Throws for a chart without bars, and for a value that has no place on its scale. */
export function barChart({ title, unit, scale, groups, notes }: Chart): string {
  const ends = groups.flatMap(({ bars }) =>
    bars.flatMap(({ value, low, high }) => [value, low ?? value, high ?? value]),
  );
  if (ends.length === 0) throw new Error(`'${title}' has no bars`);
  const bad = ends.find((end) => !Number.isFinite(end) || end < 0 || (scale === "log" && end === 0));
  if (bad !== undefined) throw new Error(`'${title}': no place for ${bad} on a ${scale} scale`);
  const max = Math.max(...ends);
  const axis = scale === "log" ? logAxis(Math.min(...ends), max) : linearAxis(max);
  const x = (value: number) => LABELS + PLOT * axis.at(value);

  const drawn: string[] = [];
  let y = TOP;
  for (const { name, bars } of groups) {
    drawn.push(text(LABELS, y + GROUP_HEAD - 8, name, ' font-weight="600"'));
    y += GROUP_HEAD;
    for (const bar of bars) {
      drawn.push(...drawBar(bar, y, x));
      y += BAR_STEP;
    }
  }
  const grid = axis.ticks.flatMap((tick) => [
    line(x(tick), TOP, x(tick), y + 2, "grid"),
    text(x(tick), y + LINE, shortNumber(tick), ' text-anchor="middle"'),
  ]);
  const below = notes.map((note, i) => text(0, y + LINE * (i + 2.6), note, ' font-size="12"'));
  const height = Math.ceil(y + LINE * (notes.length + 2.2));
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" width="${WIDTH}" height="${height}" role="img">`,
    `<title>${escaped(title)}</title>`,
    "<style>",
    `text{font-family:system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif;font-size:13px;fill:${COLOURS.text}}`,
    `.ours{fill:${COLOURS.ours}}.others{fill:${COLOURS.others}}`,
    `.seam{stroke:${COLOURS.seam};stroke-width:3.5;stroke-linecap:square}.interval{stroke:${COLOURS.interval};stroke-width:1.5}`,
    `.grid{stroke:${COLOURS.grid};stroke-opacity:.35}`,
    "</style>",
    text(0, 18, title, ' font-weight="600" style="font-size:15px"'),
    text(0, 37, scale === "log" ? `${unit}, logarithmic scale` : unit),
    ...grid,
    ...drawn,
    ...below,
    "</svg>",
    "",
  ].join("\n");
}
