#include "netlink/hardening.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include <charconv>
#include <cstdio>
#include <memory>

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57  // Linux 5.6
#endif

namespace csnap::netlink {
namespace {

struct CloseFile {
  void operator()(FILE* file) const { fclose(file); }
};

// The next word of a line, which loses it and the spaces behind.
std::string_view take_word(std::string_view& line) {
  const size_t length = std::min(line.find(' '), line.size());
  const std::string_view word = line.substr(0, length);
  line.remove_prefix(length);
  line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
  return word;
}

bool take_hex(std::string_view text, uintptr_t& out) {
  const char* const end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data(), end, out, 16);
  return error == std::errc() && stopped == end;
}

// 0, or the errno of the first mapping that could not be locked.
int lock_program() {
  const std::unique_ptr<FILE, CloseFile> maps(fopen("/proc/self/maps", "re"));
  if (!maps) return errno;
  // First all lines, then the locks: locking splits and joins what is being listed.
  std::vector<Mapping> mappings;
  char line[4096 + 128];  // a path and what stands before it
  while (fgets(line, sizeof line, maps.get()) != nullptr)
    if (const auto mapping = lockable_mapping(line)) mappings.push_back(*mapping);
  int failure = mappings.empty() ? ENOENT : 0;
  for (const auto& [first, end] : mappings) {
    // ONFAULT: what was never used is not read for this.
    const int result = mlock2(reinterpret_cast<const void*>(first), end - first, MLOCK_ONFAULT);
    if (result != 0 && failure == 0) failure = errno;
  }
  return failure;
}

}  // namespace

std::optional<Mapping> lockable_mapping(std::string_view line) {
  if (line.ends_with('\n')) line.remove_suffix(1);
  const std::string_view range = take_word(line);
  const std::string_view rights = take_word(line);
  take_word(line);  // offset
  take_word(line);  // device
  const std::string_view inode = take_word(line);
  const std::string_view path = line;
  const size_t dash = range.find('-');
  Mapping mapping;
  if (dash == range.npos || !take_hex(range.substr(0, dash), mapping.first) ||
      !take_hex(range.substr(dash + 1), mapping.end) || mapping.end <= mapping.first)
    return std::nullopt;
  const bool file = !inode.empty() && inode != "0" && path.starts_with('/') &&
                    !path.starts_with("/dev/") && !path.starts_with("/memfd:");
  const bool own = path == "[heap]" || path == "[stack]";
  if (!rights.starts_with('r') || (!file && !own)) return std::nullopt;
  return mapping;
}

Hardening harden_process() {
  Hardening got;
  const int failure = lock_program();
  got.memory_locked = failure == 0;
  if (!got.memory_locked)
    got.problems.push_back(std::string("the program can't be locked in memory: ") +
                           strerror(failure) + "; give CAP_IPC_LOCK or LimitMEMLOCK=infinity");
  got.io_flusher = prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) == 0;
  if (!got.io_flusher)
    got.problems.push_back(std::string("the kernel does not take the process for one that its I/O "
                                       "depends on (PR_SET_IO_FLUSHER): ") +
                           strerror(errno) + "; give CAP_SYS_RESOURCE, kernel >= 5.6");
  return got;
}

}  // namespace csnap::netlink
