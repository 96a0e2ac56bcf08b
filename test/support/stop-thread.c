/*
 * stop-thread TID: stops one thread, whose process otherwise goes on, until its standard input ends. Says "stopped". Used by
 * stop-thread.ts.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
  const pid_t thread = argc == 2 ? atoi(argv[1]) : 0;
  char byte;
  if (thread <= 0) return 2;
  if (ptrace(PTRACE_SEIZE, thread, 0, 0) != 0 || ptrace(PTRACE_INTERRUPT, thread, 0, 0) != 0 ||
      waitpid(thread, NULL, __WALL) != thread) {
    perror("stop-thread");
    return 1;
  }
  puts("stopped");
  fflush(stdout);
  while (read(0, &byte, 1) > 0) continue;
  return ptrace(PTRACE_DETACH, thread, 0, 0) == 0 ? 0 : 1;
}
