#include "io/direct_io.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/units.h"
#include "io/device_users.h"

namespace csnap {
namespace {

constexpr uint64_t kUnitBytesSafe = 4096;  // where nobody says; every disk takes it
constexpr uint64_t kUnitBytesMax = 64 * 1024;
constexpr uint64_t kHoleUnitBytesMax = 1 << 20;
constexpr size_t kStraightBytesMin = 64 * 1024;  // less is copied: one system call for all of it
constexpr size_t kTransferBytesMax = 1 << 30;    // of one system call
constexpr const char* kRemedy = ": use a file system or device that takes O_DIRECT";
static_assert(DirectIo::kBufferBytes % kUnitBytesMax == 0);
static_assert(DirectIo::kBufferBytes >= 2 * kUnitBytesMax);

bool is_aligned(const void* memory, uint64_t unit) {
  return reinterpret_cast<uintptr_t>(memory) % unit == 0;
}

bool is_usable(uint64_t unit, uint64_t unit_max) {
  return is_power_of_two(unit) && unit <= unit_max;
}

// Of a device or its disk: a partition has no such files of its own.
std::string device_attribute(dev_t device, const char* attribute) {
  const std::string own = read_first_line(sysfs_of(device) + "/" + attribute);
  return own.empty() ? read_first_line(sysfs_of(device) + "/../" + attribute) : own;
}

// What the kernel says, or a guess that accepts() has to confirm. False: the kernel says no.
bool find_alignment(int fd, const struct stat& info, DirectAlignment& alignment) {
#ifdef STATX_DIOALIGN
  struct statx extended = {};
  if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &extended) == 0 &&
      (extended.stx_mask & STATX_DIOALIGN) != 0) {
    alignment = {extended.stx_dio_offset_align, extended.stx_dio_mem_align};
    if (alignment.unit_bytes == 0 || alignment.memory_bytes == 0) return false;
    alignment.unit_bytes = std::max(alignment.unit_bytes, kSectorBytes);
    return true;
  }
#endif
  uint64_t unit = 0;
  int logical = 0;
  if (S_ISBLK(info.st_mode)) {
    if (ioctl(fd, BLKSSZGET, &logical) == 0) unit = static_cast<uint64_t>(logical);
  } else {
    // Empty where the file system lies on no device of this host.
    unit = strtoull(device_attribute(info.st_dev, "queue/logical_block_size").c_str(), nullptr, 10);
  }
  if (!is_power_of_two(unit) || unit < kSectorBytes) unit = kUnitBytesSafe;
  alignment = {unit, unit};
  return true;
}

}  // namespace

// ---- Opening -----------------------------------------------------------------------------------

Result<std::unique_ptr<DirectIo>> DirectIo::make(int fd, const std::string& name,
                                                 uint64_t size_bytes) {
  struct stat info;
  if (fstat(fd, &info) != 0) return Status::from_errno(errno, name + " can't be looked at");
  DirectAlignment alignment;
  if (!find_alignment(fd, info, alignment))
    return Status(Code::NOT_SUPPORTED, name + " has no direct I/O" + kRemedy);
  if (!is_usable(alignment.unit_bytes, kUnitBytesMax) ||
      !is_usable(alignment.memory_bytes, kUnitBytesMax))
    return Status(Code::NOT_SUPPORTED, name + " takes direct I/O only in units of " +
                                           std::to_string(alignment.unit_bytes) + " bytes" +
                                           kRemedy);
  auto direct = std::make_unique<DirectIo>(fd, name, size_bytes, alignment);
  if (!direct->accepts(alignment)) {
    alignment = {std::max(alignment.unit_bytes, kUnitBytesSafe),
                 std::max(alignment.memory_bytes, kUnitBytesSafe)};
    direct = std::make_unique<DirectIo>(fd, name, size_bytes, alignment);
    if (!direct->accepts(alignment))
      return Status(Code::NOT_SUPPORTED, name + " refuses direct reads" + kRemedy, EINVAL);
  }
  if (size_bytes % alignment.unit_bytes != 0) {
    const std::string unit = std::to_string(alignment.unit_bytes);
    return Status(Code::NOT_SUPPORTED, name + " is " + std::to_string(size_bytes) +
                                           " bytes long, direct I/O needs a " + "multiple of " +
                                           unit + ": lengthen a file with truncate -s %" + unit +
                                           " " + name);
  }
  return direct;
}

DirectIo::DirectIo(int fd, std::string name, uint64_t size_bytes, DirectAlignment alignment)
    : fd_(fd),
      name_(std::move(name)),
      size_bytes_(size_bytes),
      alignment_(alignment),
      hole_unit_bytes_(alignment.unit_bytes),
      claims_(alignment.unit_bytes) {
  struct stat info;
  if (fstat(fd, &info) == 0 && S_ISBLK(info.st_mode)) return;
  uint64_t unit = std::max(alignment.unit_bytes, static_cast<uint64_t>(sysconf(_SC_PAGESIZE)));
  struct statfs system;
  if (fstatfs(fd, &system) == 0 &&
      is_usable(static_cast<uint64_t>(system.f_bsize), kHoleUnitBytesMax))
    unit = std::max(unit, static_cast<uint64_t>(system.f_bsize));
  hole_unit_bytes_ = unit;
}

DirectIo::~DirectIo() { CSNAP_ASSERT(buffers_free_.size() == buffers_made_); }

Status check_nothing_caches(int fd, const std::string& name) {
  struct stat info;
  if (fstat(fd, &info) != 0 || !S_ISBLK(info.st_mode)) return Status();
  if (device_attribute(info.st_rdev, "loop/dio") != "0") return Status();
  return Status(Code::NOT_SUPPORTED, name +
                                         " is a loop device that caches its file on this host: "
                                         "losetup --direct-io=on " +
                                         name + ", or use the file");
}

Status empty_page_cache(int fd, const std::string& name) {
  int result;
  do result = fsync(fd);
  while (result != 0 && errno == EINTR);
  if (result != 0) return Status::from_errno(errno, name + ": what was cached can't be written");
  struct stat info;
  // Needs CAP_SYS_ADMIN; the advice below does nearly the same.
  if (fstat(fd, &info) == 0 && S_ISBLK(info.st_mode)) (void)ioctl(fd, BLKFLSBUF, 0);
  (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  return Status();
}

// ---- Buffers -----------------------------------------------------------------------------------

// DIO4
class DirectIo::Buffer {
 public:
  explicit Buffer(DirectIo& owner) : owner_(owner) {
    MutexLock lock(owner_.buffers_mutex_);
    while (owner_.buffers_free_.empty() && owner_.buffers_made_ == kBufferCountMax)
      owner_.buffer_free_cond_.wait(lock);
    if (!owner_.buffers_free_.empty()) {
      bytes_ = std::move(owner_.buffers_free_.back());
      owner_.buffers_free_.pop_back();
      return;
    }
    bytes_.reset(static_cast<char*>(aligned_alloc(kUnitBytesMax, kBufferBytes)));
    CSNAP_ASSERT(bytes_ != nullptr);
    owner_.buffers_made_++;
  }
  ~Buffer() {
    MutexLock lock(owner_.buffers_mutex_);
    owner_.buffers_free_.push_back(std::move(bytes_));
    owner_.buffer_free_cond_.notify_one();
  }
  Buffer(const Buffer&) = delete;
  char* bytes() { return bytes_.get(); }

 private:
  DirectIo& owner_;
  AlignedBytes bytes_;
};

// The least alignment that the answer promises, and no more: at the second unit of the memory.
bool DirectIo::accepts(DirectAlignment alignment) {
  Buffer buffer(*this);
  char* target = buffer.bytes() + alignment.memory_bytes;
  const size_t length = static_cast<size_t>(alignment.unit_bytes);
  const uint64_t offset = size_bytes_ >= 2 * alignment.unit_bytes ? alignment.unit_bytes : 0;
  // Another error is the medium's, and for the reads to come.
  return pread(fd_, target, length, static_cast<off_t>(offset)) >= 0 || errno != EINVAL;
}

// ---- Reading and writing -----------------------------------------------------------------------

// How much of a transfer that begins here goes through a buffer next; 0: its whole blocks go
// straight from or to the caller's memory.
size_t DirectIo::buffered_bytes(uint64_t offset, const void* memory, size_t length) const {
  const uint64_t unit = alignment_.unit_bytes;
  const uint64_t edge = round_up(offset, unit) - offset;
  const bool fits = is_aligned(static_cast<const char*>(memory) + edge, alignment_.memory_bytes);
  if (fits && edge == 0 && length % unit == 0) return 0;
  if (fits && length >= edge + kStraightBytesMin) return edge;
  return std::min<uint64_t>(length, kBufferBytes - offset % unit);
}

Status DirectIo::read(uint64_t offset, void* data, size_t length) {
  if (!within(offset, length)) return short_io("read", offset, length);
  auto* target = static_cast<char*>(data);
  while (length > 0) {
    size_t piece = buffered_bytes(offset, target, length);
    if (piece > 0) {
      Buffer buffer(*this);
      CSNAP_TRY(read_through(buffer, offset, target, piece));
    } else {
      piece = round_down(length, alignment_.unit_bytes);
      CSNAP_TRY(read_aligned(offset, target, piece));
    }
    offset += piece;
    target += piece;
    length -= piece;
  }
  return Status();
}

Status DirectIo::read_through(Buffer& buffer, uint64_t offset, char* target, size_t length) {
  const uint64_t first = round_down(offset, alignment_.unit_bytes);
  const uint64_t end = round_up(offset + length, alignment_.unit_bytes);
  CSNAP_TRY(read_aligned(first, buffer.bytes(), end - first));
  std::copy_n(buffer.bytes() + (offset - first), length, target);
  return Status();
}

Status DirectIo::write(uint64_t offset, const void* data, size_t length) {
  if (!within(offset, length))
    return Status(Code::NO_SPACE,
                  name_ + ": write of " + std::to_string(length) + " bytes at " +
                      std::to_string(offset) + " goes beyond its end",
                  ENOSPC);
  if (length == 0) return Status();
  const WriteClaim claim(claims_, offset, length);
  const auto* source = static_cast<const char*>(data);
  while (length > 0) {
    size_t piece = buffered_bytes(offset, source, length);
    if (piece > 0) {
      Buffer buffer(*this);
      CSNAP_TRY(write_through(buffer, offset, source, piece));
    } else {
      piece = round_down(length, alignment_.unit_bytes);
      CSNAP_TRY(write_aligned(offset, source, piece));
    }
    offset += piece;
    source += piece;
    length -= piece;
  }
  return Status();
}

// The blocks at the edges are written back whole, with what they hold around the piece.
Status DirectIo::write_through(Buffer& buffer, uint64_t offset, const char* source, size_t length) {
  const uint64_t unit = alignment_.unit_bytes;
  const uint64_t first = round_down(offset, unit);
  const uint64_t end = round_up(offset + length, unit);
  const bool head = first < offset;
  const bool tail = end > offset + length;
  if (head) CSNAP_TRY(read_aligned(first, buffer.bytes(), unit));
  if (tail && !(head && end - first == unit))
    CSNAP_TRY(read_aligned(end - unit, buffer.bytes() + (end - unit - first), unit));
  std::copy_n(source, length, buffer.bytes() + (offset - first));
  return write_aligned(first, buffer.bytes(), end - first);
}

Status DirectIo::read_aligned(uint64_t offset, char* target, size_t length) {
  for (size_t done = 0; done < length;) {
    const size_t piece = std::min(length - done, kTransferBytesMax);
    const ssize_t n = pread(fd_, target + done, piece, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return error("read", offset + done, piece, errno);
    // Less than a block: the end, where somebody has cut it off.
    const size_t whole = round_down(static_cast<size_t>(n), alignment_.unit_bytes);
    if (whole == 0) return short_io("read", offset + done, piece);
    done += whole;
  }
  return Status();
}

Status DirectIo::write_aligned(uint64_t offset, const char* source, size_t length) {
  for (size_t done = 0; done < length;) {
    const size_t piece = std::min(length - done, kTransferBytesMax);
    const ssize_t n = pwrite(fd_, source + done, piece, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return error("write", offset + done, piece, errno);
    const size_t whole = round_down(static_cast<size_t>(n), alignment_.unit_bytes);
    if (whole == 0) return short_io("write", offset + done, piece);
    done += whole;
  }
  return Status();
}

Status DirectIo::short_io(const char* verb, uint64_t offset, size_t length) const {
  return Status(Code::SHORT_IO, name_ + ": " + verb + " of " + std::to_string(length) +
                                    " bytes at " + std::to_string(offset) + " was cut short");
}

Status DirectIo::error(const char* verb, uint64_t offset, size_t length, int error_number) const {
  return Status::from_errno(error_number, name_ + ": " + verb + " of " + std::to_string(length) +
                                              " bytes at " + std::to_string(offset));
}

}  // namespace csnap
