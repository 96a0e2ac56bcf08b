// What makes an origin this origin and no other, in words that survive reboots, remounts and new
// device numbers; and the id of this boot. The addon hands both to Volume::open().
//
// Text, at most 511 bytes
//   file:fs=<id>,ino=<n>[,gen=<n>]   fs: uuid of an xfs, else the file system's stable fsid, else
//   the
//                                    uuid of its device; left out where it has none of these
//   block:<source>=<id>[,part=<n>]   source: dm, md, wwid, cid or serial, from sysfs, else by-id
//   block:weak=<major>:<minor>       nothing better was found: `weak` is set
// A loop device has its backing file's identity, plus ",offset=<n>" where it starts inside.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"

namespace csnap {

struct DeviceIdentity {
  enum class Kind { FILE, BLOCK, LOOP };
  Kind kind = Kind::FILE;
  std::string text;
  bool weak = false;      // may not survive a reboot, or may be shared by two devices
  uint64_t mtime_ns = 0;  // of a file; 0 for block devices
  uint64_t ctime_ns = 0;
};

// Of an open file or block device; `name` for messages. Errors: IO_ERROR, INVALID_ARGUMENT.
Result<DeviceIdentity> read_identity(int fd, const std::string& name);

// /proc/sys/kernel/random/boot_id: a uuid as text. Errors: IO_ERROR.
Result<std::string> read_boot_id();

}  // namespace csnap
