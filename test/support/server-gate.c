/*
 * Preloaded into a csnap server by server-gate.ts: every fdatasync asks at the unix socket $CSNAP_TEST_GATE
 * before it begins, "PATH\n", and goes on when a byte comes back (or nobody listens); the byte 'e' makes it fail.
 * With $CSNAP_TEST_GATE_WRITES set every pwrite asks as well, "write PATH\n". So a test sees each sync or write, and decides when it
 * happens and whether: what waits here is to the server as if it waited in the device.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* Whether it is to be done. `what` comes before the path. */
static int ask(int fd, const char *what) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  char link[64], path[4096], answer = 0;
  ssize_t length;
  int gate;
  const char *name = getenv("CSNAP_TEST_GATE");
  if (name == NULL || strlen(name) >= sizeof address.sun_path) return 1;
  strcpy(address.sun_path, name);
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const size_t before = strlen(what);
  memcpy(path, what, before);
  length = readlink(link, path + before, sizeof path - 1 - before);
  if (length < 0) return 1;
  length += (ssize_t)before;
  path[length++] = '\n';
  gate = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (gate < 0) return 1;
  if (connect(gate, (struct sockaddr *)&address, sizeof address) == 0 &&
      send(gate, path, (size_t)length, MSG_NOSIGNAL) == length)
    while (recv(gate, &answer, 1, 0) < 0 && errno == EINTR) continue;
  close(gate);
  return answer != 'e';
}

int fdatasync(int fd) {
  int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
  if (ask(fd, "")) return real(fd);
  errno = EIO;
  return -1;
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset) {
  ssize_t (*real)(int, const void *, size_t, off64_t) =
      (ssize_t (*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64");
  if (getenv("CSNAP_TEST_GATE_WRITES") == NULL || ask(fd, "write ")) return real(fd, bytes, length, offset);
  errno = EIO;
  return -1;
}
