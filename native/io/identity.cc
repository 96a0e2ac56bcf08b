#include "io/identity.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>

#include <memory>

#include "io/device_users.h"
#include "io/unique_fd.h"

namespace csnap {
namespace {

constexpr size_t kTextBytesMax = 511;
constexpr size_t kIdBytesMax = 400;
constexpr long kXfsMagic = 0x58465342;

// The head of what XFS_IOC_FSGEOMETRY_V1 answers; the uuid is all that is looked at.
struct XfsGeometry {
  uint32_t sizes[8];
  uint64_t counts[4];
  unsigned char uuid[16];
  uint32_t rest[8];
};
static_assert(sizeof(XfsGeometry) == 112);
#define CSNAP_XFS_IOC_FSGEOMETRY_V1 _IOR('X', 100, XfsGeometry)

std::string hex(const unsigned char* bytes, size_t count) {
  std::string text;
  char pair[3];
  for (size_t i = 0; i < count; i++) {
    snprintf(pair, sizeof pair, "%02x", bytes[i]);
    text += pair;
  }
  return text;
}

// Serial numbers may hold blanks or anything else; the text is compared, printed and stored.
std::string cleaned(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (out.size() == kIdBytesMax) break;
    const bool plain = c > ' ' && c < 0x7f && c != ',' && c != '=';
    if (plain)
      out += c;
    else if (!out.empty() && out.back() != '_')
      out += '_';
  }
  return out;
}

// The name in a directory of links to devices (by-uuid, by-id) that leads to this device; of
// several the first in the alphabet, so that the answer does not depend on the directory's order.
std::string link_to_device(const std::string& directory, dev_t device) {
  std::unique_ptr<DIR, int (*)(DIR*)> dir(opendir(directory.c_str()), closedir);
  std::string found;
  if (!dir) return found;
  while (const dirent* entry = readdir(dir.get())) {
    struct stat info;
    if (stat((directory + "/" + entry->d_name).c_str(), &info) != 0) continue;
    if (!S_ISBLK(info.st_mode) || info.st_rdev != device) continue;
    if (found.empty() || entry->d_name < found) found = entry->d_name;
  }
  return found;
}

// Many file systems (xfs, fat, squashfs) answer statfs with their device number as fsid, which
// changes from boot to boot: the kernel's encoding of major and minor in the first word.
bool is_device_number(const fsid_t& fsid, dev_t device) {
  const uint64_t low = static_cast<uint32_t>(fsid.__val[0]);
  const uint64_t high = static_cast<uint32_t>(fsid.__val[1]);
  const uint64_t encoded =
      (minor(device) & 0xff) | (major(device) << 8) | ((minor(device) & ~0xffU) << 12);
  return high == 0 && low == encoded;
}

std::string file_system_id(int fd, dev_t device) {
  struct statfs fs;
  if (fstatfs(fd, &fs) != 0) return {};
  if (static_cast<long>(fs.f_type) == kXfsMagic) {
    XfsGeometry geometry = {};
    if (ioctl(fd, CSNAP_XFS_IOC_FSGEOMETRY_V1, &geometry) == 0)
      return hex(geometry.uuid, sizeof geometry.uuid);
  }
  const bool empty = fs.f_fsid.__val[0] == 0 && fs.f_fsid.__val[1] == 0;
  if (!empty && !is_device_number(fs.f_fsid, device)) {
    char text[17];
    snprintf(text, sizeof text, "%08x%08x", static_cast<unsigned>(fs.f_fsid.__val[1]),
             static_cast<unsigned>(fs.f_fsid.__val[0]));
    return text;
  }
  return cleaned(link_to_device("/dev/disk/by-uuid", device));
}

uint64_t nanoseconds(const timespec& time) {
  return static_cast<uint64_t>(time.tv_sec) * 1000000000 + static_cast<uint64_t>(time.tv_nsec);
}

DeviceIdentity file_identity(int fd, const struct stat& info) {
  DeviceIdentity identity;
  identity.kind = DeviceIdentity::Kind::FILE;
  const std::string fs = file_system_id(fd, info.st_dev);
  identity.weak = fs.empty();
  identity.text = "file:" + (fs.empty() ? std::string() : "fs=" + fs + ",") +
                  "ino=" + std::to_string(info.st_ino);
  // Tells a new file from a deleted one whose inode number it got. The kernel fills in an int,
  // whatever the ioctl's name says about long.
  long generation = 0;
  if (ioctl(fd, FS_IOC_GETVERSION, &generation) == 0)
    identity.text += ",gen=" + std::to_string(static_cast<uint32_t>(generation));
  identity.mtime_ns = nanoseconds(info.st_mtim);
  identity.ctime_ns = nanoseconds(info.st_ctim);
  return identity;
}

// "wwid=..." of a whole disk from its sysfs directory; empty if it has none.
std::string disk_id(const std::string& sysfs) {
  static constexpr const char* kSources[][2] = {
      {"dm", "/dm/uuid"},           {"md", "/md/uuid"},     {"wwid", "/wwid"},
      {"wwid", "/device/wwid"},     {"cid", "/device/cid"}, {"serial", "/serial"},
      {"serial", "/device/serial"},
  };
  for (const auto& [source, file] : kSources) {
    const std::string id = cleaned(read_first_line(sysfs + file));
    if (!id.empty()) return std::string(source) + "=" + id;
  }
  return {};
}

DeviceIdentity block_identity(dev_t device) {
  DeviceIdentity identity;
  identity.kind = DeviceIdentity::Kind::BLOCK;
  const std::string sysfs = sysfs_of(device);
  const std::string partition = read_first_line(sysfs + "/partition");
  std::string id = disk_id(partition.empty() ? sysfs : sysfs + "/..");
  if (!id.empty()) {
    if (!partition.empty()) id += ",part=" + partition;
  } else if (std::string link = cleaned(link_to_device("/dev/disk/by-id", device)); !link.empty()) {
    id = "by-id=" + link;
  } else {
    id = "weak=" + std::to_string(major(device)) + ":" + std::to_string(minor(device));
    identity.weak = true;
  }
  identity.text = "block:" + id;
  return identity;
}

// False: no loop device, or its file is out of sight.
bool loop_identity(dev_t device, DeviceIdentity& identity) {
  const std::string backing = loop_backing_file(device);
  if (backing.empty()) return false;
  const UniqueFd fd(open(backing.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat info;
  if (!fd || fstat(fd.get(), &info) != 0 || !S_ISREG(info.st_mode)) return false;
  identity = file_identity(fd.get(), info);
  identity.kind = DeviceIdentity::Kind::LOOP;
  // A file's times say whether somebody wrote to it; through a loop device they lag behind.
  identity.mtime_ns = 0;
  identity.ctime_ns = 0;
  const std::string offset = read_first_line(sysfs_of(device) + "/loop/offset");
  if (!offset.empty() && offset != "0") identity.text += ",offset=" + offset;
  return true;
}

}  // namespace

Result<DeviceIdentity> read_identity(int fd, const std::string& name) {
  struct stat info;
  if (fstat(fd, &info) != 0) return Status::from_errno(errno, name + ": identity");
  DeviceIdentity identity;
  if (S_ISREG(info.st_mode))
    identity = file_identity(fd, info);
  else if (!S_ISBLK(info.st_mode))
    return Status(Code::INVALID_ARGUMENT, name + " is neither a file nor a block device");
  else if (!loop_identity(info.st_rdev, identity))
    identity = block_identity(info.st_rdev);
  CSNAP_ASSERT(identity.text.size() <= kTextBytesMax);
  return identity;
}

Result<std::string> read_boot_id() {
  const char* const path = "/proc/sys/kernel/random/boot_id";
  std::string id = read_first_line(path);
  if (id.size() != 36)
    return Status(Code::IO_ERROR, std::string(path) + " can't be read: is /proc mounted?");
  return id;
}

}  // namespace csnap
