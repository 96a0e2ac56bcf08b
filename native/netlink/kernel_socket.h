// A connected socket on its way to the kernel's nbd client, and the copy that stays with us: only
// shutting that one down ends a link whose server is silent. Callers: addon/netlink_calls.
//
// Invariants
//  K1  Blocking: the kernel's sender must wait for a full buffer, not fail.
//  K2  A vanished host is noticed by the kernel within the silence limit: keepalive where nothing
//  is
//      under way, TCP_USER_TIMEOUT where something is.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "io/unique_fd.h"

namespace csnap::netlink {

// A close-on-exec copy of a connected TCP or unix stream socket, set up for the kernel. O_NONBLOCK
// belongs to what both copies refer to: whoever owns `fd` must be done with it.
// INVALID_ARGUMENT where it is no such socket.
Result<UniqueFd> prepare_kernel_socket(int fd, uint32_t silence_ms);

// Also cuts the kernel's reference. No error where it is not connected any more.
Status shutdown_socket(int fd);

}  // namespace csnap::netlink
