// Prints "PASSED FAILED SKIPPED" of a vitest JSON report. Called by scripts/lib/run-suite. A test
// file that fails before it has run a test counts as one failed test.
import { readFileSync } from 'node:fs';

const report = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const broken = report.testResults.filter(
  (file) => file.status === 'failed' && !file.assertionResults.some((test) => test.status === 'failed'),
).length;
console.log(
  report.numPassedTests,
  report.numFailedTests + broken,
  report.numPendingTests + report.numTodoTests,
);
