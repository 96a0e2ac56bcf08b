#include "netlink/device_access.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <memory>

#include "io/device_users.h"
#include "io/unique_fd.h"

namespace csnap::netlink {
namespace {

constexpr size_t kProbeBytes = 4096;

// How far an access came; in the upper bits of the disposable process's answer.
enum class Step : int { DONE, OPEN, READ, SYNC, FORGET };

struct Outcome {
  Step step;
  int error;  // errno; 0 with READ: the device is empty
};

struct alignas(kProbeBytes) ProbeBuffer {
  char bytes[kProbeBytes];
};

struct Access {
  const char* path;
  int flags;
  ProbeBuffer* buffer;  // null: flush instead of read
};

// ---- In the disposable process: system calls only (A2) -----------------------------------------

Outcome perform(const Access& access) {
  const int fd = open(access.path, access.flags | O_CLOEXEC);
  if (fd < 0) return {Step::OPEN, errno};
  if (access.buffer != nullptr) {
    const ssize_t n = pread(fd, access.buffer->bytes, kProbeBytes, 0);
    return n > 0 ? Outcome{Step::DONE, 0} : Outcome{Step::READ, n < 0 ? errno : 0};
  }
  if (fsync(fd) != 0) return {Step::SYNC, errno};
  if (ioctl(fd, BLKFLSBUF, 0) != 0) return {Step::FORGET, errno};
  return {Step::DONE, 0};
}

[[noreturn]] void be_disposable(const Access& access, int answer_fd) {
  // Where it can still be killed it does not outlive the thread that waits for it.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  const int answer = dup2(answer_fd, 0);
  syscall(SYS_close_range, 1u, ~0u, 0u);  // A1; Linux 5.9
  const Outcome outcome = perform(access);
  if (answer == 0) (void)!write(0, &outcome, sizeof outcome);
  _exit(0);
}

// ---- In ours -----------------------------------------------------------------------------------

Result<Outcome> run_disposable(const Access& access) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return Status::from_errno(errno, "a pipe can't be made");
  UniqueFd answer(ends[0]);
  UniqueFd question(ends[1]);
  const pid_t child = fork();
  if (child == 0) be_disposable(access, question.get());
  if (child < 0) return Status::from_errno(errno, "a process can't be started");
  question.reset();
  Outcome outcome = {};
  ssize_t n;
  do {
    n = read(answer.get(), &outcome, sizeof outcome);
  } while (n < 0 && errno == EINTR);
  while (waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
  }
  if (n != static_cast<ssize_t>(sizeof outcome))
    return Status(Code::IO_ERROR, "the process that accessed a device was killed", EINTR);
  return outcome;
}

Status refused_open(const std::string& path, int error) {
  const std::string what = path + " can't be opened: " + strerror(error);
  switch (error) {
    case EBUSY: {
      struct stat info = {};
      const std::string user = stat(path.c_str(), &info) == 0 ? find_user(path, info) : "";
      return Status(Code::BUSY, path + " is in use" + (user.empty() ? "" : " by " + user), error);
    }
    case ENOENT:
    case ENXIO:
    case ENODEV:
      return Status(Code::NOT_FOUND, what, error);
    case EROFS:
    case EACCES:
    case EPERM:
      return Status(error == EROFS ? Code::READ_ONLY : Code::PERMISSION, what, error);
    default:
      return Status::from_errno(error, path + " can't be opened");
  }
}

Status to_status(const std::string& path, const Outcome& outcome) {
  switch (outcome.step) {
    case Step::DONE:
      return Status();
    case Step::OPEN:
      return refused_open(path, outcome.error);
    case Step::READ:
      if (outcome.error == 0) return Status(Code::NOT_FOUND, path + " holds nothing: size 0");
      return Status::from_errno(outcome.error, path + " can't be read");
    case Step::SYNC:
      return Status::from_errno(outcome.error, path + " can't be flushed: data may be lost");
    case Step::FORGET:
      return Status::from_errno(outcome.error, "the cache of " + path + " can't be dropped");
  }
  return Status(Code::IO_ERROR, path + ": the access ended in no known way");
}

Status access_device(const Access& access) {
  CSNAP_TRY_ASSIGN(const Outcome outcome, run_disposable(access));
  return to_status(access.path, outcome);
}

}  // namespace

Status probe_device(const std::string& path) {
  const auto buffer = std::make_unique<ProbeBuffer>();
  return access_device({path.c_str(), O_RDONLY | O_DIRECT, buffer.get()});
}

Status flush_unused_device(const std::string& path, bool read_only) {
  struct stat info = {};
  if (stat(path.c_str(), &info) == 0 && !S_ISBLK(info.st_mode))
    return Status(Code::INVALID_ARGUMENT, path + " is no block device", ENOTBLK);
  return access_device({path.c_str(), (read_only ? O_RDONLY : O_RDWR) | O_EXCL, nullptr});
}

}  // namespace csnap::netlink
