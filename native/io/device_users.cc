#include "io/device_users.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <string_view>

#include "io/unique_fd.h"

namespace csnap {
namespace {

// Calls `visit` for each name in a directory until it returns false.
void each_name(const std::string& directory, const std::function<bool(const char*)>& visit) {
  std::unique_ptr<DIR, int (*)(DIR*)> dir(opendir(directory.c_str()), closedir);
  if (!dir) return;
  while (const dirent* entry = readdir(dir.get()))
    if (entry->d_name[0] != '.' && !visit(entry->d_name)) return;
}

std::string read_link(const std::string& path) {
  char target[PATH_MAX];
  const ssize_t length = readlink(path.c_str(), target, sizeof target);
  return length < 0 ? std::string() : std::string(target, static_cast<size_t>(length));
}

std::string canonical(const std::string& path) {
  std::unique_ptr<char, void (*)(void*)> real(realpath(path.c_str(), nullptr), free);
  return real ? std::string(real.get()) : path;
}

// Calls `visit` for each line of a text file until it returns false.
void each_line(const char* path, const std::function<bool(std::string_view)>& visit) {
  std::unique_ptr<FILE, int (*)(FILE*)> file(fopen(path, "re"), fclose);
  if (!file) return;
  char line[4096];  // a longer line is seen in parts; the fields looked at stand at its start
  while (fgets(line, sizeof line, file.get()) != nullptr)
    if (!visit(line)) return;
}

// The n-th field (from 0) of a line with fields between blanks.
std::string field(std::string_view line, int n) {
  for (size_t start = 0;;) {
    start = line.find_first_not_of(" \t\n", start);
    if (start == line.npos) return {};
    const size_t end = line.find_first_of(" \t\n", start);
    if (n-- == 0) return std::string(line.substr(start, end - start));
    if (end == line.npos) return {};
    start = end;
  }
}

std::string find_mount(dev_t device) {
  const std::string wanted = std::to_string(major(device)) + ":" + std::to_string(minor(device));
  std::string found;
  each_line("/proc/self/mountinfo", [&](std::string_view line) {
    if (field(line, 2) != wanted) return true;
    found = "the mount at " + field(line, 4);
    return false;
  });
  return found;
}

std::string find_swap(const std::string& real) {
  std::string found;
  each_line("/proc/swaps", [&](std::string_view line) {
    if (field(line, 0) != real) return true;
    found = "swap space";
    return false;
  });
  return found;
}

// A whole disk is held when one of its partitions is mounted or claimed.
std::string find_block_holder(dev_t device) {
  std::string found = find_mount(device);
  const std::string sysfs = sysfs_of(device);
  each_name(sysfs + "/holders", [&](const char* name) {
    found = std::string("/dev/") + name;
    return false;
  });
  if (!found.empty()) return found;
  each_name(sysfs, [&](const char* name) {
    const std::string inner = sysfs + "/" + name;
    if (read_first_line(inner + "/partition").empty()) return true;
    unsigned part_major = 0;
    unsigned part_minor = 0;
    if (sscanf(read_first_line(inner + "/dev").c_str(), "%u:%u", &part_major, &part_minor) != 2)
      return true;
    found = find_block_holder(makedev(part_major, part_minor));
    return found.empty();
  });
  return found;
}

std::string find_process(const std::string& real) {
  std::string found;
  each_name("/proc", [&](const char* pid) {
    if (pid[0] < '0' || pid[0] > '9') return true;
    const std::string process = std::string("/proc/") + pid;
    each_name(process + "/fd", [&](const char* fd) {
      if (read_link(process + "/fd/" + fd) != real) return true;
      if (atoi(pid) == getpid())
        found = "this process";
      else
        found = std::string("process ") + pid + " (" + read_first_line(process + "/comm") + ")";
      return false;
    });
    return found.empty();
  });
  return found;
}

}  // namespace

std::string read_first_line(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return {};
  char text[4096];
  const ssize_t length = read(fd.get(), text, sizeof text);
  if (length <= 0) return {};
  std::string_view line(text, static_cast<size_t>(length));
  line = line.substr(0, line.find('\n'));
  const size_t start = line.find_first_not_of(" \t");
  if (start == line.npos) return {};
  return std::string(line.substr(start, line.find_last_not_of(" \t") + 1 - start));
}

std::string sysfs_of(dev_t device) {
  return "/sys/dev/block/" + std::to_string(major(device)) + ":" + std::to_string(minor(device));
}

std::string loop_backing_file(dev_t device) {
  return read_first_line(sysfs_of(device) + "/loop/backing_file");
}

std::string find_loop_device(const struct stat& info) {
  std::string found;
  each_name("/sys/block", [&](const char* name) {
    if (std::string_view(name).substr(0, 4) != "loop") return true;
    const std::string backing =
        read_first_line(std::string("/sys/block/") + name + "/loop/backing_file");
    struct stat other;
    if (backing.empty() || stat(backing.c_str(), &other) != 0) return true;
    if (other.st_dev != info.st_dev || other.st_ino != info.st_ino) return true;
    found = std::string("/dev/") + name;
    return false;
  });
  return found;
}

std::string find_user(const std::string& path, const struct stat& info) {
  const std::string real = canonical(path);
  std::string found;
  if (S_ISBLK(info.st_mode)) found = find_block_holder(info.st_rdev);
  if (found.empty()) found = find_swap(real);
  if (found.empty()) found = find_process(real);
  return found;
}

}  // namespace csnap
