// Identities of real files: what must keep them, what must change them.
#include "io/identity.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <set>

#include "io/test_directory.h"
#include "io/unique_fd.h"

namespace csnap {
namespace {

DeviceIdentity identity(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  Result<DeviceIdentity> found = read_identity(fd.get(), path);
  REQUIRE_MESSAGE(found.ok(), found.status().to_text());
  return found.take();
}

void make_file(const std::string& path, const char* content) {
  const UniqueFd fd(open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  REQUIRE(dprintf(fd.get(), "%s", content) >= 0);
}

TEST_CASE("a file keeps its identity when it is renamed, linked and written; its times move") {
  const TestDirectory directory;
  const std::string path = directory.file("origin");
  make_file(path, "one");
  const DeviceIdentity first = identity(path);
  CHECK(first.kind == DeviceIdentity::Kind::FILE);
  CHECK(first.text.find("file:") == 0);
  CHECK(first.text.size() <= 511);
  CHECK(first.mtime_ns > 0);
  const std::string renamed = directory.file("renamed");
  REQUIRE(rename(path.c_str(), renamed.c_str()) == 0);
  CHECK(identity(renamed).text == first.text);
  const std::string link_path = directory.file("link");
  REQUIRE(symlink(renamed.c_str(), link_path.c_str()) == 0);
  CHECK(identity(link_path).text == first.text);
  const timespec times[2] = {{1, 5}, {1, 5}};
  REQUIRE(utimensat(AT_FDCWD, renamed.c_str(), times, 0) == 0);
  CHECK(identity(renamed).mtime_ns == 1000000005);
  CHECK(identity(renamed).text == first.text);
}

TEST_CASE("no two files have one identity, not even one that got a deleted file's inode") {
  const TestDirectory directory;
  std::set<std::string> seen;
  for (int i = 0; i < 20; i++) {
    const std::string path = directory.file(std::to_string(i));
    make_file(path, "x");
    CHECK(seen.insert(identity(path).text).second);
  }
  const std::string path = directory.file("again");
  const bool has_generation = seen.begin()->find(",gen=") != std::string::npos;
  for (int i = 0; i < 20; i++) {
    make_file(path, "x");
    const bool fresh = seen.insert(identity(path).text).second;
    if (has_generation) CHECK(fresh);
    REQUIRE(unlink(path.c_str()) == 0);
  }
}

TEST_CASE("what is neither file nor block device has no identity") {
  const UniqueFd fd(open("/dev/null", O_RDONLY | O_CLOEXEC));
  CHECK(read_identity(fd.get(), "/dev/null").status().code() == Code::INVALID_ARGUMENT);
}

TEST_CASE("the boot id is one uuid for the whole boot") {
  const Result<std::string> first = read_boot_id();
  REQUIRE(first.ok());
  CHECK(first.value().size() == 36);
  CHECK(read_boot_id().value() == first.value());
}

}  // namespace
}  // namespace csnap
