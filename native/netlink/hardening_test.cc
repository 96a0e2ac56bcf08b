// Which of a process's mappings may be locked (P2).
#include "netlink/hardening.h"

#include <doctest/doctest.h>

namespace csnap::netlink {
namespace {

TEST_CASE("hardening: the program and its libraries are locked, V8's memory is not") {
  const auto locked = [](const char* line) { return lockable_mapping(line).has_value(); };
  const auto mapping = lockable_mapping(
      "55d0c0a00000-55d0c0b00000 r-xp 00001000 fe:00 131 /usr/bin/node with spaces\n");
  REQUIRE(mapping);
  CHECK(mapping->first == 0x55d0c0a00000);
  CHECK(mapping->end == 0x55d0c0b00000);
  CHECK(locked("7f0000000000-7f0000001000 rw-p 00000000 00:00 0 [heap]"));
  CHECK(locked("7f0000000000-7f0000001000 rw-p 00000000 00:00 0                  [stack]\n"));
  CHECK_FALSE(locked("7f0000000000-7f0000001000 rw-p 00000000 00:00 0 "));
  CHECK_FALSE(locked("7f0000000000-7f0000001000 ---p 00000000 fe:00 131 /usr/bin/node"));
  CHECK_FALSE(locked("7f0000000000-7f0000001000 rw-s 00000000 00:05 7 /dev/nbd0"));
  CHECK_FALSE(locked("7f0000000000-7f0000001000 r--p 00000000 00:00 0 [vvar]"));
  CHECK_FALSE(locked("7f0000000000-7f0000001000 rw-p 00000000 00:00 0 [anon: V8]"));
}

TEST_CASE("hardening: what is no line of the list is nothing") {
  for (const char* line : {"", "\n", "-", "x-y r-xp 0 0 1 /a", "1000-1000 r-xp 0 0 1 /a",
                           "2000-1000 r-xp 0 0 1 /a", "1000 r-xp 0 0 1 /a", "1000-2000",
                           "1000-2000 r-xp 0 0", "1000-ffffffffffffffffff r-xp 0 0 1 /a"}) {
    CAPTURE(line);
    CHECK_FALSE(lockable_mapping(line));
  }
}

}  // namespace
}  // namespace csnap::netlink
