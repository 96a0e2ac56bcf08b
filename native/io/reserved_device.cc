#include "io/reserved_device.h"

#include <errno.h>
#include <linux/pr.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "io/device_users.h"

namespace csnap {
namespace {

class KernelPort final : public ReservationPort {
 public:
  KernelPort(int fd, std::string name) : fd_(fd), name_(std::move(name)) {}

  const std::string& name() const override { return name_; }

  int register_key(uint64_t own_key, uint64_t new_key, bool ignore) override {
    pr_registration request = {};
    request.old_key = own_key;
    request.new_key = new_key;
    request.flags = ignore ? PR_FL_IGNORE_KEY : 0;
    return call(IOC_PR_REGISTER, &request);
  }
  int reserve(uint64_t own_key) override {
    pr_reservation request = {};
    request.key = own_key;
    request.type = PR_WRITE_EXCLUSIVE_REG_ONLY;
    return call(IOC_PR_RESERVE, &request);
  }
  // Both drivers take old_key as the caller's and new_key as the one to be removed, whatever
  // Documentation/block/pr.rst says of them.
  int preempt_and_abort(uint64_t own_key, uint64_t other_key) override {
    pr_preempt request = {};
    request.old_key = own_key;
    request.new_key = other_key;
    request.type = PR_WRITE_EXCLUSIVE_REG_ONLY;
    return call(IOC_PR_PREEMPT_ABORT, &request);
  }
  int clear(uint64_t own_key) override {
    pr_clear request = {};
    request.key = own_key;
    return call(IOC_PR_CLEAR, &request);
  }

 private:
  int call(unsigned long number, void* request) const {
    const int result = ioctl(fd_, number, request);
    return result < 0 ? -errno : result;
  }

  const int fd_;
  const std::string name_;
};

// RD1
Status check_whole(const FileDevice& device) {
  const auto no = [&](const char* why) {
    return Status(Code::NOT_SUPPORTED, device.name() + why +
                                           ": use a whole SCSI or NVMe device, or declare --fence "
                                           "command=CMD");
  };
  if (!device.is_block()) return no(" is no block device, and can't be reserved");
  struct stat info;
  if (fstat(device.fd(), &info) != 0) return Status::from_errno(errno, device.name());
  const std::string directory = sysfs_of(info.st_rdev);
  if (!read_first_line(directory + "/partition").empty())
    return no(" is a partition, and a reservation would be its whole disk's");
  const std::string mapping = read_first_line(directory + "/dm/uuid");
  if (!read_first_line(directory + "/dm/name").empty() && mapping.rfind("mpath-", 0) != 0)
    return no(" is made of other devices, and a reservation would be theirs");
  return Status();
}

using Devices = std::vector<std::unique_ptr<FileDevice>>;

// RD2
Result<Devices> open_exclusively(const std::vector<std::string>& paths) {
  Devices devices;
  for (const std::string& path : paths) {
    CSNAP_TRY_ASSIGN(auto device, FileDevice::open(path, {}));
    devices.push_back(std::move(device));
  }
  return devices;
}

}  // namespace

Result<std::unique_ptr<ReservationPort>> reservation_port(const FileDevice& device) {
  CSNAP_TRY(check_whole(device));
  return std::unique_ptr<ReservationPort>(std::make_unique<KernelPort>(device.fd(), device.name()));
}

Status take_device(const FileDevice& device, const ReservationKeys& keys, Gate* gate) {
  CSNAP_TRY_ASSIGN(const auto port, reservation_port(device));
  return take_reservation(*port, keys, gate);
}

Status fence_devices(const std::vector<std::string>& paths, const ReservationKeys& keys) {
  CSNAP_TRY_ASSIGN(const Devices devices, open_exclusively(paths));
  for (const auto& device : devices) CSNAP_TRY(take_device(*device, keys, nullptr));
  return Status();
}

Status probe_device_reservation(const std::string& path) {
  FileDeviceOptions look;
  look.read_only = true;
  look.lock = false;
  CSNAP_TRY_ASSIGN(const auto device, FileDevice::open(path, look));
  CSNAP_TRY_ASSIGN(const auto port, reservation_port(*device));
  return probe_reservation(*port);
}

Status clear_devices(const std::vector<std::string>& paths, uint64_t own_key) {
  CSNAP_TRY_ASSIGN(const Devices devices, open_exclusively(paths));
  for (const auto& device : devices) {
    CSNAP_TRY_ASSIGN(const auto port, reservation_port(*device));
    CSNAP_TRY(clear_reservation(*port, own_key));
  }
  return Status();
}

}  // namespace csnap
