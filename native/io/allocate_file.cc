// allocate_in_full() of file_device.h: a store file gets every byte at init, because a hole that
// the file system can't fill later would fail a copy-out in the middle of somebody's write.
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include <algorithm>
#include <vector>

#include "io/file_device.h"

namespace csnap {
namespace {

constexpr uint64_t kStepBytes = uint64_t{64} << 20;  // between two calls of `progress`
constexpr size_t kZeroBytes = 1 << 20;

Status step_error(const std::string& path, uint64_t bytes, int error_number) {
  if (error_number == ENOSPC || error_number == EDQUOT || error_number == EFBIG)
    return Status(Code::NO_SPACE,
                  path + " can't be allocated in full (" + std::to_string(bytes) + " bytes): " +
                      strerror(error_number) + "; free some space or choose a smaller size",
                  error_number);
  return Status::from_errno(error_number, path + " can't be allocated");
}

// Holes of [start, end) get zeros; what is data stays. For file systems without fallocate.
Status fill_holes(int fd, const std::string& path, uint64_t start, uint64_t end,
                  const std::vector<char>& zeros, uint64_t bytes) {
  while (start < end) {
    off_t data = lseek(fd, static_cast<off_t>(start), SEEK_DATA);
    if (data < 0 && errno == ENXIO) data = static_cast<off_t>(end);
    if (data < 0) return step_error(path, bytes, errno);
    uint64_t hole_end = std::min(end, static_cast<uint64_t>(data));
    while (start < hole_end) {
      const size_t piece = static_cast<size_t>(std::min<uint64_t>(hole_end - start, zeros.size()));
      const ssize_t n = pwrite(fd, zeros.data(), piece, static_cast<off_t>(start));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return step_error(path, bytes, n < 0 ? errno : ENOSPC);
      start += static_cast<uint64_t>(n);
    }
    if (start >= end) break;
    const off_t hole = lseek(fd, static_cast<off_t>(start), SEEK_HOLE);
    if (hole < 0) return step_error(path, bytes, errno);
    start = static_cast<uint64_t>(hole);
  }
  return Status();
}

Status allocate_steps(int fd, const std::string& path, uint64_t bytes,
                      const std::function<void(uint64_t, uint64_t)>& progress) {
  std::vector<char> zeros;  // non-empty: the file system can't allocate
  for (uint64_t done = 0; done < bytes;) {
    const uint64_t step = std::min(kStepBytes, bytes - done);
    if (zeros.empty()) {
      if (fallocate(fd, 0, static_cast<off_t>(done), static_cast<off_t>(step)) != 0) {
        if (errno == EINTR) continue;
        if (errno != EOPNOTSUPP && errno != ENOSYS) return step_error(path, bytes, errno);
        zeros.resize(kZeroBytes);
        continue;
      }
    } else {
      CSNAP_TRY(fill_holes(fd, path, done, done + step, zeros, bytes));
    }
    done += step;
    if (progress) progress(done, bytes);
  }
  return Status();
}

}  // namespace

Status allocate_in_full(const std::string& path, uint64_t bytes,
                        const std::function<void(uint64_t, uint64_t)>& progress, bool& created) {
  created = false;
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (fd)
    created = true;
  else if (errno == EEXIST)
    fd = UniqueFd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!fd) {
    if (errno == EROFS)
      return Status(Code::READ_ONLY, path + " can't be made: its file system is read-only", EROFS);
    return Status::from_errno(errno, path + " can't be made");
  }
  struct stat info;
  if (fstat(fd.get(), &info) != 0) return Status::from_errno(errno, path);
  if (!S_ISREG(info.st_mode))
    return Status(Code::INVALID_ARGUMENT, path + " is not a regular file");
  Status status;
  // Cutting first gives back what the new size does not need.
  if (ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0)
    status = step_error(path, bytes, errno);
  else
    status = allocate_steps(fd.get(), path, bytes, progress);
  if (status.ok() && fsync(fd.get()) != 0) status = step_error(path, bytes, errno);
  if (status.ok()) return status;
  if (created)
    unlink(path.c_str());
  else if (info.st_size < static_cast<off_t>(bytes))
    (void)!ftruncate(fd.get(), info.st_size);
  created = false;
  return status;
}

Status sync_directory_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string directory = slash == std::string::npos ? "."
                                : slash == 0               ? "/"
                                                           : path.substr(0, slash);
  const UniqueFd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd || fsync(fd.get()) != 0) return Status::from_errno(errno, directory + ": sync");
  return Status();
}

}  // namespace csnap
