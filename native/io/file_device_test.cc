// FileDevice on real files, and on loop devices where this machine lets us have one.
#include "io/file_device.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cstring>
#include <vector>

#include "base/units.h"
#include "io/test_directory.h"
#include "io/test_loop.h"
#include "testing/rng.h"

namespace csnap {
namespace {

using Bytes = std::vector<uint8_t>;

void make_file(const std::string& path, uint64_t bytes) {
  const UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  REQUIRE(fd);
  REQUIRE(ftruncate(fd.get(), static_cast<off_t>(bytes)) == 0);
}

std::unique_ptr<FileDevice> must_open(const std::string& path, FileDeviceOptions options = {}) {
  auto opened = FileDevice::open(path, options);
  REQUIRE_MESSAGE(opened.ok(), opened.status().to_text());
  return opened.take();
}

Status open_status(const std::string& path, bool read_only = false) {
  FileDeviceOptions options;
  options.read_only = read_only;
  return FileDevice::open(path, options).status();
}

Bytes read_all(FileDevice& device, uint64_t offset, size_t length) {
  Bytes bytes(length, 0xee);
  const Status status = device.read(offset, bytes.data(), length);
  CHECK_MESSAGE(status.ok(), status.to_text());
  return bytes;
}

// Runs `body` in another process; its exit status.
template <typename Body>
int in_child(Body body) {
  const pid_t pid = fork();
  if (pid == 0) _exit(body());
  int status = 0;
  REQUIRE(waitpid(pid, &status, 0) == pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// ---- Opening -----------------------------------------------------------------------------------

TEST_CASE("what can't be served is refused in one line that names it") {
  const TestDirectory directory;
  const std::string missing = directory.file("missing");
  CHECK(open_status(missing).code() == Code::NOT_FOUND);
  CHECK(open_status(missing).message().find(missing) == 0);
  CHECK(open_status(directory.file(".")).code() == Code::INVALID_ARGUMENT);
  CHECK(open_status("/dev/null").code() == Code::INVALID_ARGUMENT);
  const std::string fifo = directory.file("fifo");
  REQUIRE(mkfifo(fifo.c_str(), 0600) == 0);
  CHECK(open_status(fifo).code() == Code::INVALID_ARGUMENT);
}

TEST_CASE("one opener for writing; looks share among themselves and exclude a writer (FD1)") {
  const TestDirectory directory;
  const std::string path = directory.file("origin");
  make_file(path, 8192);
  {
    const auto device = must_open(path);
    const Status second = open_status(path);
    CHECK(second.code() == Code::BUSY);
    CHECK(second.message().find("this process") != std::string::npos);
    CHECK(open_status(path, true).code() == Code::BUSY);
    FileDeviceOptions unlocked;
    unlocked.read_only = true;
    unlocked.lock = false;
    CHECK(FileDevice::open(path, unlocked).ok());
    // Another process is refused too, and told who it is.
    const pid_t parent = getpid();
    const int refused = in_child([&] {
      // Inherited: a child whose number is below its parent's would be named as the user itself.
      close(device->fd());
      const Status status = open_status(path);
      const bool named =
          status.message().find("process " + std::to_string(parent) + " (") != std::string::npos;
      return status.code() == Code::BUSY && named ? 0 : 1;
    });
    CHECK(refused == 0);
  }
  {
    FileDeviceOptions look;
    look.read_only = true;
    const auto first = must_open(path, look);
    const auto second = must_open(path, look);
    CHECK(open_status(path).code() == Code::BUSY);
  }
  CHECK(open_status(path).ok());
}

TEST_CASE("a child that is executed keeps no lock (FD2)") {
  const TestDirectory directory;
  const std::string path = directory.file("origin");
  make_file(path, 8192);
  auto device = must_open(path);
  CHECK((fcntl(device->fd(), F_GETFD) & FD_CLOEXEC) != 0);
}

TEST_CASE("a size that is no multiple of a sector is rounded down") {
  const TestDirectory directory;
  const std::string path = directory.file("origin");
  for (const uint64_t bytes : {0, 1, 511, 512, 1000, 1024}) {
    make_file(path, bytes);
    CHECK(must_open(path)->size_bytes() == round_down(bytes, 512));
  }
}

TEST_CASE("a file behind a loop device is refused, and so is a loop device of a file in use") {
  const TestDirectory directory;
  const std::string path = directory.file("origin");
  make_file(path, 1 << 20);
  const TestLoop loop(path);
  if (!loop.ok()) {
    MESSAGE("skipped: no loop devices here");
    return;
  }
  const Status file = open_status(path);
  CHECK(file.code() == Code::BUSY);
  CHECK(file.message().find(loop.path()) != std::string::npos);
  const auto device = must_open(loop.path());
  CHECK(device->is_block());
  CHECK(device->size_bytes() == 1 << 20);
  CHECK(open_status(loop.path()).code() == Code::BUSY);
  CHECK(same_object(loop.path(), loop.path()));
  CHECK(!same_object(loop.path(), path));
}

// ---- Reading and writing -----------------------------------------------------------------------

TEST_CASE("what is written is read, in one piece or in small folios") {
  const uint64_t seed = seed_from_environment(6);
  CAPTURE(seed);
  Rng rng(seed);
  const TestDirectory directory;
  for (const bool small_folios : {false, true}) {
    const std::string path = directory.file(small_folios ? "small" : "large");
    constexpr size_t kBytes = 1 << 20;
    make_file(path, kBytes);
    FileDeviceOptions options;
    options.small_folios = small_folios;
    const auto device = must_open(path, options);
    Bytes model(kBytes, 0);
    for (int round = 0; round < 200; round++) {
      const size_t offset = rng.below(kBytes);
      const size_t length = 1 + rng.below(std::min<size_t>(kBytes - offset, 200000));
      const Bytes data(length, static_cast<uint8_t>(rng.next()));
      CHECK(device->write(offset, data.data(), length).ok());
      std::memcpy(&model[offset], data.data(), length);
    }
    CHECK(device->sync().ok());
    CHECK(read_all(*device, 0, kBytes) == model);
    Bytes quick(4096);
    if (device->read_nowait(8192, quick.data(), quick.size()))
      CHECK(std::memcmp(quick.data(), &model[8192], quick.size()) == 0);
  }
}

TEST_CASE("a range is lent only while the page cache holds all of it") {
  const TestDirectory directory;
  const std::string path = directory.file("origin");
  make_file(path, 1 << 20);
  const auto device = must_open(path);
  const Bytes data(65536, 1);
  CHECK(device->cached_file(0, 65536) == -1);
  REQUIRE(device->write(0, data.data(), data.size()).ok());
  const int file = device->cached_file(0, 65536);
  if (file < 0) {
    MESSAGE("not run: this kernel has no cachestat(2)");
    return;
  }
  Bytes read(4096);
  CHECK(pread(file, read.data(), read.size(), 61440) == 4096);
  CHECK(read == Bytes(4096, 1));
  CHECK(device->cached_file(512, 1) == file);
  CHECK(device->cached_file(512, 65536) == -1);
  CHECK(device->cached_file(65536, 512) == -1);
  REQUIRE(device->sync().ok());
  device->drop_cache();
  CHECK(device->cached_file(0, 65536) == -1);
}

TEST_CASE("a read past the end is short, a write past the allowed size is NO_SPACE") {
  const TestDirectory directory;
  const std::string path = directory.file("origin");
  make_file(path, 8192);
  const auto device = must_open(path);
  Bytes data(8192);
  CHECK(device->read(4096, data.data(), 8192).code() == Code::SHORT_IO);
  CHECK(!device->read_nowait(4096, data.data(), 8192));
  const int failed = in_child([&] {
    signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {8192, 8192};
    setrlimit(RLIMIT_FSIZE, &limit);
    const Status status = device->write(8192, data.data(), 512);
    return status.code() == Code::NO_SPACE && status.error_number() == EFBIG ? 0 : 1;
  });
  CHECK(failed == 0);
}

TEST_CASE("after a failed sync every later one fails (D3); many at once share one") {
  const TestDirectory directory;
  const std::string path = directory.file("origin");
  make_file(path, 8192);
  const auto device = must_open(path);
  std::vector<std::unique_ptr<Thread>> threads;
  std::atomic<int> synced{0};
  for (int i = 0; i < 8; i++) {
    threads.push_back(std::make_unique<Thread>());
    threads.back()->start("sync", [&] {
      for (int n = 0; n < 50; n++)
        if (device->sync().ok()) synced++;
    });
  }
  for (auto& thread : threads) thread->join();
  CHECK(synced == 8 * 50);
  // A descriptor that can't be synced in the place of the file's, and then the file's again.
  int fds[2];
  REQUIRE(pipe2(fds, O_CLOEXEC) == 0);
  const UniqueFd near(fds[0]);
  const UniqueFd far(fds[1]);
  const UniqueFd saved(fcntl(device->fd(), F_DUPFD_CLOEXEC, 3));
  REQUIRE(dup3(near.get(), device->fd(), O_CLOEXEC) >= 0);
  CHECK(!device->sync().ok());
  REQUIRE(dup3(saved.get(), device->fd(), O_CLOEXEC) >= 0);
  CHECK(!device->sync().ok());
}

// ---- Zeroing and holes -------------------------------------------------------------------------

// Any range, on what zero() can do here; sectors outside stay as they are.
void check_zeroing(FileDevice& device, uint64_t unit) {
  const uint64_t seed = seed_from_environment(7);
  CAPTURE(seed);
  Rng rng(seed);
  const size_t bytes = device.size_bytes();
  for (int round = 0; round < 60; round++) {
    Bytes model(bytes, 0xab);
    CHECK(device.write(0, model.data(), bytes).ok());
    const uint64_t offset = rng.below(bytes / unit) * unit;
    const uint64_t length = (1 + rng.below((bytes - offset) / unit)) * unit;
    const uint64_t kind = rng.below(3);
    if (kind == 2) {
      const Status status = device.discard(offset, length);
      if (!status.ok()) {
        CHECK(status.code() == Code::NOT_SUPPORTED);
        continue;
      }
      const Bytes content = read_all(device, 0, bytes);
      for (size_t i = 0; i < bytes; i++) {
        const bool inside = i >= offset && i < offset + length;
        if (content[i] != 0xab && !(inside && content[i] == 0)) FAIL("discard changed " << i);
      }
      continue;
    }
    const Status status =
        device.zero(offset, length, kind == 0 ? ZeroMode::ALLOW_HOLE : ZeroMode::KEEP_ALLOCATED);
    if (!status.ok()) {
      CHECK(status.code() == Code::NOT_SUPPORTED);
      continue;
    }
    std::memset(&model[offset], 0, length);
    CHECK(read_all(device, 0, bytes) == model);
  }
}

TEST_CASE("zeroing a file: any byte range, holes where allowed, no holes where not") {
  const TestDirectory directory;
  const std::string path = directory.file("origin");
  make_file(path, 1 << 20);
  const auto device = must_open(path);
  check_zeroing(*device, 1);
  const Bytes data(1 << 20, 1);
  CHECK(device->write(0, data.data(), data.size()).ok());
  CHECK(device->sync().ok());
  if (device->zero(0, 1 << 19, ZeroMode::ALLOW_HOLE).ok()) {
    const DeviceExtent hole = device->extent_at(0, 1 << 20);
    CHECK(hole.hole);
    CHECK(hole.length_bytes == 1 << 19);
    const DeviceExtent rest = device->extent_at(1 << 19, 1 << 19);
    CHECK(!rest.hole);
    CHECK(rest.length_bytes == 1 << 19);
  }
  if (device->zero(1 << 19, 1 << 19, ZeroMode::KEEP_ALLOCATED).ok()) {
    struct stat after;
    REQUIRE(fstat(device->fd(), &after) == 0);
    CHECK(after.st_blocks * 512 >= 1 << 19);
    CHECK(after.st_size == 1 << 20);
  }
}

TEST_CASE("zeroing a block device, unaligned edges included") {
  const TestDirectory directory;
  const std::string path = directory.file("origin");
  make_file(path, 1 << 20);
  const TestLoop loop(path);
  if (!loop.ok()) {
    MESSAGE("skipped: no loop devices here");
    return;
  }
  const auto device = must_open(loop.path());
  check_zeroing(*device, 1);
  CHECK(device->extent_at(0, 4096).length_bytes == 4096);
  CHECK(!device->extent_at(0, 4096).hole);
  CHECK(device->sync().ok());
}

TEST_CASE("extents of a sparse file are contiguous and tell holes truly") {
  const TestDirectory directory;
  const std::string path = directory.file("origin");
  make_file(path, 1 << 20);
  const auto device = must_open(path);
  const Bytes data(65536, 1);
  CHECK(device->write(1 << 18, data.data(), data.size()).ok());
  uint64_t data_bytes = 0;
  for (uint64_t offset = 0; offset < (1 << 20);) {
    const DeviceExtent extent = device->extent_at(offset, (1 << 20) - offset);
    REQUIRE(extent.length_bytes > 0);
    if (extent.hole)
      CHECK(read_all(*device, offset, extent.length_bytes) == Bytes(extent.length_bytes, 0));
    else
      data_bytes += extent.length_bytes;
    offset += extent.length_bytes;
  }
  CHECK(data_bytes >= 65536);
  CHECK(data_bytes < (1 << 20));
}

// ---- Allocation --------------------------------------------------------------------------------

TEST_CASE("a store file is allocated in full, holes of an older file too") {
  const TestDirectory directory;
  const std::string path = directory.file("store");
  bool created = false;
  uint64_t last = 0;
  const auto progress = [&](uint64_t done, uint64_t total) {
    CHECK(done > last);
    CHECK(total == 3 << 20);
    last = done;
  };
  CHECK(allocate_in_full(path, 3 << 20, progress, created).ok());
  CHECK(created);
  CHECK(last == 3 << 20);
  struct stat info;
  REQUIRE(stat(path.c_str(), &info) == 0);
  CHECK(info.st_size == 3 << 20);
  CHECK(info.st_blocks * 512 >= 3 << 20);

  const std::string sparse = directory.file("sparse");
  make_file(sparse, 5 << 20);
  CHECK(must_open(sparse)->write(4096, "kept", 4).ok());
  CHECK(allocate_in_full(sparse, 2 << 20, nullptr, created).ok());
  CHECK(!created);
  REQUIRE(stat(sparse.c_str(), &info) == 0);
  CHECK(info.st_size == 2 << 20);
  CHECK(info.st_blocks * 512 >= 2 << 20);
  CHECK(std::memcmp(read_all(*must_open(sparse), 4096, 4).data(), "kept", 4) == 0);
  CHECK(sync_directory_of(path).ok());
}

TEST_CASE("an allocation that does not fit leaves nothing behind") {
  const TestDirectory directory;
  const std::string path = directory.file("store");
  const std::string older = directory.file("older");
  make_file(older, 4096);
  const int failed = in_child([&] {
    signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {1 << 20, 1 << 20};
    setrlimit(RLIMIT_FSIZE, &limit);
    bool created = true;
    const Status fresh = allocate_in_full(path, 2 << 20, nullptr, created);
    if (fresh.code() != Code::NO_SPACE || created) return 1;
    const Status longer = allocate_in_full(older, 2 << 20, nullptr, created);
    return longer.code() == Code::NO_SPACE ? 0 : 2;
  });
  CHECK(failed == 0);
  struct stat info;
  CHECK(stat(path.c_str(), &info) != 0);
  REQUIRE(stat(older.c_str(), &info) == 0);
  CHECK(info.st_size == 4096);
}

}  // namespace
}  // namespace csnap
