/** `scripts/bench plots ROWS.jsonl DIRECTORY`: draws the charts that the rows have figures for. */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { barChart } from "./bar-chart.js";
import { chartsOf } from "./charts.js";

const [rowsFile = "", directory = ""] = process.argv.slice(2);

function rowsOf(text: string): object[] {
  return text.split("\n").flatMap((line, i) => {
    if (line.trim() === "") return [];
    try {
      return [JSON.parse(line) as object];
    } catch {
      throw new Error(
        `${rowsFile}:${i + 1} is no row: every line is a JSON object that scripts/bench printed`,
      );
    }
  });
}

try {
  const charts = chartsOf(rowsOf(readFileSync(rowsFile, "utf8")));
  if (charts.size === 0)
    throw new Error(`${rowsFile} has no row that is drawn: 'scripts/bench --help' says what is`);
  mkdirSync(directory, { recursive: true });
  for (const [file, chart] of charts) {
    writeFileSync(join(directory, file), barChart(chart));
    console.error(`drew ${join(directory, file)}`);
  }
} catch (error) {
  console.error(error instanceof Error ? error.message : String(error));
  process.exitCode = 1;
}
