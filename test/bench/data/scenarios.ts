/** All scenarios, in the order in which they are measured. */
import { openAfterCrash } from "./crash-scenario.js";
import { createUnderLoad } from "./create-scenario.js";
import { deleteUnderLoad } from "./delete-scenario.js";
import { readsBesideWrites } from "./reads-scenario.js";
import type { Scenario } from "./scenario.js";

export const scenarios: readonly Scenario[] = [
  readsBesideWrites,
  createUnderLoad,
  deleteUnderLoad,
  openAfterCrash,
];
