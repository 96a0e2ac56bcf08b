// Netlink messages: what is written has the kernel's layout to the byte, what the kernel writes is
// understood, and whatever else comes is refused without a look beyond its bytes (M1, M2).
#include "netlink/message.h"

#include <doctest/doctest.h>
#include <linux/genetlink.h>
#include <linux/nbd-netlink.h>
#include <linux/netlink.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>

#include "netlink/nbd_messages.h"
#include "testing/rng.h"

namespace csnap::netlink {
namespace {

using Buffer = std::vector<uint8_t>;

// Messages and attributes as the kernel would send them, by hand.
void put(Buffer& out, const void* data, size_t length) {
  const auto* const first = static_cast<const uint8_t*>(data);
  out.insert(out.end(), first, first + length);
  out.resize((out.size() + 3) & ~size_t{3});
}

Buffer attribute(uint16_t type, const Buffer& payload) {
  const nlattr header = {static_cast<uint16_t>(sizeof header + payload.size()), type};
  Buffer out;
  put(out, &header, sizeof header);
  put(out, payload.data(), payload.size());
  return out;
}

template <typename T>
Buffer number(T value) {
  Buffer out(sizeof value);
  std::memcpy(out.data(), &value, sizeof value);
  return out;
}

Buffer words(std::string_view text) {
  Buffer out(text.begin(), text.end());
  out.push_back(0);
  return out;
}

Buffer join(std::initializer_list<Buffer> parts) {
  Buffer out;
  for (const Buffer& part : parts) out.insert(out.end(), part.begin(), part.end());
  return out;
}

Buffer message(uint16_t type, uint16_t flags, uint32_t sequence, const Buffer& payload) {
  nlmsghdr header = {};
  header.nlmsg_len = static_cast<uint32_t>(sizeof header + payload.size());
  header.nlmsg_type = type;
  header.nlmsg_flags = flags;
  header.nlmsg_seq = sequence;
  Buffer out;
  put(out, &header, sizeof header);
  put(out, payload.data(), payload.size());
  return out;
}

Buffer generic(uint8_t command, const Buffer& attributes) {
  return join({{command, 1, 0, 0}, attributes});
}

Message only_message(const Buffer& datagram) {
  MessageReader reader(datagram);
  Message found;
  REQUIRE(reader.next(found));
  Message none;
  CHECK_FALSE(reader.next(none));
  CHECK_FALSE(reader.malformed());
  return found;
}

constexpr uint16_t kFamily = 0x1c;

Buffer error_message(int error, uint16_t flags, const Buffer& behind) {
  nlmsghdr request = {};
  request.nlmsg_len = sizeof request + 8;
  Buffer payload = join({number<int32_t>(error), Buffer(sizeof request)});
  std::memcpy(payload.data() + 4, &request, sizeof request);
  return message(NLMSG_ERROR, flags, 5, join({payload, behind}));
}

Buffer device(uint32_t index, uint8_t connected) {
  return attribute(NBD_DEVICE_ITEM, join({attribute(NBD_DEVICE_INDEX, number(index)),
                                          attribute(NBD_DEVICE_CONNECTED, number(connected))}));
}

Buffer family_answer(std::string_view name, std::string_view group) {
  const Buffer groups = attribute(1, join({attribute(CTRL_ATTR_MCAST_GRP_ID, number<uint32_t>(9)),
                                           attribute(CTRL_ATTR_MCAST_GRP_NAME, words(group))}));
  return generic(CTRL_CMD_NEWFAMILY, join({attribute(CTRL_ATTR_FAMILY_NAME, words(name)),
                                           attribute(CTRL_ATTR_FAMILY_ID, number(kFamily)),
                                           attribute(CTRL_ATTR_MCAST_GROUPS, groups)}));
}

TEST_CASE("netlink: a connect request has the kernel's layout") {
  ConnectOptions options;
  options.index = 3;
  options.size_bytes = 1 << 20;
  options.block_bytes = 4096;
  options.transmission_flags = 0x16d;
  options.dead_connection_timeout_seconds = 60;
  options.backend = "me";
  MessageWriter writer = connect_request(kFamily, 7, options, {11, 12});
  const auto u64 = [](uint16_t type, uint64_t value) { return attribute(type, number(value)); };
  const auto socket = [](uint32_t fd) {
    return attribute(NBD_SOCK_ITEM, attribute(NBD_SOCK_FD, number(fd)));
  };
  const Buffer wanted =
      message(kFamily, NLM_F_REQUEST | NLM_F_ACK, 7,
              generic(NBD_CMD_CONNECT,
                      join({attribute(NBD_ATTR_INDEX, number<uint32_t>(3)),
                            u64(NBD_ATTR_SIZE_BYTES, 1 << 20), u64(NBD_ATTR_BLOCK_SIZE_BYTES, 4096),
                            u64(NBD_ATTR_SERVER_FLAGS, 0x16d), u64(NBD_ATTR_CLIENT_FLAGS, 0),
                            u64(NBD_ATTR_TIMEOUT, 0), u64(NBD_ATTR_DEAD_CONN_TIMEOUT, 60),
                            attribute(NBD_ATTR_BACKEND_IDENTIFIER, words("me")),
                            attribute(NBD_ATTR_SOCKETS, join({socket(11), socket(12)}))})));
  const Bytes written = writer.finish();
  CHECK(Buffer(written.begin(), written.end()) == wanted);
}

TEST_CASE("netlink: a reconnect holds sockets and nothing that freezes the queue") {  // B1
  ReconfigureOptions options;
  options.index = 4;
  options.backend = "me";
  MessageWriter writer = reconfigure_request(kFamily, 8, options, {5});
  const Bytes bytes = writer.finish();
  MessageReader reader(bytes);
  Message found;
  REQUIRE(reader.next(found));
  const auto request = as_generic(found);
  REQUIRE(request);
  CHECK(request->command == NBD_CMD_RECONFIGURE);
  for (const uint16_t type : {NBD_ATTR_SIZE_BYTES, NBD_ATTR_BLOCK_SIZE_BYTES, NBD_ATTR_TIMEOUT,
                              NBD_ATTR_DEAD_CONN_TIMEOUT, NBD_ATTR_CLIENT_FLAGS})
    CHECK_FALSE(find_attribute(request->attributes, type));
  CHECK(find_attribute(request->attributes, NBD_ATTR_SOCKETS));
  CHECK(as_index(*request) == 4u);
  CHECK(find_attribute(request->attributes, NBD_ATTR_BACKEND_IDENTIFIER)->text() == "me");
}

TEST_CASE("netlink: verdicts") {
  const auto verdict = [](const Buffer& datagram) { return as_verdict(only_message(datagram)); };
  CHECK(verdict(error_message(0, 0, {}))->error == 0);
  CHECK(verdict(error_message(-16, 0, {}))->error == 16);
  const Buffer text = attribute(NLMSGERR_ATTR_MSG, words("bad\nluck"));
  CHECK(verdict(error_message(-22, NLM_F_ACK_TLVS | NLM_F_CAPPED, text))->text == "bad?luck");
  // Not capped: the request's payload of 8 bytes stands before the text.
  CHECK(verdict(error_message(-22, NLM_F_ACK_TLVS, join({Buffer(8), text})))->text == "bad?luck");
  CHECK(verdict(error_message(-22, NLM_F_CAPPED, text))->text.empty());
  const std::string lengthy(5000, 'x');
  const Buffer bounded = attribute(NLMSGERR_ATTR_MSG, words(lengthy));
  CHECK(verdict(error_message(-22, NLM_F_ACK_TLVS | NLM_F_CAPPED, bounded))->text.size() == 200);
  CHECK_FALSE(verdict(error_message(5, 0, {})));
  CHECK_FALSE(verdict(error_message(INT32_MIN, 0, {})));
  CHECK_FALSE(verdict(message(NLMSG_ERROR, 0, 5, {1, 2})));
}

TEST_CASE("netlink: the family's answer") {
  const auto family = [](const Buffer& payload) {
    return as_family(*as_generic(only_message(message(GENL_ID_CTRL, 0, 1, payload))));
  };
  const auto found = family(family_answer("nbd", "nbd_mc_group"));
  REQUIRE(found);
  CHECK(found->id == kFamily);
  CHECK(found->dead_links_group == 9);
  CHECK(family(family_answer("nbd", "other"))->dead_links_group == 0);
  CHECK_FALSE(family(family_answer("nbd2", "nbd_mc_group")));
  Buffer deleted = family_answer("nbd", "nbd_mc_group");
  deleted[0] = CTRL_CMD_DELFAMILY;
  CHECK_FALSE(family(deleted));
}

TEST_CASE("netlink: devices and indices") {
  Buffer datagram;  // what parsed() returns points into it
  const auto parsed = [&](const Buffer& attributes) {
    datagram = message(kFamily, 0, 1, generic(NBD_CMD_STATUS, attributes));
    return *as_generic(only_message(datagram));
  };
  const Buffer list = attribute(NBD_ATTR_DEVICE_LIST, join({device(0, 0), device(17, 1)}));
  const auto devices = as_devices(parsed(list));
  REQUIRE(devices);
  REQUIRE(devices->size() == 2);
  CHECK((*devices)[0].index == 0);
  CHECK_FALSE((*devices)[0].connected);
  CHECK((*devices)[1].index == 17);
  CHECK((*devices)[1].connected);
  CHECK(as_devices(parsed(attribute(NBD_ATTR_DEVICE_LIST, {})))->empty());
  CHECK_FALSE(as_devices(parsed({})));
  const Buffer without = attribute(NBD_DEVICE_ITEM, attribute(NBD_DEVICE_INDEX, number(1u)));
  CHECK_FALSE(as_devices(parsed(attribute(NBD_ATTR_DEVICE_LIST, without))));
  const Buffer half = attribute(NBD_ATTR_INDEX, number<uint16_t>(1));
  CHECK_FALSE(as_index(parsed(half)));
  CHECK(as_index(parsed(attribute(NBD_ATTR_INDEX, number(6u)))) == 6u);
}

// Everything that can be asked of a datagram; the memory behind it is the sanitizer's.
size_t read_all(const uint8_t* data, size_t length) {
  const auto copy = std::make_unique<uint8_t[]>(length);
  std::copy_n(data, length, copy.get());
  MessageReader reader({copy.get(), length});
  Message found;
  size_t understood = 0;
  while (reader.next(found)) {
    understood++;
    (void)as_verdict(found);
    if (const auto inner = as_generic(found)) {
      (void)as_family(*inner);
      (void)as_index(*inner);
      (void)as_devices(*inner);
    }
  }
  CHECK_FALSE(reader.next(found));
  return understood;
}

TEST_CASE("netlink: cut anywhere, an answer is refused and not read beyond") {
  const Buffer whole =
      join({message(GENL_ID_CTRL, 0, 1, family_answer("nbd", "nbd_mc_group")),
            message(kFamily, 0, 1,
                    generic(NBD_CMD_STATUS, attribute(NBD_ATTR_DEVICE_LIST, device(1, 1)))),
            error_message(-22, NLM_F_ACK_TLVS | NLM_F_CAPPED,
                          attribute(NLMSGERR_ATTR_MSG, words("why")))});
  CHECK(read_all(whole.data(), whole.size()) == 3);
  for (size_t length = 0; length < whole.size(); length++)
    CHECK(read_all(whole.data(), length) < 3);
}

TEST_CASE("netlink: an attribute's length that lies ends the list") {
  for (const uint16_t length : {0, 1, 3, 9, 65535}) {
    Buffer bytes = join({attribute(1, number(7u)), attribute(2, number(8u))});
    std::memcpy(bytes.data(), &length, sizeof length);
    AttributeReader reader(bytes);
    Attribute found;
    size_t count = 0;
    while (reader.next(found)) count++;
    CAPTURE(length);
    // 9: one byte of the next attribute, so that what follows it is none.
    CHECK(count == (length == 9 ? 1 : 0));
    CHECK(reader.malformed());
    CHECK_FALSE(reader.next(found));
  }
}

TEST_CASE("netlink: any bytes") {
  const uint64_t seed = seed_from_environment(1);
  MESSAGE("CSNAP_SEED=", seed);
  Rng rng(seed);
  const Buffer whole =
      join({message(GENL_ID_CTRL, 0, 1, family_answer("nbd", "nbd_mc_group")),
            message(kFamily, 0, 1,
                    generic(NBD_CMD_STATUS,
                            attribute(NBD_ATTR_DEVICE_LIST, join({device(1, 1), device(2, 0)}))))});
  for (int round = 0; round < 20000; round++) {
    Buffer bytes = whole;
    for (uint64_t changes = rng.between(1, 4); changes > 0; changes--)
      bytes[rng.below(bytes.size())] = static_cast<uint8_t>(rng.next());
    (void)read_all(bytes.data(), rng.between(0, bytes.size()));
  }
}

}  // namespace
}  // namespace csnap::netlink
