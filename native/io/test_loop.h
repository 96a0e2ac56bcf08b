// A loop device on a file, for tests; none where the machine has no loop driver or we are not root.
// Callers: tests of io/ and volume/.
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>

#include <string>

#include "io/unique_fd.h"

namespace csnap {

class TestLoop {
 public:
  // `block_bytes`: its logical blocks; 0: the kernel's choice. `direct`: it does not cache its
  // file.
  explicit TestLoop(const std::string& file, unsigned long block_bytes = 0, bool direct = false) {
    const UniqueFd control(::open("/dev/loop-control", O_RDWR | O_CLOEXEC));
    const UniqueFd backing(::open(file.c_str(), O_RDWR | O_CLOEXEC));
    if (!control || !backing) return;
    // Others may take the number that we were given.
    for (int attempt = 0; attempt < kAttemptsMax && path_.empty(); attempt++) {
      const int number = ioctl(control.get(), LOOP_CTL_GET_FREE);
      if (number < 0) return;
      const std::string path = "/dev/loop" + std::to_string(number);
      fd_ = UniqueFd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
      if (!fd_) return;
      if (ioctl(fd_.get(), LOOP_SET_FD, backing.get()) == 0)
        path_ = path;
      else if (errno != EBUSY)
        return;
    }
    if (path_.empty()) return;
    if ((block_bytes == 0 || ioctl(fd_.get(), LOOP_SET_BLOCK_SIZE, block_bytes) == 0) &&
        (!direct || ioctl(fd_.get(), LOOP_SET_DIRECT_IO, 1UL) == 0))
      return;
    ioctl(fd_.get(), LOOP_CLR_FD, 0);
    path_.clear();
  }
  ~TestLoop() {
    if (!path_.empty()) ioctl(fd_.get(), LOOP_CLR_FD, 0);
  }
  TestLoop(const TestLoop&) = delete;
  bool ok() const { return !path_.empty(); }
  const std::string& path() const { return path_; }

 private:
  static constexpr int kAttemptsMax = 20;
  std::string path_;
  UniqueFd fd_;
};

}  // namespace csnap
