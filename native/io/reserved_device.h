// Persistent reservations of a block device by the kernel's ioctls (linux/pr.h), for whoever fences
// or serves. Blocking: a device that is out of reach answers when the kernel gives it up. Callers:
// the addon.
//
// Invariants
//  RD1  Only a whole device is reserved: a partition's or a logical volume's reservation would be
//       its disk's, and shut other hosts out of the rest. Of the device mapper's only multipath
//       passes it on to every path.
//  RD2  RV1: devices that are taken are held exclusively before the first of them is registered at.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "io/file_device.h"
#include "io/reservation.h"

namespace csnap {

// On `device`, which outlives it. NOT_SUPPORTED: no block device, or not a whole one.
Result<std::unique_ptr<ReservationPort>> reservation_port(const FileDevice& device);

// Of a server that has the device open. Errors: those of take_reservation() and the port's.
Status take_device(const FileDevice& device, const ReservationKeys& keys, Gate* gate);

// RV3: of another host that takes over. All are opened exclusively, then taken in this order; what
// was taken stays so (RV5), also where a later one fails. Errors: those of FileDevice::open()
// (BUSY: a server of this host has it) and of take_device().
Status fence_devices(const std::vector<std::string>& paths, const ReservationKeys& keys);

// Whether the device can be taken. Opens it for reading, beside whoever uses it; changes nothing.
Status probe_device_reservation(const std::string& path);

// Ends every reservation of the devices, which nobody may use on this host meanwhile.
Status clear_devices(const std::vector<std::string>& paths, uint64_t own_key);

}  // namespace csnap
