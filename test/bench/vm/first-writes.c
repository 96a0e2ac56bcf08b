// 4 KiB direct writes to a block device at the offsets that stdin lists, so many threads at it that DEPTH are under way;
// then a sync. A program of our own, not fio: what follows in the background counts too, so start and end must be on the
// clock of whoever watches that, without the seconds that a larger program takes to start in an emulated machine.
// Prints `START ACKNOWLEDGED FLUSHED`, seconds of CLOCK_MONOTONIC. Built and called by guest.mjs's host, in the machine:
//     first-writes DEVICE DEPTH <OFFSETS
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK_BYTES = 4096, WRITES_MAX = 1 << 20, DEPTH_MAX = 256 };

static int device;
static off_t offsets[WRITES_MAX];
static size_t count;
static atomic_size_t next;

static void fail(const char* what) {
  fprintf(stderr, "first-writes: %s: %s\n", what, strerror(errno));
  exit(1);
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void* writer(void* unused) {
  void* block;
  (void)unused;
  if (posix_memalign(&block, BLOCK_BYTES, BLOCK_BYTES) != 0) fail("no memory");
  for (;;) {
    const size_t i = atomic_fetch_add(&next, 1);
    if (i >= count) break;
    memset(block, (int)(i % 255) + 1, BLOCK_BYTES);
    if (pwrite(device, block, BLOCK_BYTES, offsets[i]) != BLOCK_BYTES) fail("write");
  }
  free(block);
  return NULL;
}

int main(int argc, char** argv) {
  const int depth = argc == 3 ? atoi(argv[2]) : 0;
  if (depth < 1 || depth > DEPTH_MAX) {
    fprintf(stderr, "usage: first-writes DEVICE DEPTH <OFFSETS\n");
    return 2;
  }
  long long offset;
  while (count < WRITES_MAX && scanf("%lld", &offset) == 1) offsets[count++] = offset;
  device = open(argv[1], O_WRONLY | O_DIRECT | O_CLOEXEC);
  if (device < 0) fail(argv[1]);
  pthread_t threads[DEPTH_MAX];
  const double start = now();
  for (int i = 0; i < depth; i++)
    if ((errno = pthread_create(&threads[i], NULL, writer, NULL)) != 0) fail("thread");
  for (int i = 0; i < depth; i++) pthread_join(threads[i], NULL);
  const double acknowledged = now();
  if (fsync(device) != 0) fail("sync");
  printf("%.6f %.6f %.6f\n", start, acknowledged, now());
  return 0;
}
