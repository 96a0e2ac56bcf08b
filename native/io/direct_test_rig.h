// What the tests of direct I/O share: devices opened so, on every kind of object, and the medium's
// content. Callers: tests of io/.
#pragma once

#include <doctest/doctest.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

#include "io/file_device.h"
#include "io/test_directory.h"
#include "io/test_loop.h"

namespace csnap {

using Bytes = std::vector<uint8_t>;
constexpr size_t kBytes = (1 << 20) + 3 * 4096;

inline void make_file(const std::string& path, uint64_t bytes) {
  const UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  REQUIRE(fd);
  REQUIRE(ftruncate(fd.get(), static_cast<off_t>(bytes)) == 0);
}

inline Result<std::unique_ptr<FileDevice>> open_direct(const std::string& path,
                                                       bool read_only = false) {
  FileDeviceOptions options;
  options.direct = true;
  options.read_only = read_only;
  return FileDevice::open(path, options);
}

inline std::unique_ptr<FileDevice> must_open_direct(const std::string& path) {
  auto opened = open_direct(path);
  REQUIRE_MESSAGE(opened.ok(), opened.status().to_text());
  return opened.take();
}

// Runs `body(path)` on a file and on loop devices of both block sizes, of kBytes each.
template <typename Body>
void on_every_kind(Body body) {
  const TestDirectory directory;
  const std::string plain = directory.file("file");
  make_file(plain, kBytes);
  if (const Status status = open_direct(plain).status(); status.code() == Code::NOT_SUPPORTED)
    MESSAGE("skipped for files: " << status.message());
  else
    body(plain);
  for (const unsigned long block_bytes : {512, 4096}) {
    const std::string backing = directory.file("behind-" + std::to_string(block_bytes));
    make_file(backing, kBytes);
    const TestLoop loop(backing, block_bytes, true);
    if (!loop.ok()) {
      MESSAGE("skipped: no loop device with direct I/O and blocks of " << block_bytes);
      continue;
    }
    CHECK(must_open_direct(loop.path())->direct()->alignment().unit_bytes == block_bytes);
    body(loop.path());
  }
}

// What the medium holds: by a descriptor of its own that no page cache serves.
inline Bytes read_medium(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC));
  REQUIRE(fd);
  const std::unique_ptr<uint8_t, void (*)(void*)> memory(
      static_cast<uint8_t*>(aligned_alloc(4096, kBytes)), free);
  REQUIRE(pread(fd.get(), memory.get(), kBytes, 0) == static_cast<ssize_t>(kBytes));
  return Bytes(memory.get(), memory.get() + kBytes);
}

}  // namespace csnap
