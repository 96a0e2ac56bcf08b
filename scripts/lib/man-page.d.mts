// Types of man-page.mjs, for the test that imports it.
import type { Command } from 'commander';

export function manPage(program: Command, version: string): string;
