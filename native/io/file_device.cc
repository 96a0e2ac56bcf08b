#include "io/file_device.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>

#include <algorithm>

#include "base/units.h"
#include "io/device_users.h"

namespace csnap {
namespace {

constexpr size_t kPieceBytes = 64 * 1024;      // of a write with small_folios
constexpr size_t kTransferBytesMax = 1 << 30;  // of one system call
constexpr size_t kZeroBytes = 64 * 1024;       // of one write of zeros
alignas(4096) const char kZeros[kZeroBytes] = {};

Status open_error(const std::string& path, int error_number) {
  if (error_number == ENOENT)
    return Status(Code::NOT_FOUND, path + " does not exist: check the path", error_number);
  if (error_number == EROFS)
    return Status(Code::READ_ONLY, path + " can't be opened for writing: it is read-only",
                  error_number);
  return Status::from_errno(error_number, path + " can't be opened");
}

}  // namespace

// ---- Opening -----------------------------------------------------------------------------------

Result<std::unique_ptr<FileDevice>> FileDevice::open(const std::string& path,
                                                     const FileDeviceOptions& options) {
  std::unique_ptr<FileDevice> device(new FileDevice());
  device->path_ = path;
  device->small_folios_ = options.small_folios && !options.direct;
  CSNAP_TRY(device->open_object(options));
  CSNAP_TRY(device->measure());
  if (options.direct)
    CSNAP_TRY(device->go_direct());
  else if (options.small_folios)
    posix_fadvise(device->fd(), 0, 0, POSIX_FADV_RANDOM);
  if (options.uncached_writes && !options.read_only) device->prepare_uncached_writes();
  return device;
}

FileDevice::~FileDevice() = default;

Status FileDevice::open_object(const FileDeviceOptions& options) {
  struct stat info;
  if (stat(path_.c_str(), &info) != 0) return open_error(path_, errno);
  is_block_ = S_ISBLK(info.st_mode);
  if (!is_block_ && !S_ISREG(info.st_mode))
    return Status(Code::INVALID_ARGUMENT,
                  path_ + " is neither a regular file nor a block device: name one of these");
  int flags = O_CLOEXEC | (options.read_only ? O_RDONLY : O_RDWR);
  if (is_block_ && options.lock) flags |= O_EXCL;
  if (options.direct) flags |= O_DIRECT;
  fd_ = UniqueFd(::open(path_.c_str(), flags));
  if (!fd_ && options.direct && errno == EINVAL)
    return Status(
        Code::NOT_SUPPORTED,
        path_ + " can't be opened with O_DIRECT: use a file system or device that takes it",
        EINVAL);
  if (!fd_) return errno == EBUSY ? busy() : open_error(path_, errno);
  struct stat opened;
  if (fstat(fd(), &opened) != 0) return open_error(path_, errno);
  if (opened.st_mode != info.st_mode || opened.st_ino != info.st_ino)
    return Status(Code::BUSY, path_ + " was replaced while it was being opened: try again");
  if (!options.lock) return Status();
  if (is_block_) return lock_backing_file(info.st_rdev, !options.read_only);
  CSNAP_TRY(take_lock(fd(), !options.read_only));
  if (options.read_only) return Status();
  const std::string loop = find_loop_device(info);
  if (loop.empty()) return Status();
  return Status(Code::BUSY, path_ + " is attached to " + loop + ": detach it first (losetup -d " +
                                loop + "), or use " + loop);
}

// FD1
Status FileDevice::take_lock(int fd, bool exclusive) {
  struct flock lock = {};
  lock.l_type = exclusive ? F_WRLCK : F_RDLCK;
  lock.l_whence = SEEK_SET;
  if (fcntl(fd, F_OFD_SETLK, &lock) == 0) return Status();
  if (errno == EAGAIN || errno == EACCES) return busy();
  return Status(
      Code::NOT_SUPPORTED,
      path_ + " can't be locked (" + strerror(errno) + "): use a file system that supports locks",
      errno);
}

// Best effort: a backing file out of sight (deleted, another mount namespace) can't be locked, and
// O_EXCL on the loop device holds all the same.
Status FileDevice::lock_backing_file(dev_t device, bool exclusive) {
  const std::string backing = loop_backing_file(device);
  if (backing.empty()) return Status();
  backing_fd_ = UniqueFd(::open(backing.c_str(), O_CLOEXEC | (exclusive ? O_RDWR : O_RDONLY)));
  if (!backing_fd_) return Status();
  struct flock lock = {};
  lock.l_type = exclusive ? F_WRLCK : F_RDLCK;
  lock.l_whence = SEEK_SET;
  if (fcntl(backing_fd_.get(), F_OFD_SETLK, &lock) == 0) return Status();
  if (errno != EAGAIN && errno != EACCES) return Status();
  return Status(Code::BUSY,
                path_ + " can't be used: its file " + backing + " is in use by another process");
}

Status FileDevice::busy() {
  struct stat info;
  std::string user;
  if (stat(path_.c_str(), &info) == 0) {
    // Our own descriptor, if open already, is not what we look for.
    fd_.reset();
    user = find_user(path_, info);
  }
  if (user.empty()) user = "another process";
  return Status(Code::BUSY, path_ + " is in use by " + user + ": stop that first", EBUSY);
}

Status FileDevice::measure() {
  if (!is_block_) {
    struct stat info;
    if (fstat(fd(), &info) != 0) return Status::from_errno(errno, path_ + ": size");
    size_bytes_ = round_down(static_cast<uint64_t>(info.st_size), kSectorBytes);
    return Status();
  }
  struct stat info;
  int logical = 0;
  if (fstat(fd(), &info) != 0 || ioctl(fd(), BLKGETSIZE64, &size_bytes_) != 0 ||
      ioctl(fd(), BLKSSZGET, &logical) != 0)
    return Status::from_errno(errno, path_ + ": size");
  logical_block_bytes_ = static_cast<uint64_t>(logical);
  // A partition has no queue directory of its own; its disk's is one level up.
  std::string limit = read_first_line(sysfs_of(info.st_rdev) + "/queue/write_zeroes_max_bytes");
  if (limit.empty())
    limit = read_first_line(sysfs_of(info.st_rdev) + "/../queue/write_zeroes_max_bytes");
  zeroes_offloaded_ = !limit.empty() && limit != "0";
  return Status();
}

// FD4. Under the lock: nobody else writes any more.
Status FileDevice::go_direct() {
  CSNAP_TRY(check_nothing_caches(fd(), path_));
  CSNAP_TRY_ASSIGN(direct_, DirectIo::make(fd(), path_, size_bytes_));
  return empty_page_cache(fd(), path_);
}

// On a second descriptor of the same object. Where that can't be had, writes are cached ones.
void FileDevice::prepare_uncached_writes() {
  int direct = fd();
  if (!direct_) {
    const std::string self = "/proc/self/fd/" + std::to_string(fd());
    uncached_fd_ = UniqueFd(::open(self.c_str(), O_CLOEXEC | O_RDWR | O_DIRECT));
    if (!uncached_fd_) return;
    direct = uncached_fd_.get();
    const auto probe = DirectIo::make(direct, path_, size_bytes_);
    if (!probe.ok() || probe.value()->alignment().unit_bytes > kBlockBytes) return;
  } else if (direct_->alignment().unit_bytes > kBlockBytes) {
    return;
  }
  uncached_ = AioWriter::make(direct, path_, is_block_, !direct_);
}

bool same_object(const std::string& path, const std::string& other) {
  struct stat first;
  struct stat second;
  if (stat(path.c_str(), &first) != 0 || stat(other.c_str(), &second) != 0) return false;
  if (S_ISBLK(first.st_mode) && S_ISBLK(second.st_mode)) return first.st_rdev == second.st_rdev;
  return first.st_dev == second.st_dev && first.st_ino == second.st_ino;
}

// ---- Reading and writing -----------------------------------------------------------------------

Status FileDevice::error(const char* verb, uint64_t offset, uint64_t length,
                         int error_number) const {
  return Status::from_errno(error_number, path_ + ": " + verb + " of " + std::to_string(length) +
                                              " bytes at " + std::to_string(offset));
}

Status FileDevice::read(uint64_t offset, void* data, size_t length) {
  if (direct_) return direct_->read(offset, data, length);
  auto* target = static_cast<char*>(data);
  size_t done = 0;
  while (done < length) {
    const size_t piece = std::min(length - done, kTransferBytesMax);
    const ssize_t n = pread(fd(), target + done, piece, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return error("read", offset + done, piece, errno);
    if (n == 0)
      return Status(Code::SHORT_IO, path_ + ": read of " + std::to_string(length) + " bytes at " +
                                        std::to_string(offset) + " ended after " +
                                        std::to_string(done));
    done += static_cast<size_t>(n);
  }
  return Status();
}

bool FileDevice::read_nowait(uint64_t offset, void* data, size_t length) {
  // The kernel would start a direct read and wait for it.
  if (direct_ || nowait_unsupported_.load(std::memory_order_relaxed)) return false;
  iovec piece = {data, length};
  const ssize_t n = preadv2(fd(), &piece, 1, static_cast<off_t>(offset), RWF_NOWAIT);
  if (n < 0 && errno == EOPNOTSUPP) nowait_unsupported_.store(true, std::memory_order_relaxed);
  return n >= 0 && static_cast<size_t>(n) == length;
}

namespace {

// cachestat(2), from Linux 6.5 on, which glibc 2.36 does not know. The number is the same wherever
// Node runs; the structs are those of linux/mman.h.
constexpr long kCachestatCall = 451;
struct CachestatRange {
  uint64_t offset, length;
};
struct Cachestat {
  uint64_t cached, dirty, writeback, evicted, recently_evicted;  // pages
};

}  // namespace

int FileDevice::cached_file(uint64_t offset, size_t length) {
  if (direct_ || cachestat_unsupported_.load(std::memory_order_relaxed)) return -1;
  const auto page_bytes = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  CachestatRange range = {offset, length};
  Cachestat found = {};
  if (syscall(kCachestatCall, fd(), &range, &found, 0u) != 0) {
    cachestat_unsupported_.store(true, std::memory_order_relaxed);
    return -1;
  }
  const uint64_t pages = div_up(offset + length, page_bytes) - offset / page_bytes;
  return found.cached >= pages ? fd() : -1;
}

void FileDevice::will_read(uint64_t offset, size_t length) {
  if (direct_) return;
  (void)posix_fadvise(fd(), static_cast<off_t>(offset), static_cast<off_t>(length),
                      POSIX_FADV_WILLNEED);
}

Status FileDevice::write(uint64_t offset, const void* data, size_t length) {
  if (direct_) return direct_->write(offset, data, length);
  const auto* source = static_cast<const char*>(data);
  const size_t piece_max = small_folios_ ? kPieceBytes : kTransferBytesMax;
  size_t done = 0;
  while (done < length) {
    const size_t piece = std::min(length - done, piece_max);
    const ssize_t n = pwrite(fd(), source + done, piece, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return error("write", offset + done, piece, errno);
    if (n == 0)
      return Status(Code::SHORT_IO, path_ + ": write of " + std::to_string(length) + " bytes at " +
                                        std::to_string(offset) + " ended after " +
                                        std::to_string(done));
    done += static_cast<size_t>(n);
  }
  return Status();
}

Status FileDevice::write_uncached(std::span<const DeviceWrite> writes, Gate* gate) {
  const auto is_whole = [this](const DeviceWrite& one) {
    return one.offset % kBlockBytes == 0 && one.length % kBlockBytes == 0 &&
           reinterpret_cast<uintptr_t>(one.data) % kBlockBytes == 0 &&
           one.offset + one.length <= size_bytes_;
  };
  if (uncached_ && std::all_of(writes.begin(), writes.end(), is_whole))
    return uncached_->write(writes, gate);
  return Device::write_uncached(writes, gate);
}

// FD3. A ticket taken while a sync runs is served by the next one: the running one may have begun
// before the caller's writes.
Status FileDevice::sync() {
  MutexLock lock(sync_mutex_);
  const uint64_t ticket = ++sync_requested_;
  while (sync_running_ && sync_covered_ < ticket && sync_error_ == 0) sync_done_cond_.wait(lock);
  if (sync_error_ == 0 && sync_covered_ < ticket) {
    sync_running_ = true;
    const uint64_t covers = sync_requested_;
    lock.unlock();
    int result;
    do result = fdatasync(fd());
    while (result != 0 && errno == EINTR);
    const int error_number = result == 0 ? 0 : errno;
    lock.lock();
    sync_running_ = false;
    sync_covered_ = covers;
    if (error_number != 0) sync_error_ = error_number;
    sync_done_cond_.notify_all();
  }
  if (sync_error_ == 0) return Status();
  return Status::from_errno(sync_error_, path_ + ": sync failed");
}

void FileDevice::start_writeback() {
  if (direct_) return;
  // Waiting flags would consume a write-back error that fdatasync must report.
  sync_file_range(fd(), 0, 0, SYNC_FILE_RANGE_WRITE);
}

// The kernel calls pages clean whose write-back failed, and so lets them go.
void FileDevice::drop_cache() {
  if (!direct_) posix_fadvise(fd(), 0, 0, POSIX_FADV_DONTNEED);
}

// ---- Zeroing and holes -------------------------------------------------------------------------

namespace {

int fallocate_retrying(int fd, int mode, uint64_t offset, uint64_t length) {
  while (fallocate(fd, mode, static_cast<off_t>(offset), static_cast<off_t>(length)) != 0)
    if (errno != EINTR) return errno;
  return 0;
}

bool is_unsupported(int error_number) {
  return error_number == EOPNOTSUPP || error_number == ENOSYS || error_number == ENOTTY;
}

}  // namespace

// DIO2. Of whole units, so claims of this kind do not wait for each other.
std::unique_ptr<WriteClaim> FileDevice::claim(uint64_t offset, uint64_t length) {
  if (!direct_) return nullptr;
  return std::make_unique<WriteClaim>(direct_->claims(), offset, length);
}

// A file system zeroes parts of its blocks in the page cache: not with FD4.
uint64_t FileDevice::hole_unit_bytes() const {
  if (is_block_) return logical_block_bytes_;
  return direct_ ? direct_->hole_unit_bytes() : 1;
}

// The whole units are zeroed by the file system or the device, the edges by writing.
Status FileDevice::zero(uint64_t offset, uint64_t length, ZeroMode mode) {
  if (length == 0) return Status();
  const uint64_t first = round_up(offset, hole_unit_bytes());
  const uint64_t last = round_down(offset + length, hole_unit_bytes());
  if (first >= last) return write_zeros(offset, length);
  {
    const auto held = claim(first, last - first);
    CSNAP_TRY(is_block_ ? zero_block_device(first, last - first, mode)
                        : zero_file(first, last - first, mode));
  }
  CSNAP_TRY(write_zeros(offset, first - offset));
  return write_zeros(last, offset + length - last);
}

Status FileDevice::zero_file(uint64_t offset, uint64_t length, ZeroMode mode) {
  if (mode == ZeroMode::ALLOW_HOLE && !punch_unsupported_.load(std::memory_order_relaxed)) {
    const int result =
        fallocate_retrying(fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
    if (result == 0) return Status();
    if (!is_unsupported(result)) return error("zeroing", offset, length, result);
    punch_unsupported_.store(true, std::memory_order_relaxed);
  }
  if (!zero_range_unsupported_.load(std::memory_order_relaxed)) {
    const int result =
        fallocate_retrying(fd(), FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length);
    if (result == 0) return Status();
    if (!is_unsupported(result)) return error("zeroing", offset, length, result);
    zero_range_unsupported_.store(true, std::memory_order_relaxed);
  }
  return Status(Code::NOT_SUPPORTED, path_ + ": its file system can't zero a range");
}

Status FileDevice::zero_block_device(uint64_t offset, uint64_t length, ZeroMode mode) {
  const bool punch = mode == ZeroMode::ALLOW_HOLE && !punch_unsupported_.load();
  if (!punch && !zeroes_offloaded_)
    return Status(Code::NOT_SUPPORTED, path_ + ": the device can't zero a range by itself");
  int result = EOPNOTSUPP;
  if (punch) {
    result = fallocate_retrying(fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
    if (is_unsupported(result)) punch_unsupported_.store(true);
  }
  if (is_unsupported(result) && zeroes_offloaded_) {
    uint64_t range[2] = {offset, length};
    result = ioctl(fd(), BLKZEROOUT, range) == 0 ? 0 : errno;
  }
  if (is_unsupported(result))
    return Status(Code::NOT_SUPPORTED, path_ + ": the device can't zero a range by itself");
  if (result != 0) return error("zeroing", offset, length, result);
  return Status();
}

Status FileDevice::write_zeros(uint64_t offset, uint64_t length) {
  while (length > 0) {
    const size_t piece = static_cast<size_t>(std::min<uint64_t>(length, kZeroBytes));
    CSNAP_TRY(write(offset, kZeros, piece));
    offset += piece;
    length -= piece;
  }
  return Status();
}

// A block device is asked to unmap with zeroing first: plain discard leaves the content to it.
Status FileDevice::discard(uint64_t offset, uint64_t length) {
  if (discard_unsupported_.load(std::memory_order_relaxed))
    return Status(Code::NOT_SUPPORTED, path_ + ": discard is not supported");
  const uint64_t first = round_up(offset, hole_unit_bytes());
  const uint64_t last = round_down(offset + length, hole_unit_bytes());
  if (first >= last) return Status();
  const auto held = claim(first, last - first);
  int result =
      fallocate_retrying(fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, first, last - first);
  if (is_block_ && is_unsupported(result)) {
    uint64_t range[2] = {first, last - first};
    result = ioctl(fd(), BLKDISCARD, range) == 0 ? 0 : errno;
  }
  if (result == 0) return Status();
  if (!is_unsupported(result)) return error("discard", first, last - first, result);
  discard_unsupported_.store(true, std::memory_order_relaxed);
  return Status(Code::NOT_SUPPORTED, path_ + ": discard is not supported");
}

Status FileDevice::allocate(uint64_t offset, uint64_t length) {
  while (!is_block_ && length > 0) {
    const DeviceExtent extent = extent_at(offset, length);
    if (extent.hole) {
      const int result = fallocate_retrying(fd(), FALLOC_FL_KEEP_SIZE, offset, extent.length_bytes);
      if (is_unsupported(result)) return {};
      if (result != 0) return error("allocating", offset, extent.length_bytes, result);
    }
    offset += extent.length_bytes;
    length -= extent.length_bytes;
  }
  return {};
}

DeviceExtent FileDevice::extent_at(uint64_t offset, uint64_t length) {
  if (is_block_) return {length, false};
  const off_t start = static_cast<off_t>(offset);
  const off_t data = lseek(fd(), start, SEEK_DATA);
  if (data < 0) return {length, errno == ENXIO};
  if (data > start) return {std::min<uint64_t>(length, static_cast<uint64_t>(data - start)), true};
  const off_t hole = lseek(fd(), start, SEEK_HOLE);
  if (hole <= start) return {length, false};
  return {std::min<uint64_t>(length, static_cast<uint64_t>(hole - start)), false};
}

}  // namespace csnap
