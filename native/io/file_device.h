// Device over a regular file or a block device. Made by the addon and by tests; used by store/ and
// volume/ through the seam of device.h, whose D1-D4 it keeps.
//
// Invariants
//  FD1  One open for writing per object and machine: a file by an OFD write lock, a block device by
//      O_EXCL, a loop device by both (the lock is on its backing file). A look (read_only) takes a
//      read lock, so that looks share the object with each other but never with a server.
//  FD2  Descriptors are O_CLOEXEC: no child keeps a lock alive.
//  FD3  sync() runs one fdatasync at a time. The kernel reports a write-back error once per
//      descriptor, so of two at the same time one could miss it. Callers that wait share the next.
//  FD4  Opened `direct`, nothing passes through this host's page cache, and what it held of the
//      object from before is written back and let go at open. Whoever writes the object meanwhile
//      has to be direct too; FD1 keeps all others of this machine out.
//  FD5  write_uncached() of a device that is not direct keeps the page cache coherent: the kernel
//      writes back and drops what it holds of the range, before the write and after it. A sync()
//      covers such writes like others.
#pragma once

#include <atomic>
#include <functional>
#include <memory>

#include "base/sync.h"
#include "io/aio_writer.h"
#include "io/device.h"
#include "io/direct_io.h"
#include "io/unique_fd.h"

namespace csnap {

struct FileDeviceOptions {
  bool read_only = false;
  bool lock = true;  // FD1
  // Keep the page cache in small folios (random-access advice, writes in pieces): a 4 KiB write
  // into a large folio costs several times as much. For origins.
  bool small_folios = false;
  bool direct = false;  // FD4
  // write_uncached() passes the page cache by, where the file system or device can do that. For
  // snapshot stores.
  bool uncached_writes = false;
};

class FileDevice final : public Device {
 public:
  // Errors: NOT_FOUND, INVALID_ARGUMENT (neither file nor block device), BUSY (says by whom),
  // READ_ONLY, NOT_SUPPORTED (no locks; no direct I/O), IO_ERROR. A file's size is rounded down to
  // whole sectors.
  static Result<std::unique_ptr<FileDevice>> open(const std::string& path,
                                                  const FileDeviceOptions& options);
  ~FileDevice() override;

  uint64_t size_bytes() const override { return size_bytes_; }
  const std::string& name() const override { return path_; }
  Status read(uint64_t offset, void* data, size_t length) override;
  bool read_nowait(uint64_t offset, void* data, size_t length) override;
  int cached_file(uint64_t offset, size_t length) override;
  void will_read(uint64_t offset, size_t length) override;
  Status write(uint64_t offset, const void* data, size_t length) override;
  Status write_uncached(std::span<const DeviceWrite> writes, Gate* gate) override;
  uint64_t write_unit_bytes() const override { return direct_ ? 4096 : 512; }
  Status sync() override;
  Status zero(uint64_t offset, uint64_t length, ZeroMode mode) override;
  Status discard(uint64_t offset, uint64_t length) override;
  Status allocate(uint64_t offset, uint64_t length) override;
  DeviceExtent extent_at(uint64_t offset, uint64_t length) override;
  void start_writeback() override;
  void drop_cache() override;

  int fd() const { return fd_.get(); }
  bool is_block() const { return is_block_; }
  // Null unless opened so.
  const DirectIo* direct() const { return direct_.get(); }

 private:
  FileDevice() = default;
  Status open_object(const FileDeviceOptions& options);
  Status take_lock(int fd, bool exclusive);
  Status lock_backing_file(dev_t device, bool exclusive);
  Status measure();
  Status go_direct();
  void prepare_uncached_writes();
  Status busy();
  Status error(const char* verb, uint64_t offset, uint64_t length, int error_number) const;
  std::unique_ptr<WriteClaim> claim(uint64_t offset, uint64_t length);
  uint64_t hole_unit_bytes() const;
  Status zero_file(uint64_t offset, uint64_t length, ZeroMode mode);
  Status zero_block_device(uint64_t offset, uint64_t length, ZeroMode mode);
  Status write_zeros(uint64_t offset, uint64_t length);

  std::string path_;
  UniqueFd fd_;
  UniqueFd backing_fd_;  // of a loop device: holds the lock on its file
  std::unique_ptr<DirectIo> direct_;
  UniqueFd uncached_fd_;
  std::unique_ptr<AioWriter> uncached_;  // null: write_uncached() is write()
  bool is_block_ = false;
  bool small_folios_ = false;
  uint64_t size_bytes_ = 0;
  uint64_t logical_block_bytes_ = 512;
  bool zeroes_offloaded_ = false;  // block device that can write zeroes by itself
  std::atomic<bool> punch_unsupported_{false};
  std::atomic<bool> zero_range_unsupported_{false};
  std::atomic<bool> discard_unsupported_{false};
  std::atomic<bool> nowait_unsupported_{false};
  std::atomic<bool> cachestat_unsupported_{false};

  Mutex sync_mutex_;
  CondVar sync_done_cond_;
  uint64_t sync_requested_ = 0;  // tickets handed out
  uint64_t sync_covered_ = 0;    // tickets that a finished fdatasync covers
  bool sync_running_ = false;
  int sync_error_ = 0;  // sticky (D3)
};

// True if both paths lead to the same file or block device. False where one leads nowhere.
bool same_object(const std::string& path, const std::string& other);

// Makes the regular file at `path` exactly `bytes` long with every byte allocated, so that a hole
// that can't be filled never bites later; an existing file keeps its content up to there. Writes
// zeros where the file system can't allocate. On an error a file made here is removed, an older one
// cut back to its former size. `created`: the file was not there before. Blocks for as long as it
// takes; `progress(done, total)` in bytes, at most once per 64 MiB. Errors: NO_SPACE,
// INVALID_ARGUMENT, BUSY, READ_ONLY, IO_ERROR.
Status allocate_in_full(const std::string& path, uint64_t bytes,
                        const std::function<void(uint64_t, uint64_t)>& progress, bool& created);

// Makes the directory entry of `path` durable.
Status sync_directory_of(const std::string& path);

}  // namespace csnap
