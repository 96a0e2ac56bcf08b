// Why the kernel said no, in one line: its errno, its own words where it sent any, and what sysfs
// shows of the device at that moment (best effort: the state may have changed since). Caller:
// nbd_client.
#pragma once

#include <optional>

#include "base/status.h"
#include "netlink/nbd_messages.h"

namespace csnap::netlink {

Status no_family();
Status connect_refused(std::optional<uint32_t> index, const Verdict& verdict);
Status reconfigure_refused(const ReconfigureOptions& options, const Verdict& verdict);
Status disconnect_refused(uint32_t index, const Verdict& verdict);
Status status_refused(const Verdict& verdict);

}  // namespace csnap::netlink
