/** `scripts/bench data --list`: what --only chooses from, a name a line. */
import { scenarios } from "./data/scenarios.js";
import { workloads } from "./data/workloads.js";

const unused = { every: "", some: "" };
for (const { name } of [...workloads(unused), ...scenarios]) console.log(name);
