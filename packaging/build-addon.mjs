// Builds the native addon when the package is installed (npm runs it as "install"). Uses the headers
// that came with the running Node, so that nothing is downloaded; only where there are none is it
// left to node-gyp to fetch them.
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';

const prefix = dirname(dirname(process.execPath));
const header = join(prefix, 'include', 'node', 'node_version.h');

function headersMatch() {
  if (!existsSync(header)) return false;
  const text = readFileSync(header, 'utf8');
  const part = (name) => text.match(new RegExp(`#define NODE_${name}_VERSION (\\d+)`))?.[1];
  return `${part('MAJOR')}.${part('MINOR')}.${part('PATCH')}` === process.versions.node;
}

const options = ['rebuild', `--jobs=${availableParallelism()}`];
if (headersMatch()) options.push(`--nodedir=${prefix}`);
// npm puts node-gyp into the PATH of this script.
const { status, error } = spawnSync('node-gyp', options, { stdio: 'inherit' });
if (error || status !== 0) {
  console.error(
    'csnap: the native addon was not built. It needs g++ (12 or newer), make and python3:\n' +
      '  apt-get install g++ make python3',
  );
  process.exit(1);
}
