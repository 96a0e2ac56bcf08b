#include "netlink/nbd_messages.h"

#include <linux/genetlink.h>
#include <linux/nbd-netlink.h>

#include "base/assert.h"

namespace csnap::netlink {
namespace {

void write_sockets(MessageWriter& writer, const std::vector<int>& fds) {
  if (fds.empty()) return;
  const size_t list = writer.begin(NBD_ATTR_SOCKETS);
  for (const int fd : fds) {
    const size_t item = writer.begin(NBD_SOCK_ITEM);
    writer.u32(NBD_SOCK_FD, static_cast<uint32_t>(fd));
    writer.end(item);
  }
  writer.end(list);
}

// The id of the group that hears of dead links; 0 where the list has none; absent: malformed.
std::optional<uint32_t> dead_links_group(Bytes groups) {
  AttributeReader reader(groups);
  Attribute group;
  uint32_t found = 0;
  while (reader.next(group)) {
    const auto name = find_attribute(group.payload, CTRL_ATTR_MCAST_GRP_NAME);
    const auto id = find_attribute(group.payload, CTRL_ATTR_MCAST_GRP_ID);
    if (name && id && id->u32() && name->text() == NBD_GENL_MCAST_GROUP_NAME) found = *id->u32();
  }
  if (reader.malformed()) return std::nullopt;
  return found;
}

}  // namespace

MessageWriter family_request(uint32_t sequence) {
  MessageWriter writer(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, sequence);
  writer.text(CTRL_ATTR_FAMILY_NAME, kFamilyName);
  return writer;
}

MessageWriter connect_request(uint16_t family, uint32_t sequence, const ConnectOptions& options,
                              const std::vector<int>& fds) {
  CSNAP_ASSERT(!fds.empty() && !options.backend.empty());  // B2
  MessageWriter writer(family, NBD_CMD_CONNECT, sequence);
  if (options.index) writer.u32(NBD_ATTR_INDEX, *options.index);
  writer.u64(NBD_ATTR_SIZE_BYTES, options.size_bytes);
  writer.u64(NBD_ATTR_BLOCK_SIZE_BYTES, options.block_bytes);
  writer.u64(NBD_ATTR_SERVER_FLAGS, options.transmission_flags);
  writer.u64(NBD_ATTR_CLIENT_FLAGS, 0);
  writer.u64(NBD_ATTR_TIMEOUT, options.timeout_seconds);
  writer.u64(NBD_ATTR_DEAD_CONN_TIMEOUT, options.dead_connection_timeout_seconds);
  writer.text(NBD_ATTR_BACKEND_IDENTIFIER, options.backend);
  write_sockets(writer, fds);
  return writer;
}

MessageWriter reconfigure_request(uint16_t family, uint32_t sequence,
                                  const ReconfigureOptions& options, const std::vector<int>& fds) {
  CSNAP_ASSERT(fds.empty() || !options.size_bytes);  // B1
  MessageWriter writer(family, NBD_CMD_RECONFIGURE, sequence);
  writer.u32(NBD_ATTR_INDEX, options.index);
  writer.text(NBD_ATTR_BACKEND_IDENTIFIER, options.backend);
  if (options.timeout_seconds) writer.u64(NBD_ATTR_TIMEOUT, *options.timeout_seconds);
  if (options.dead_connection_timeout_seconds)
    writer.u64(NBD_ATTR_DEAD_CONN_TIMEOUT, *options.dead_connection_timeout_seconds);
  if (options.size_bytes) writer.u64(NBD_ATTR_SIZE_BYTES, *options.size_bytes);
  write_sockets(writer, fds);
  return writer;
}

MessageWriter disconnect_request(uint16_t family, uint32_t sequence, uint32_t index) {
  MessageWriter writer(family, NBD_CMD_DISCONNECT, sequence);
  writer.u32(NBD_ATTR_INDEX, index);
  return writer;
}

MessageWriter status_request(uint16_t family, uint32_t sequence) {
  return MessageWriter(family, NBD_CMD_STATUS, sequence);
}

std::optional<Family> as_family(const GenericMessage& message) {
  if (message.command != CTRL_CMD_NEWFAMILY) return std::nullopt;
  const auto name = find_attribute(message.attributes, CTRL_ATTR_FAMILY_NAME);
  const auto id = find_attribute(message.attributes, CTRL_ATTR_FAMILY_ID);
  if (!name || name->text() != kFamilyName || !id || !id->u16()) return std::nullopt;
  Family family{*id->u16(), 0};
  if (const auto groups = find_attribute(message.attributes, CTRL_ATTR_MCAST_GROUPS)) {
    const auto group = dead_links_group(groups->payload);
    if (!group) return std::nullopt;
    family.dead_links_group = *group;
  }
  return family;
}

std::optional<uint32_t> as_index(const GenericMessage& message) {
  const auto index = find_attribute(message.attributes, NBD_ATTR_INDEX);
  return index ? index->u32() : std::nullopt;
}

std::optional<std::vector<DeviceStatus>> as_devices(const GenericMessage& message) {
  std::vector<DeviceStatus> devices;
  const auto list = find_attribute(message.attributes, NBD_ATTR_DEVICE_LIST);
  if (!list) return std::nullopt;
  AttributeReader reader(list->payload);
  Attribute item;
  while (reader.next(item)) {
    const auto index = find_attribute(item.payload, NBD_DEVICE_INDEX);
    const auto connected = find_attribute(item.payload, NBD_DEVICE_CONNECTED);
    if (!index || !index->u32() || !connected || !connected->u8()) return std::nullopt;
    devices.push_back({*index->u32(), *connected->u8() != 0});
  }
  if (reader.malformed()) return std::nullopt;
  return devices;
}

}  // namespace csnap::netlink
