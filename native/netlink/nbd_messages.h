// The nbd family's messages: what each request holds, what the kernel's answers say. Pure, like
// message.h. Callers: nbd_client, dead_links, the fuzz target.
//
// Invariants
//  B1  A reconnect never carries SIZE or BLOCK_SIZE: with a dead link the kernel would freeze the
//      queue and wait for ever (Linux 6.12).
//  B2  CONNECT always carries TIMEOUT, BLOCK_SIZE and the backend's name: the kernel's defaults are
//      30 s, 1024 bytes, and a device that anybody may reconfigure.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "netlink/message.h"

namespace csnap::netlink {

constexpr const char* kFamilyName = "nbd";

// Ids that the kernel gives out when the module is loaded.
struct Family {
  uint16_t id = 0;
  uint32_t dead_links_group = 0;  // 0: it has no such group
};

struct ConnectOptions {
  std::optional<uint32_t> index;  // absent: the kernel chooses
  uint64_t size_bytes = 0;
  uint64_t block_bytes = 0;
  uint64_t transmission_flags = 0;
  uint64_t timeout_seconds = 0;
  uint64_t dead_connection_timeout_seconds = 0;
  std::string backend;
};

struct ReconfigureOptions {
  uint32_t index = 0;
  std::string backend;
  std::optional<uint64_t> timeout_seconds;
  std::optional<uint64_t> dead_connection_timeout_seconds;
  std::optional<uint64_t> size_bytes;
};

struct DeviceStatus {
  uint32_t index = 0;
  bool connected = false;
};

MessageWriter family_request(uint32_t sequence);
MessageWriter connect_request(uint16_t family, uint32_t sequence, const ConnectOptions& options,
                              const std::vector<int>& fds);
MessageWriter reconfigure_request(uint16_t family, uint32_t sequence,
                                  const ReconfigureOptions& options, const std::vector<int>& fds);
MessageWriter disconnect_request(uint16_t family, uint32_t sequence, uint32_t index);
MessageWriter status_request(uint16_t family, uint32_t sequence);

// The nbd family in an answer or a notice of the kernel's controller; absent: about another one, or
// malformed.
std::optional<Family> as_family(const GenericMessage& message);
// The device in a CONNECT answer or a LINK_DEAD notice.
std::optional<uint32_t> as_index(const GenericMessage& message);
// The devices in a STATUS answer; absent where any of it is malformed.
std::optional<std::vector<DeviceStatus>> as_devices(const GenericMessage& message);

}  // namespace csnap::netlink
