// Keeps the process able to act while memory is short: it is needed to bring a device back that the
// kernel may be waiting for to free memory. Caller: addon/netlink_calls, once, early.
//
// Invariants
//  P1  What can't be had is said, and is no error: the process goes on as well as it can.
//  P2  Memory that V8 gives back is never locked: V8 aborts where madvise() refuses, which it does
//  in
//      locked memory (so no mlockall). What is locked is the program: its files and libraries, C's
//      heap, the main stack. V8's own heap is kept from the swap by MemorySwapMax=0 of the service.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace csnap::netlink {

struct Hardening {
  bool memory_locked = false;
  // Of the calling thread and of every thread started by it from now on; those that run already
  // (Node's pool, V8's helpers) stay as they are.
  bool io_flusher = false;
  std::vector<std::string> problems;  // one line each
};

Hardening harden_process();

struct Mapping {
  uintptr_t first = 0;
  uintptr_t end = 0;
};
// A line of /proc/self/maps as what P2 lets be locked; absent: something else.
std::optional<Mapping> lockable_mapping(std::string_view line);

}  // namespace csnap::netlink
