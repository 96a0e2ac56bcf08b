// Many O_DIRECT writes at once, by the kernel's asynchronous I/O (io_submit(2)), waited for
// together. FileDevice's way for copies: a file system holds the file's lock for the length of a
// direct write that is waited for, and other writes of the file (journal appends) would wait, too;
// of one that is only submitted it lets go at once.
//
// The page cache is kept coherent by what a file system does when a direct write is submitted and
// when it completes. A block device does the latter only for writes that are waited for, so there
// each is (and no lock of the device is held meanwhile).
//
// Invariants
//  AW1  write() returns when none of its writes is under way, whatever becomes of them.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "base/sync.h"
#include "io/device.h"

namespace csnap {

class AioWriter {
 public:
  static constexpr uint32_t kDepth = 32;
  static constexpr size_t kPieceBytes = 1 << 20;

  // `fd` is open with O_DIRECT and stays the caller's. `is_cached`: the page cache may hold what is
  // written. Null: the kernel has no such context for us.
  static std::unique_ptr<AioWriter> make(int fd, const std::string& name, bool is_block,
                                         bool is_cached);
  ~AioWriter();
  AioWriter(const AioWriter&) = delete;

  // Offsets, lengths and memory are aligned as the object asks. Errors: NO_SPACE, IO_ERROR,
  // FENCED; any of the writes may have happened then. `gate`: as Device::write_uncached().
  Status write(std::span<const DeviceWrite> writes, Gate* gate);

 private:
  AioWriter(int fd, std::string name, unsigned long context)
      : fd_(fd), name_(std::move(name)), context_(context) {}
  Status write_each(std::span<const DeviceWrite> writes, Gate* gate);
  struct Piece {
    uint64_t offset = 0;
    const char* data = nullptr;
    size_t length = 0;
  };
  Status finish(const Piece& piece, int64_t result, Gate* gate);
  Status write_rest(Piece piece);
  Status error(const Piece& piece, int error_number) const;

  const int fd_;
  const std::string name_;
  const unsigned long context_;  // 0: each write is waited for
  Mutex mutex_;                  // one caller at a time
};

}  // namespace csnap
