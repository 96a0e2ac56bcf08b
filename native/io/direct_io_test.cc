// Devices opened `direct`, on files and on loop devices with blocks of 512 and 4096 bytes: D1-D4
// for any offset, length and memory, FD4 and the invariants of DirectIo.
#include "io/direct_io.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "base/units.h"
#include "io/direct_test_rig.h"
#include "testing/rng.h"

namespace csnap {
namespace {

constexpr long kTmpfsMagic = 0x01021994;

// Pages of the file that the page cache holds.
size_t resident_pages(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  REQUIRE(fd);
  void* map = mmap(nullptr, kBytes, PROT_READ, MAP_SHARED, fd.get(), 0);
  REQUIRE(map != MAP_FAILED);
  Bytes pages(kBytes / static_cast<size_t>(sysconf(_SC_PAGESIZE)));
  REQUIRE(mincore(map, kBytes, pages.data()) == 0);
  REQUIRE(munmap(map, kBytes) == 0);
  size_t count = 0;
  for (const uint8_t page : pages) count += page & 1;
  return count;
}

// ---- One at a time -----------------------------------------------------------------------------

// Memory that starts anywhere, or aligned to a page.
class Memory {
 public:
  Memory(Rng& rng, size_t length) : bytes_(length + 2 * 4096) {
    const auto start = reinterpret_cast<uintptr_t>(bytes_.data());
    const size_t to_page = (4096 - start % 4096) % 4096;
    data_ = bytes_.data() + to_page + (rng.coin() ? 0 : rng.below(4096));
  }
  uint8_t* data() { return data_; }

 private:
  Bytes bytes_;
  uint8_t* data_;
};

// Any range: mostly short, now and then longer than a buffer, edges aligned or not.
void pick_range(Rng& rng, size_t& offset, size_t& length) {
  const size_t longest = rng.one_in(4) ? kBytes : 20000;
  length = 1 + rng.below(longest);
  offset = rng.below(kBytes - length + 1);
  if (rng.coin()) offset = round_down(offset, 4096);
  if (rng.coin()) length = std::min<size_t>(round_up(length, 512), kBytes - offset);
}

void check_against_model(const std::string& path, uint64_t seed) {
  Rng rng(seed);
  auto device = must_open_direct(path);
  Bytes model(kBytes, 0);
  for (int round = 0; round < 400; round++) {
    size_t offset, length;
    pick_range(rng, offset, length);
    CAPTURE(round);
    CAPTURE(offset);
    CAPTURE(length);
    Memory memory(rng, length);
    const uint64_t kind = rng.below(20);
    if (kind < 9) {
      for (size_t i = 0; i < length; i++)
        memory.data()[i] = static_cast<uint8_t>(offset + i * 7 + static_cast<size_t>(round));
      REQUIRE(device->write(offset, memory.data(), length).ok());
      std::memcpy(&model[offset], memory.data(), length);
    } else if (kind < 15) {
      REQUIRE(device->read(offset, memory.data(), length).ok());
      REQUIRE(std::memcmp(memory.data(), &model[offset], length) == 0);
    } else if (kind < 17) {
      const Status status = device->zero(
          offset, length, rng.coin() ? ZeroMode::ALLOW_HOLE : ZeroMode::KEEP_ALLOCATED);
      if (status.ok())
        std::memset(&model[offset], 0, length);
      else
        REQUIRE(status.code() == Code::NOT_SUPPORTED);
    } else if (kind == 17) {
      const Status status = device->discard(offset, length);
      REQUIRE((status.ok() || status.code() == Code::NOT_SUPPORTED));
      REQUIRE(device->read(offset, memory.data(), length).ok());
      for (size_t i = 0; i < length; i++) {
        if (memory.data()[i] != 0) REQUIRE(memory.data()[i] == model[offset + i]);
        model[offset + i] = memory.data()[i];
      }
    } else if (kind == 18) {
      const DeviceExtent extent = device->extent_at(offset, length);
      REQUIRE(extent.length_bytes > 0);
      REQUIRE(extent.length_bytes <= length);
      for (size_t i = 0; extent.hole && i < extent.length_bytes; i++)
        REQUIRE(model[offset + i] == 0);
    } else if (rng.coin()) {
      CHECK(!device->read_nowait(offset, memory.data(), length));
      device->start_writeback();
      device->drop_cache();
      CHECK(device->sync().ok());
    } else {
      device.reset();
      device = must_open_direct(path);
    }
  }
  CHECK(device->sync().ok());
  CHECK(read_medium(path) == model);
}

TEST_CASE("direct I/O: any range and memory agrees with a model, on files and block devices") {
  const uint64_t seed = seed_from_environment(0xd10);
  MESSAGE("CSNAP_SEED=" << seed);
  on_every_kind([&](const std::string& path) {
    CAPTURE(path);
    check_against_model(path, seed);
  });
}

// As where nobody says how much is needed, or where it is much.
TEST_CASE("direct I/O: any alignment that is asked for is kept (DIO1)") {
  const uint64_t seed = seed_from_environment(0xd13);
  MESSAGE("CSNAP_SEED=" << seed);
  const TestDirectory directory;
  const std::string path = directory.file("file");
  make_file(path, kBytes);
  for (const uint64_t unit : {4096, 16384, 65536}) {
    CAPTURE(unit);
    const UniqueFd fd(::open(path.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC));
    if (!fd) {
      MESSAGE("skipped: no O_DIRECT here");
      return;
    }
    const size_t size = round_down(kBytes, unit);
    DirectIo direct(fd.get(), path, size, {unit, unit});
    Rng rng(seed);
    Bytes model(size);
    CHECK(direct.write(0, model.data(), size).ok());
    for (int round = 0; round < 100; round++) {
      const size_t length = 1 + rng.below(rng.coin() ? size : 3000);
      const size_t offset = rng.below(size - length + 1);
      Memory memory(rng, length);
      std::memset(memory.data(), static_cast<int>(1 + rng.below(255)), length);
      REQUIRE(direct.write(offset, memory.data(), length).ok());
      std::memcpy(&model[offset], memory.data(), length);
      Bytes around(std::min<size_t>(length + 10000, size - offset));
      REQUIRE(direct.read(offset, around.data(), around.size()).ok());
      REQUIRE(std::memcmp(around.data(), &model[offset], around.size()) == 0);
    }
    Bytes now(size);
    CHECK(direct.read(0, now.data(), size).ok());
    CHECK(now == model);
  }
}

TEST_CASE("direct I/O: nothing goes beyond the end (DIO3)") {
  on_every_kind([](const std::string& path) {
    const auto device = must_open_direct(path);
    Bytes data(8192, 1);
    CHECK(device->read(kBytes - 100, data.data(), 101).code() == Code::SHORT_IO);
    CHECK(device->write(kBytes - 100, data.data(), 101).code() == Code::NO_SPACE);
    CHECK(device->write(kBytes + 4096, data.data(), 1).code() == Code::NO_SPACE);
    CHECK(device->write(kBytes - 100, data.data(), 100).ok());
    CHECK(device->write(kBytes, data.data(), 0).ok());
  });
}

// ---- The page cache (FD4) ----------------------------------------------------------------------

TEST_CASE("direct I/O: what was cached is written and let go, and nothing new is cached (FD4)") {
  const TestDirectory directory;
  const std::string path = directory.file("file");
  make_file(path, kBytes);
  struct statfs system;
  REQUIRE(statfs(path.c_str(), &system) == 0);
  if (system.f_type == kTmpfsMagic) {
    MESSAGE("skipped: on tmpfs everything is page cache");
    return;
  }
  const Bytes former(kBytes, 0x11);
  {
    auto buffered = FileDevice::open(path, {});
    REQUIRE(buffered.ok());
    CHECK(buffered.value()->write(0, former.data(), kBytes).ok());
  }
  CHECK(resident_pages(path) > 0);
  auto opened = open_direct(path);
  if (opened.status().code() == Code::NOT_SUPPORTED) {
    MESSAGE("skipped: " << opened.status().message());
    return;
  }
  REQUIRE(opened.ok());
  CHECK(resident_pages(path) == 0);
  CHECK(read_medium(path) == former);

  FileDevice& device = *opened.value();
  Bytes model = former;
  const Bytes odd(300001, 0x22);
  CHECK(device.write(777, odd.data(), odd.size()).ok());
  std::memcpy(&model[777], odd.data(), odd.size());
  if (device.zero(5001, 100000, ZeroMode::ALLOW_HOLE).ok()) std::memset(&model[5001], 0, 100000);
  Bytes now(kBytes);
  CHECK(device.read(0, now.data(), kBytes).ok());
  CHECK(now == model);
  CHECK(resident_pages(path) == 0);
  CHECK(read_medium(path) == model);
  CHECK(resident_pages(path) == 0);
}

TEST_CASE("direct I/O: a block device's stale cache is let go (FD4)") {
  const TestDirectory directory;
  const std::string backing = directory.file("behind");
  make_file(backing, kBytes);
  const TestLoop loop(backing, 512, true);
  if (!loop.ok()) {
    MESSAGE("skipped: no loop device with direct I/O here");
    return;
  }
  Bytes bytes(4096);
  const UniqueFd reader(::open(loop.path().c_str(), O_RDWR | O_CLOEXEC));
  REQUIRE(pread(reader.get(), bytes.data(), 4096, 0) == 4096);
  // As another host would: past this device's cache.
  const Bytes other(4096, 0x33);
  const UniqueFd behind(::open(backing.c_str(), O_RDWR | O_CLOEXEC));
  REQUIRE(pwrite(behind.get(), other.data(), 4096, 0) == 4096);
  REQUIRE(fdatasync(behind.get()) == 0);
  const auto device = must_open_direct(loop.path());
  CHECK(device->read(0, bytes.data(), 4096).ok());
  CHECK(bytes == other);
  REQUIRE(pread(reader.get(), bytes.data(), 4096, 0) == 4096);
  CHECK(bytes == other);
}

// ---- Refusals ----------------------------------------------------------------------------------

TEST_CASE("direct I/O: what can't be had is refused with the remedy") {
  const TestDirectory directory;
  const std::string backing = directory.file("behind");
  make_file(backing, 16384 + 512);
  {
    const TestLoop caching(backing);
    if (!caching.ok()) {
      MESSAGE("skipped: no loop devices here");
      return;
    }
    const Status status = open_direct(caching.path()).status();
    CHECK(status.code() == Code::NOT_SUPPORTED);
    CHECK(status.message().find("losetup --direct-io=on " + caching.path()) != std::string::npos);
  }
  const TestLoop uneven(backing, 4096, true);
  if (!uneven.ok()) {
    MESSAGE("skipped: no loop device with direct I/O here");
    return;
  }
  const Status status = open_direct(uneven.path()).status();
  CHECK(status.code() == Code::NOT_SUPPORTED);
  CHECK(status.message().find("multiple of 4096") != std::string::npos);
}

TEST_CASE("direct I/O: a file system in memory takes it or is refused by name") {
  const UniqueFd memory(memfd_create("csnap-test", MFD_CLOEXEC));
  REQUIRE(memory);
  REQUIRE(ftruncate(memory.get(), 8192) == 0);
  const std::string path = "/proc/self/fd/" + std::to_string(memory.get());
  const auto opened = open_direct(path);
  if (opened.ok()) {
    const Bytes data(100, 7);
    CHECK(opened.value()->write(4090, data.data(), data.size()).ok());
    return;
  }
  CHECK(opened.status().code() == Code::NOT_SUPPORTED);
  CHECK(opened.status().message().find(path) == 0);
}

TEST_CASE("direct I/O: a look reads, and writes nothing") {
  on_every_kind([](const std::string& path) {
    auto opened = open_direct(path, true);
    REQUIRE(opened.ok());
    Bytes data(5000, 1);
    CHECK(opened.value()->read(333, data.data(), data.size()).ok());
    CHECK(data == Bytes(5000, 0));
    CHECK(!opened.value()->write(333, data.data(), data.size()).ok());
    CHECK(read_medium(path) == Bytes(kBytes, 0));
  });
}

}  // namespace
}  // namespace csnap
