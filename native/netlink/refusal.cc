#include "netlink/refusal.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "io/device_users.h"

namespace csnap::netlink {
namespace {

std::string device_name(uint32_t index) { return "/dev/nbd" + std::to_string(index); }
std::string sysfs_file(uint32_t index, const char* name) {
  return "/sys/block/nbd" + std::to_string(index) + "/" + name;
}

struct Device {
  bool exists = false;
  bool connected = false;  // it has a configuration
  std::string backend;
};

Device look_at(uint32_t index) {
  Device device;
  device.exists = access(sysfs_file(index, "size").c_str(), F_OK) == 0;
  device.connected = access(sysfs_file(index, "pid").c_str(), F_OK) == 0;
  device.backend = read_first_line(sysfs_file(index, "backend"));
  return device;
}

// What the kernel itself said of the reason, else `likely`.
Status refused(Code code, const std::string& what, const Verdict& verdict,
               const std::string& likely) {
  std::string line = what + ": " + (verdict.text.empty() ? strerror(verdict.error) : verdict.text);
  if (!likely.empty()) line += "; " + likely;
  return Status(code, std::move(line), verdict.error);
}

Status not_allowed(const std::string& what, const Verdict& verdict) {
  return refused(Code::PERMISSION, what, verdict,
                 "this needs CAP_SYS_ADMIN: run csnap agent as root");
}

Code code_of(int error) {
  if (error == EBUSY || error == EEXIST) return Code::BUSY;
  if (error == EINVAL || error == EBADF || error == ENOTSOCK) return Code::INVALID_ARGUMENT;
  if (error == ENODEV || error == ENXIO) return Code::NOT_FOUND;
  return Status::from_errno(error, "").code();
}

// Of a command for a device that has to exist. An ok Status: the device is no reason.
Status device_missing(const Device& device, const std::string& what, const Verdict& verdict) {
  if (device.exists) return Status();
  return refused(Code::NOT_FOUND, what, verdict,
                 "there is no such device: see /sys/block/nbd*/backend for those there are");
}

}  // namespace

Status no_family() {
  return Status(Code::NOT_SUPPORTED,
                "the kernel has no nbd netlink family: `modprobe nbd`, kernel >= 5.10, outside any "
                "network namespace",
                ENOENT);
}

Status connect_refused(std::optional<uint32_t> index, const Verdict& verdict) {
  if (verdict.error == ENOENT) return no_family();
  const std::string what =
      index ? device_name(*index) + " can't be made" : std::string("no nbd device can be made");
  if (verdict.error == EPERM) return not_allowed(what, verdict);
  if (verdict.error == EBUSY && index) {
    const Device device = look_at(*index);
    std::string holder = "it is in use";
    if (!device.backend.empty()) holder += " as attachment " + device.backend;
    return refused(Code::BUSY, what, verdict,
                   holder + ": detach it, wait for its last user to close it, or take another one");
  }
  if (verdict.error == EINVAL)
    return refused(Code::INVALID_ARGUMENT, what, verdict,
                   index ? "the index is beyond the kernel's limit, or the device is just going "
                           "away (try again); `dmesg` names the reason"
                         : "the device is just going away (try again), or the kernel does not "
                           "take the socket; `dmesg` names the reason");
  return refused(code_of(verdict.error), what, verdict, "");
}

Status reconfigure_refused(const ReconfigureOptions& options, const Verdict& verdict) {
  if (verdict.error == ENOENT) return no_family();
  const std::string what = device_name(options.index) + " can't be reconfigured";
  if (verdict.error == EPERM) return not_allowed(what, verdict);
  if (verdict.error != EINVAL) return refused(code_of(verdict.error), what, verdict, "");
  const Device device = look_at(options.index);
  CSNAP_TRY(device_missing(device, what, verdict));
  if (!device.connected)
    return refused(Code::NOT_FOUND, what, verdict, "it is not attached: attach it anew");
  if (!device.backend.empty() && device.backend != options.backend)
    return refused(Code::BUSY, what, verdict,
                   "it belongs to attachment " + device.backend + ", not to " + options.backend);
  return refused(Code::INVALID_ARGUMENT, what, verdict,
                 "it is just being detached (its last user has not closed it), or the kernel does "
                 "not take the new size; `dmesg` names the reason");
}

Status disconnect_refused(uint32_t index, const Verdict& verdict) {
  if (verdict.error == ENOENT) return no_family();
  const std::string what = device_name(index) + " can't be disconnected";
  if (verdict.error == EPERM) return not_allowed(what, verdict);
  if (verdict.error == EINVAL) {
    CSNAP_TRY(device_missing(look_at(index), what, verdict));
    return refused(Code::BUSY, what, verdict, "it is just going away");
  }
  return refused(code_of(verdict.error), what, verdict, "");
}

Status status_refused(const Verdict& verdict) {
  if (verdict.error == ENOENT) return no_family();
  const std::string what = "the nbd devices can't be listed";
  if (verdict.error == EPERM) return not_allowed(what, verdict);
  return refused(code_of(verdict.error), what, verdict, "");
}

}  // namespace csnap::netlink
