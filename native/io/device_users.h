// Who holds a file or block device: found in /proc and /sys for the one line that a refusal prints.
// Best effort and read-only: an empty answer means "not found", never "free". Caller: FileDevice.
#pragma once

#include <sys/stat.h>

#include <string>

namespace csnap {

// Who has the object open or mounted, in words that end "is in use by …": "process 71 (node)",
// "the mount at /srv", "/dev/dm-3". Empty: nobody found. `path` names the object, `info` is its
// stat(). The caller holds no descriptor of its own on the object meanwhile.
std::string find_user(const std::string& path, const struct stat& info);

// The loop device ("/dev/loop0") that is backed by the regular file of `info`. Empty: none.
std::string find_loop_device(const struct stat& info);

// Path of the file behind a loop device; empty where the device is none or its file is out of
// sight.
std::string loop_backing_file(dev_t device);

// First line of a small file of /proc or /sys without white space around it; empty on any error.
std::string read_first_line(const std::string& path);

// "/sys/dev/block/8:1"
std::string sysfs_of(dev_t device);

}  // namespace csnap
