// Writes packaging/man/csnap.1 from what the commands say in their own help, so that both say the same:
// `npm run build:ts && node scripts/lib/man-page.mjs`. test/unit/packaging.test.ts imports manPage() to
// see that the page is up to date.
import { writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const target = fileURLToPath(new URL('../../packaging/man/csnap.1', import.meta.url));

/** Text as roff takes it: nothing in it is a request or an escape. */
function escape(text) {
  return text
    .replaceAll('\\', '\\e')
    .replaceAll('-', '\\-')
    .replaceAll('…', '...')
    .replace(/^(?=[.'])/gm, '\\&');
}

/** An argument of a macro. */
const quoted = (text) => `"${escape(text).replaceAll('"', '\\(dq')}"`;

/** `VOLUME` stands for something, `--force` is written as it is. */
function option(flags) {
  return escape(flags)
    .split(/(?=[<[])/)
    .map((part) => (/^[<[]/.test(part) ? `\\fI${part}\\fR` : `\\fB${part}\\fR`))
    .join('');
}

function optionList(options, help) {
  return options.flatMap((one) => ['.TP', option(one.flags), escape(sentence(help.optionDescription(one)))]);
}

function sentence(text) {
  const first = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.)?]$/.test(first) ? first : `${first}.`;
}

/** The lines behind "Examples:" of a command's help. */
function examplesOf(command) {
  let text = '';
  const former = command.configureOutput();
  command.configureOutput({ ...former, writeOut: (piece) => { text += piece; } });
  command.outputHelp();
  command.configureOutput(former);
  const [, lines = ''] = text.split('\nExamples:\n');
  return lines.trim().split('\n').filter((line) => line !== '').map((line) => line.trim());
}

function commandSection(command, help, isOwn) {
  const usage = help.commandUsage(command).replace(' [options]', '');
  const own = help.visibleCommands(command).filter(isOwn);
  const options = help.visibleOptions(command).filter((one) => one.long !== '--help');
  const lines = [`.SS ${quoted(usage)}`, escape(sentence(command.description() || command.summary()))];
  lines.push(...optionList(options, help));
  const examples = examplesOf(command);
  if (examples.length > 0) lines.push('.PP', 'Examples:', '.PP', '.nf', '.RS', ...examples.map(escape), '.RE', '.fi');
  return [...lines, ...own.flatMap((sub) => commandSection(sub, help, isOwn))];
}

const environment = [
  ['CSNAP_STATE_DIR', 'The state directory, where --state-dir is not given.'],
  ['CSNAP_RUN_DIR', 'The directory of sockets.'],
  ['NO_COLOR', 'No colour, also on a terminal.'],
  ['CSNAP_DEBUG', 'Shows where an internal error came from.'],
];

const files = [
  ['/var/lib/csnap, else $XDG_STATE_HOME/csnap', 'State: definitions of volumes (volumes/NAME.toml), broker, attachments.'],
  ['/run/csnap, else $XDG_RUNTIME_DIR/csnap', 'Sockets: NAME.sock serves NBD, NAME.control is the control API (HTTP).'],
  ['/etc/csnap/csnap.toml', 'Settings.'],
  ['/etc/csnap/attach/NAME.conf', 'CSNAP_ATTACH_OPTIONS of the unit csnap-attach@NAME.service.'],
];

const statuses = [
  ['0', 'Done.'],
  ['1', 'Failed: one line on stderr says what failed, on which object, why, and what to do.'],
  ['2', 'Wrong usage.'],
];

const table = (rows) => rows.flatMap(([term, text]) => ['.TP', `.B ${quoted(term)}`, escape(text)]);

/** The whole page. `program` is commander's. */
export function manPage(program, version) {
  const help = program.createHelp();
  const isOwn = (command) => command.name() !== 'help';
  const commands = help.visibleCommands(program).filter(isOwn);
  const global = program.options.filter((one) => one.long !== '--help');
  const lines = [
    '.\\" Written by scripts/lib/man-page.mjs from the help of the commands: change that instead.',
    `.TH CSNAP 1 "" ${quoted(`csnap ${version}`)} "User Commands"`,
    '.SH NAME',
    escape('csnap - snapshots of a disk image or block device, served over NBD'),
    '.SH SYNOPSIS',
    '.B csnap',
    '.RI [ options ]',
    '.I command',
    '.RI [ arguments ]',
    '.SH DESCRIPTION',
    escape(program.description()),
    '.PP',
    'A volume is an origin, the image or device whose history is kept, and a store, which keeps what',
    'was overwritten since a snapshot.',
    'A snapshot is named',
    `.IR volume@name .`,
    escape('Sizes take 4096, 16k, 1G (powers of 1024).'),
    'What lists or reports takes',
    `.BR ${escape('--json')} .`,
    '.SH OPTIONS',
    ...optionList(global, help),
    '.TP',
    option('--help'),
    escape('Show help, of csnap or of a command.'),
    '.SH COMMANDS',
    ...commands.flatMap((command) => commandSection(command, help, isOwn)),
    '.SH ENVIRONMENT',
    ...table(environment),
    '.SH FILES',
    ...table(files),
    '.SH EXIT STATUS',
    ...table(statuses),
    '.SH SEE ALSO',
    '.BR nbdinfo (1),',
    `.BR ${escape('nbd-client')} (8),`,
    '.BR systemd.unit (5)',
  ];
  return `${lines.join('\n')}\n`;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { buildProgram } = await import('../../dist/cli/program.js');
  const { version } = await import('../../dist/volume/version.js');
  writeFileSync(target, manPage(buildProgram(), version));
}
