// The four commands of the kernel's nbd client: connect, reconfigure, disconnect, status. Callers:
// addon/netlink_calls, each on a thread of its own.
//
// Invariants
//  C1  Each command has a netlink socket of its own, so that one which the kernel does not answer
//      holds up no other through us (the kernel itself runs them one after the other).
//  C2  What can be known to be wrong is refused here, with the reason: the kernel only says EINVAL
//      and puts the reason into its log.
//  C3  A command is sent a second time only if the kernel never saw it: the family's id had changed
//      (ENOENT) because the module was loaded anew.
//
// Every error is one line for a person. PERMISSION: CAP_SYS_ADMIN is missing. NOT_SUPPORTED: no nbd
// family. BUSY: somebody else has the device. NOT_FOUND: the device is not attached.
#pragma once

#include <vector>

#include "base/status.h"
#include "netlink/nbd_messages.h"

namespace csnap::netlink {

// The descriptors are looked up by the kernel during the call, which takes references of its own;
// the caller may close them afterwards. Returns the device's index.
Result<uint32_t> connect_device(const ConnectOptions& options, const std::vector<int>& fds);

// Success says only that the kernel took the message: of sockets, each fills one dead slot, and
// those for which there is none are dropped silently.
Status reconfigure_device(const ReconfigureOptions& options, const std::vector<int>& fds);

// The kernel neither asks for users of the device nor for its backend. A device that exists and is
// not connected is no error.
Status disconnect_device(uint32_t index);

Result<std::vector<DeviceStatus>> device_status();

// The family's ids: asked once and remembered; asked again.
Result<Family> find_family();
Result<Family> refresh_family();

}  // namespace csnap::netlink
