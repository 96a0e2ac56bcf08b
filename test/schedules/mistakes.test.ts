// Negative controls of the simulated worlds: with one mistake each, a rule is broken and noticed. Mistakes in
// the shipped code itself are among native/testing/mutants.
import { expect, it } from "vitest";
import { type Found, runAll, seeds } from "../support/cluster/run.js";
import type { Mistake } from "../support/cluster/world.js";

const SCHEDULES_MAX = 1000;

/** Whose, and the rules of which the first is broken. */
const mistakes: readonly (readonly [whose: string, mistake: Mistake, rules: RegExp])[] = [
  ["a server", "stamps one slot", /^F[34]:/],
  ["a server", "publishes without a probe", /^F4:/],
  ["a server", "issues past the gate", /^F2:/],
  ["a server", "acknowledges past the gate", /^F[12]:/],
  ["an agent", "starts without a claim", /^F7:/],
  ["an agent", "fences without waiting", /^F8:/],
  ["an agent", "takes a failed fence for a confirmed one", /^F8:/],
  ["an agent", "takes silence for death", /^F8:/],
  ["an agent", "hears silence at once", /^F[18]:|^quiet:/],
  ["a holder", "renews from the answer", /^F[12]:/],
];

it.each(mistakes)("%s that %s is caught", async (_whose, mistake, rules) => {
  const caught: Found[] = [];
  let count = 0;
  await runAll(seeds(1, SCHEDULES_MAX), [mistake], (found) => {
    count++;
    if (found.violation !== undefined) caught.push(found);
    return caught.length > 0;
  });
  const [first] = caught;
  console.log(`${mistake}: among ${count} schedules, seed ${first?.seed}: ${first?.violation}`);
  expect(first?.violation).toMatch(rules);
});
