// The two accesses to an attached device that may hang with it: the read that proves its way to the
// server, and the flush before it is detached. Callers: addon/netlink_calls, on threads of their
// own.
//
// Invariants
//  A1  The access is made by a disposable process that holds nothing of ours: no descriptor, no
//      lock. A process one of whose threads hangs inside the kernel can't end, and keeps its locks
//      and its listening sockets from the one that is to take its place.
//  A2  The disposable process runs nothing but system calls: it was forked off a process with
//      threads, whose locks may be held.
#pragma once

#include <string>

#include "base/status.h"

namespace csnap::netlink {

// Reads the first 4096 bytes past the page cache (fewer where the device is smaller). The first
// open of a device also scans for partitions. NOT_FOUND: no such device, or no medium. IO_ERROR.
Status probe_device(const std::string& path);

// Writes back what the page cache holds and forgets it. BUSY: somebody uses the device (mounted, in
// a mapping, opened exclusively). READ_ONLY: `read_only` is false and the device can't be written.
Status flush_unused_device(const std::string& path, bool read_only);

}  // namespace csnap::netlink
