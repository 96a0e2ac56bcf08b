// The device seam: everything the core reads or writes goes through here, so that a real file, a
// block device, a simulated disk and a faulty one are interchangeable. Callers: store/, volume/.
//
// Contract of every device
//  D1  Nothing is promised durable before a sync() that began after the write returned has
//  succeeded. D2  A write that fails may have changed any part of its range; a sector (512 bytes)
//  is never torn. D3  After a failed sync() every later sync() fails too (the kernel may have
//  dropped dirty pages
//      and would report success next time).
//  D4  All calls may be made from several threads at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/gate.h"
#include "base/status.h"

namespace csnap {

enum class ZeroMode {
  ALLOW_HOLE,      // may deallocate
  KEEP_ALLOCATED,  // the range must not become a hole
};

struct DeviceExtent {
  uint64_t length_bytes;  // > 0
  bool hole;              // unallocated; reads as zeros
};

struct DeviceWrite {
  uint64_t offset;
  const void* data;
  size_t length;
};

class Device {
 public:
  virtual ~Device() = default;

  virtual uint64_t size_bytes() const = 0;
  // What messages call this device: its path.
  virtual const std::string& name() const = 0;

  // Reads exactly `length` bytes. Errors: IO_ERROR, SHORT_IO.
  virtual Status read(uint64_t offset, void* data, size_t length) = 0;
  // The same without waiting for the medium; false where that isn't possible or anything goes wrong
  // (then call read()).
  virtual bool read_nowait(uint64_t offset, void* data, size_t length) {
    (void)offset, (void)data, (void)length;
    return false;
  }
  // A file descriptor that has the range at the same offset, all of it in the page cache: who sends
  // from it copies nothing and waits for nothing, but for what is let go meanwhile. -1: there is
  // none, or that isn't known.
  virtual int cached_file(uint64_t offset, size_t length) {
    (void)offset, (void)length;
    return -1;
  }
  // A hint: this will be read soon. Begins to fetch it, without waiting, where it can be kept.
  virtual void will_read(uint64_t offset, size_t length) { (void)offset, (void)length; }
  // Writes exactly `length` bytes. Errors: IO_ERROR, NO_SPACE, SHORT_IO.
  virtual Status write(uint64_t offset, const void* data, size_t length) = 0;
  // Several, in no order, of data that nobody reads soon: past the page cache where that is
  // possible. Of whole blocks of 4 KiB in memory on 4 KiB boundaries, that nobody writes in another
  // way at the same time. When it returns none is under way; after an error each may have happened.
  // `gate`, which may be null, is asked before each is issued: FENCED where it is closed (F2).
  virtual Status write_uncached(std::span<const DeviceWrite> writes, Gate* gate) {
    for (const DeviceWrite& one : writes) {
      if (gate != nullptr && !gate->admit()) return Status(Code::FENCED, name());
      CSNAP_TRY(write(one.offset, one.data, one.length));
    }
    return {};
  }
  // Writes of multiples of this, at multiples of it, leave what is beside them alone whatever
  // happens to them, and need nothing read before.
  virtual uint64_t write_unit_bytes() const { return 512; }
  // Everything written before the call is on stable storage. Errors: IO_ERROR, NO_SPACE.
  virtual Status sync() = 0;
  // The range reads as zeros afterwards. NOT_SUPPORTED: the caller writes zeros itself.
  virtual Status zero(uint64_t offset, uint64_t length, ZeroMode mode) = 0;
  // The range's content is no longer needed: each sector keeps its content or reads as zeros.
  // NOT_SUPPORTED is harmless.
  virtual Status discard(uint64_t offset, uint64_t length) = 0;
  // The extent that starts at `offset`, at most `length` long.
  virtual DeviceExtent extent_at(uint64_t offset, uint64_t length) {
    (void)offset;
    return {length, false};
  }
  // Space for later writes to the range, whose content stays as it is. OK where nothing is to be
  // allocated, or nothing can be promised. Errors: IO_ERROR, NO_SPACE.
  virtual Status allocate(uint64_t offset, uint64_t length) {
    (void)offset, (void)length;
    return {};
  }
  // A hint: begin to write back dirty data, without waiting.
  virtual void start_writeback() {}
  // Reads come from the medium again, but for what is still to be written. After a failed sync the
  // cache may show what the medium never got, and later syncs would not write it either (D3).
  virtual void drop_cache() {}
};

}  // namespace csnap
