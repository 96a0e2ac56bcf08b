// Netlink messages as bytes: building a request, reading what the kernel sent. Pure: no socket, no
// clock, so that hostile bytes are a unit test and a fuzz target. Callers: exchange, nbd_client,
// dead_links.
//
// Invariants
//  M1  Every length is checked against the bytes that are there before it is used; a reader never
//      looks outside its span, whatever the bytes say.
//  M2  A reader stops at the first thing that makes no sense, and malformed() says so for good.
//  M3  What a reader hands out points into the caller's bytes and lives no longer than they do.
//
// Layout, all in host byte order: a datagram is messages, each
//   u32 length (header included), u16 type, u16 flags, u32 sequence, u32 port, payload, pad to 4;
// the payload of a generic message is u8 command, u8 version, u16 0, attributes, each
//   u16 length (header included), u16 type, payload, pad to 4.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace csnap::netlink {

using Bytes = std::span<const uint8_t>;

// ---- Reading -----------------------------------------------------------------------------------

struct Attribute {
  uint16_t type = 0;  // without the flag bits
  Bytes payload;

  // Absent where the payload is shorter than the number.
  std::optional<uint8_t> u8() const;
  std::optional<uint16_t> u16() const;
  std::optional<uint32_t> u32() const;
  // Up to the first NUL, or all of it.
  std::string_view text() const;
};

class AttributeReader {
 public:
  explicit AttributeReader(Bytes bytes) : rest_(bytes) {}
  // False at the end, and where the bytes are no attribute.
  bool next(Attribute& out);
  bool malformed() const { return malformed_; }

 private:
  Bytes rest_;
  bool malformed_ = false;
};

// The first attribute of a type. Absent, too, where the bytes before it are malformed.
std::optional<Attribute> find_attribute(Bytes attributes, uint16_t type);

struct Message {
  uint16_t type = 0;
  uint16_t flags = 0;
  uint32_t sequence = 0;
  Bytes payload;
};

class MessageReader {
 public:
  explicit MessageReader(Bytes datagram) : rest_(datagram) {}
  bool next(Message& out);
  bool malformed() const { return malformed_; }

 private:
  Bytes rest_;
  bool malformed_ = false;
};

struct GenericMessage {
  uint8_t command = 0;
  Bytes attributes;
};
// Absent where the message is too short to be one.
std::optional<GenericMessage> as_generic(const Message& message);

// The kernel's verdict on a request.
struct Verdict {
  int error = 0;     // errno, positive; 0: done
  std::string text;  // the kernel's own words, printable and bounded; mostly empty
};
// Of a message of type NLMSG_ERROR; absent where it is too short or its error is no errno.
std::optional<Verdict> as_verdict(const Message& message);

// ---- Writing -----------------------------------------------------------------------------------

// One request to a generic family, with REQUEST and ACK set.
class MessageWriter {
 public:
  MessageWriter(uint16_t family, uint8_t command, uint32_t sequence);

  void u32(uint16_t type, uint32_t value);
  void u64(uint16_t type, uint64_t value);
  void text(uint16_t type, std::string_view value);  // with a NUL behind it
  // What is written between both is nested. end() takes what begin() returned.
  size_t begin(uint16_t type);
  void end(size_t nest);

  Bytes finish();

 private:
  void append(const void* data, size_t length);
  void attribute(uint16_t type, const void* data, size_t length);

  std::vector<uint8_t> bytes_;
};

}  // namespace csnap::netlink
