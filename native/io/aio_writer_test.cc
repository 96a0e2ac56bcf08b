// Writes past the page cache: what a cached read sees of them, and what errors come to.
#include "io/aio_writer.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "base/gate.h"
#include "base/units.h"
#include "io/file_device.h"
#include "io/test_directory.h"
#include "io/test_loop.h"
#include "testing/rng.h"

namespace csnap {
namespace {

constexpr uint64_t kBytes = uint64_t{8} << 20;

struct Free {
  void operator()(uint8_t* bytes) const { std::free(bytes); }
};
using Aligned = std::unique_ptr<uint8_t, Free>;

Aligned aligned(size_t bytes) {
  return Aligned(static_cast<uint8_t*>(std::aligned_alloc(kBlockBytes, bytes)));
}

std::string image(const TestDirectory& directory) {
  const std::string path = directory.file("image");
  bool created = false;
  REQUIRE(allocate_in_full(path, kBytes, {}, created).ok());
  return path;
}

TEST_CASE("uncached writes: cached reads see each of them, more at once than the kernel takes") {
  const TestDirectory directory;
  FileDeviceOptions options;
  options.uncached_writes = true;
  auto device = FileDevice::open(image(directory), options).take();
  Rng rng(7);
  std::vector<uint8_t> model(kBytes), found(kBytes);
  const Aligned memory = aligned(kBytes);
  for (int round = 0; round < 30; round++) {
    // In the cache, dirty in part.
    for (int i = 0; i < 20; i++) {
      const uint64_t at = rng.below(kBytes - 700);
      const std::vector<uint8_t> bytes(700, static_cast<uint8_t>(rng.below(256)));
      REQUIRE(device->write(at, bytes.data(), bytes.size()).ok());
      std::memcpy(model.data() + at, bytes.data(), bytes.size());
    }
    std::vector<DeviceWrite> writes;
    uint64_t at = 0;
    while (true) {
      at += rng.below(12) * kBlockBytes;
      const uint64_t length = (1 + rng.below(rng.one_in(8) ? 400 : 6)) * kBlockBytes;
      if (at + length > kBytes) break;
      std::memset(memory.get() + at, static_cast<int>(rng.below(256)), length);
      writes.push_back({at, memory.get() + at, length});
      std::memcpy(model.data() + at, memory.get() + at, length);
      at += length;
    }
    const Status status = device->write_uncached(writes, nullptr);
    REQUIRE_MESSAGE(status.ok(), status.to_text());
    REQUIRE(device->read(0, found.data(), found.size()).ok());
    REQUIRE(found == model);
  }
  CHECK(device->sync().ok());
}

// Whoever reads while the write is under way fetches the old content into the page cache, behind
// what the write dropped from it when it began. A block device does not drop it again by itself.
TEST_CASE("uncached writes: a block device's readers beside them leave nothing stale behind (W1)") {
  const TestDirectory directory;
  const TestLoop loop(image(directory));
  if (!loop.ok()) {
    MESSAGE("skipped: no loop device");
    return;
  }
  FileDeviceOptions options;
  options.uncached_writes = true;
  auto device = FileDevice::open(loop.path(), options).take();
  constexpr size_t kPieces = 16;
  constexpr size_t kPieceBytes = 16384;
  std::atomic<bool> stop{false};
  std::atomic<bool> readable{true};
  Thread reader;
  reader.start("reader", [&] {
    std::vector<uint8_t> bytes(kBlockBytes);
    for (uint64_t i = 0; !stop; i++) {
      const uint64_t at = i % (kPieces * kPieceBytes / kBlockBytes) * kBlockBytes;
      if (!device->read(at, bytes.data(), bytes.size()).ok()) readable = false;
    }
  });
  const Aligned memory = aligned(kPieces * kPieceBytes);
  std::vector<DeviceWrite> writes;
  for (size_t i = 0; i < kPieces; i++)
    writes.push_back({i * kPieceBytes, memory.get() + i * kPieceBytes, kPieceBytes});
  std::vector<uint8_t> found(kPieces * kPieceBytes);
  int round = 0;
  bool right = true;
  while (right && ++round <= 200) {
    std::memset(memory.get(), round, kPieces * kPieceBytes);
    right = device->write_uncached(writes, nullptr).ok() &&
            device->read(0, found.data(), found.size()).ok() &&
            found == std::vector<uint8_t>(found.size(), static_cast<uint8_t>(round));
  }
  stop = true;
  reader.join();
  CHECK_MESSAGE(right, "in round " << round);
  CHECK(readable);
}

TEST_CASE("uncached writes: what is not aligned is written all the same") {
  const TestDirectory directory;
  FileDeviceOptions options;
  options.uncached_writes = true;
  auto device = FileDevice::open(image(directory), options).take();
  const std::vector<uint8_t> bytes(3 * 512 + 1, 9);
  const DeviceWrite writes[] = {{4096, bytes.data() + 1, 512}, {12800, bytes.data() + 1, 1536}};
  REQUIRE(device->write_uncached(writes, nullptr).ok());
  std::vector<uint8_t> found(512);
  REQUIRE(device->read(12800 + 1024, found.data(), found.size()).ok());
  CHECK(found == std::vector<uint8_t>(512, 9));
}

TEST_CASE("uncached writes: an error names the file, and nothing is under way after it (AW1)") {
  const TestDirectory directory;
  const std::string path = image(directory);
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
  if (fd < 0) {
    MESSAGE("skipped: this file system takes no O_DIRECT");
    return;
  }
  {
    auto writer = AioWriter::make(fd, path, false, false);
    REQUIRE(writer);
    const Aligned memory = aligned(kBytes);
    std::memset(memory.get(), 1, kBytes);
    std::vector<DeviceWrite> writes;
    for (uint64_t at = 0; at < kBytes; at += 16384) writes.push_back({at, memory.get() + at, 4096});
    const Status status = writer->write(writes, nullptr);
    CHECK(status.code() == Code::IO_ERROR);
    CHECK(status.message().find(path + ": write of 4096 bytes at ") == 0);
  }
  ::close(fd);
  std::vector<uint8_t> found(4096, 1);
  REQUIRE(FileDevice::open(path, {}).take()->read(0, found.data(), found.size()).ok());
  CHECK(found == std::vector<uint8_t>(4096, 0));
}

TEST_CASE("uncached writes: none is issued past the grant, those before it are waited for (F2)") {
  const TestDirectory directory;
  const std::string path = image(directory);
  const int fd = ::open(path.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC);
  if (fd < 0) {
    MESSAGE("skipped: this file system takes no O_DIRECT");
    return;
  }
  constexpr size_t kWrites = 3 * AioWriter::kDepth;
  constexpr int64_t kDeadlineNs = 1000;
  // The grant ends after the first look at it.
  std::atomic<int64_t> looks{0};
  Gate gate([&] { return looks++ == 0 ? 0 : kDeadlineNs; });
  gate.extend(kDeadlineNs);
  {
    auto writer = AioWriter::make(fd, path, false, false);
    REQUIRE(writer);
    const Aligned memory = aligned(kBlockBytes);
    std::memset(memory.get(), 1, kBlockBytes);
    std::vector<DeviceWrite> writes;
    for (size_t i = 0; i < kWrites; i++)
      writes.push_back({2 * i * kBlockBytes, memory.get(), kBlockBytes});
    CHECK(writer->write(writes, &gate).code() == Code::FENCED);
    CHECK(gate.refusals() == 1);
  }
  ::close(fd);
  std::vector<uint8_t> found(2 * kWrites * kBlockBytes);
  REQUIRE(FileDevice::open(path, {}).take()->read(0, found.data(), found.size()).ok());
  size_t written = 0;
  for (size_t i = 0; i < kWrites; i++) written += found[2 * i * kBlockBytes];
  CHECK(written > 0);
  CHECK(written <= AioWriter::kDepth);
}

}  // namespace
}  // namespace csnap
