// Applies each committed mutant to a copy of the native tree, builds the copy and runs the tests that
// must notice. Called by scripts/mutants; see native/testing/mutants/README.md for the format.
//
// M1 The project's own files are never changed: everything happens in build-mutants/.
// M2 Before any mutant counts, the unchanged copy passes every test that a mutant names, and each
//    filter runs at least one test. A test that is red anyway would prove nothing.
// M3 A mutant that does not apply exactly once, or does not build, has failed: it proves nothing.
// M4 One build per mutant: taking the former mutant back and applying the next happens together.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { stripVTControlCharacters } from 'node:util';

const [projectDir, nodeGyp, nodePrefix, ...wanted] = process.argv.slice(2);
const copyDir = join(projectDir, 'build-mutants');
const mutantDir = join(projectDir, 'native/testing/mutants');
const SECONDS_MAX = 300;

function stop(message) {
  console.error(`mutants: ${message}`);
  process.exit(1);
}

function filesBelow(directory) {
  return readdirSync(directory, { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath ?? entry.path, entry.name).slice(projectDir.length + 1));
}

/** Writes only what differs, so that an unchanged file is not compiled again. */
function put(path, text) {
  const target = join(copyDir, path);
  if (existsSync(target) && readFileSync(target, 'utf8') === text) return;
  mkdirSync(dirname(target), { recursive: true });
  writeFileSync(target, text);
}

/** Only source: fixtures are read where they are. */
const SOURCE = /\.(h|cc|ts|def|md|json|mjs|c)$/;

function copyTree() {
  mkdirSync(copyDir, { recursive: true });
  for (const directory of ['native', 'src', 'test']) {
    const files = filesBelow(join(projectDir, directory)).filter((path) => SOURCE.test(path) && !path.includes('/fixtures/'));
    for (const path of files) put(path, readFileSync(join(projectDir, path), 'utf8'));
    const copied = join(copyDir, directory);
    for (const path of existsSync(copied) ? readdirSync(copied, { recursive: true }) : []) {
      if (!existsSync(join(projectDir, directory, path))) rmSync(join(copied, path), { recursive: true, force: true });
    }
  }
  for (const path of ['binding.gyp', 'package.json', 'tsconfig.json', 'tsconfig.test.json', 'vitest.config.ts'])
    put(path, readFileSync(join(projectDir, path), 'utf8'));
  if (!existsSync(join(copyDir, 'node_modules'))) symlinkSync('../node_modules', join(copyDir, 'node_modules'));
}

function readMutants() {
  const text = ['rule', 'title', 'file', 'find', 'replace'];
  return readdirSync(mutantDir)
    .filter((name) => name.endsWith('.json'))
    .sort()
    .map((name) => {
      let mutant;
      try {
        mutant = JSON.parse(readFileSync(join(mutantDir, name), 'utf8'));
      } catch (error) {
        stop(`${name} is not JSON: ${error.message}`);
      }
      // Long code reads better as a list of lines.
      for (const key of ['find', 'replace']) if (Array.isArray(mutant[key])) mutant[key] = mutant[key].join('\n');
      for (const key of text) if (typeof mutant[key] !== 'string') stop(`${name} lacks the text "${key}"`);
      if (!/^([WF]\d+|-)$/.test(mutant.rule)) stop(`${name}: rule "${mutant.rule}" is not like W2, F1 or -`);
      const ways = ['tests', 'command', 'vitest', 'control'].filter((key) => typeof mutant[key] === 'string');
      if (ways.length !== 1) stop(`${name} must name one of "tests", "command", "vitest" and "control"`);
      return { name: name.replace(/\.json$/, ''), env: {}, ...mutant };
    });
}

function run(command, args, options) {
  const result = spawnSync(command, args, { encoding: 'utf8', maxBuffer: 1 << 28, ...options });
  return { status: result.status, signal: result.signal, output: `${result.stdout}${result.stderr}`, error: result.error };
}

function configure() {
  const result = run(nodeGyp, [`--directory=${copyDir}`, `--nodedir=${nodePrefix}`, 'configure', '--', '-Dbuild_tests=true']);
  if (result.status !== 0) stop(`configuring failed:\n${result.output.slice(-4000)}`);
}

function make(target) {
  return run('make', ['-C', join(copyDir, 'build'), `-j${availableParallelism()}`, target], {
    env: { ...process.env, BUILDTYPE: 'Release' },
  });
}

/** What the mutant's tests run. */
function build({ vitest, control }) {
  if (vitest !== undefined) return { status: 0 };
  if (control === undefined) return make('native_tests');
  const addon = make('csnap');
  return addon.status === 0 ? run('npx', ['--no-install', 'tsc', '-p', 'tsconfig.json'], { cwd: copyDir }) : addon;
}

/** { red, how }: what the mutant's test says about the program as it was last built. */
function runTests(mutant) {
  const options = { cwd: copyDir, env: { ...process.env, ...mutant.env }, timeout: SECONDS_MAX * 1000, killSignal: 'SIGKILL' };
  if (mutant.vitest !== undefined) return runVitest(mutant, [mutant.vitest.split('/')[1], mutant.vitest], options);
  if (mutant.control !== undefined) {
    return runVitest(mutant, ['failover', 'controls', '--testNamePattern', `${mutant.control}:`], options);
  }
  const result =
    mutant.command !== undefined
      ? run('bash', ['-euc', mutant.command], options)
      : run(join(copyDir, 'build/Release/native_tests'), ['--no-colors=true', `--test-case=${mutant.tests}`], options);
  if (result.error?.code === 'ETIMEDOUT') return { red: true, how: `hung for ${SECONDS_MAX} s`, output: result.output };
  if (result.error) stop(`${mutant.name}: ${result.error.message}`);
  if (mutant.command === undefined && result.status === 0) {
    const ran = Number(/test cases: +(\d+)/.exec(result.output)?.[1] ?? 0);
    if (ran === 0) stop(`${mutant.name}: no test matches "${mutant.tests}"`);
  }
  const how = result.signal ? `ended by ${result.signal}` : `status ${result.status}`;
  return { red: result.status !== 0, how, output: result.output };
}

function runVitest(mutant, words, options) {
  const result = run('npx', ['--no-install', 'vitest', 'run', '--project', ...words], options);
  if (result.error) stop(`${mutant.name}: ${result.error.message}`);
  if (!/Tests .*(passed|failed)/.test(result.output)) stop(`${mutant.name}: no test ran:\n${result.output.slice(-2000)}`);
  const why = /(?:AssertionError|Error): (.*)/.exec(stripVTControlCharacters(result.output))?.[1] ?? '';
  return { red: result.status !== 0, how: `status ${result.status}${why && `: ${why.slice(0, 200)}`}`, output: result.output };
}

/** The tests of all mutants must be green before one of them is changed (M2). */
function checkGreen(mutants) {
  const seen = new Set();
  for (const mutant of mutants) {
    const key = JSON.stringify([mutant.tests, mutant.command, mutant.vitest, mutant.control, mutant.env]);
    if (seen.has(key)) continue;
    seen.add(key);
    const built = build(mutant);
    if (built.status !== 0) stop(`the unchanged program does not build:\n${built.output.slice(-4000)}`);
    const { red, how, output } = runTests(mutant);
    if (red) stop(`the unchanged program fails ${mutant.tests ?? mutant.command ?? mutant.vitest ?? mutant.control} (${how}):\n${output.slice(-4000)}`);
  }
}

function apply(mutant) {
  if (!existsSync(join(projectDir, mutant.file))) return `there is no ${mutant.file}`;
  const text = readFileSync(join(projectDir, mutant.file), 'utf8');
  const count = text.split(mutant.find).length - 1;
  if (count !== 1) return `its text occurs ${count} times in ${mutant.file}`;
  put(mutant.file, text.replace(mutant.find, () => mutant.replace));
  return '';
}

function restore(path) {
  if (existsSync(join(projectDir, path))) put(path, readFileSync(join(projectDir, path), 'utf8'));
}

/** '' and how it was killed, or why it was not. */
function judge(mutant) {
  const problem = apply(mutant);
  if (problem) return { killed: false, how: problem };
  const built = build(mutant);
  if (built.status !== 0) return { killed: false, how: `it does not build:\n${built.output.slice(-2000)}` };
  const { red, how } = runTests(mutant);
  return { killed: red, how: red ? how : 'its test stayed green' };
}

const all = readMutants();
for (const name of wanted) if (!all.some((mutant) => mutant.name === name)) stop(`no mutant ${name}`);
const mutants = wanted.length ? all.filter((mutant) => wanted.includes(mutant.name)) : all;
if (mutants.length === 0) stop('there is no mutant');

console.log('== building the unchanged program');
copyTree();
configure();
checkGreen(mutants);

let killed = 0;
for (const mutant of mutants) {
  const started = Date.now();
  const { killed: dead, how } = judge(mutant);
  restore(mutant.file);
  if (dead) killed++;
  const seconds = Math.round((Date.now() - started) / 1000);
  console.log(`${dead ? 'killed' : 'FAILED'}  ${mutant.rule.padEnd(3)} ${mutant.name}: ${mutant.title} (${how}, ${seconds} s)`);
}
console.log(`${killed} passed, ${mutants.length - killed} failed`);
process.exitCode = killed === mutants.length ? 0 : 1;
