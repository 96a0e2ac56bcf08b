#include "netlink/message.h"

#include <linux/genetlink.h>
#include <linux/netlink.h>

#include <algorithm>
#include <cstring>

#include "base/assert.h"

namespace csnap::netlink {
namespace {

constexpr size_t kHeaderBytes = sizeof(nlmsghdr);
constexpr size_t kGenericBytes = sizeof(genlmsghdr);
constexpr size_t kAttributeBytes = sizeof(nlattr);
static_assert(kHeaderBytes == 16 && kGenericBytes == 4 && kAttributeBytes == 4);
constexpr uint8_t kVersion = 1;   // of the families used here: nlctrl takes any, nbd has 1
constexpr size_t kTextMax = 200;  // of the kernel's words in a line for a person
constexpr int kErrnoMax = 4095;   // the kernel's own bound (MAX_ERRNO)

constexpr size_t padded(size_t length) { return (length + 3) & ~size_t{3}; }

// M1. Absent where `bytes` is too short.
template <typename T>
std::optional<T> take(Bytes bytes) {
  if (bytes.size() < sizeof(T)) return std::nullopt;
  T value;
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

// The last element of a run may lack its padding.
Bytes behind(Bytes bytes, size_t length) {
  return bytes.subspan(std::min(padded(length), bytes.size()));
}

std::string printable(std::string_view text) {
  std::string out(text.substr(0, kTextMax));
  for (char& c : out)
    if (c < ' ' || c > '~') c = '?';
  return out;
}

}  // namespace

// ---- Reading -----------------------------------------------------------------------------------

std::optional<uint8_t> Attribute::u8() const { return take<uint8_t>(payload); }
std::optional<uint16_t> Attribute::u16() const { return take<uint16_t>(payload); }
std::optional<uint32_t> Attribute::u32() const { return take<uint32_t>(payload); }

std::string_view Attribute::text() const {
  const auto* const first = reinterpret_cast<const char*>(payload.data());
  return {first, payload.empty() ? 0 : strnlen(first, payload.size())};
}

bool AttributeReader::next(Attribute& out) {
  if (malformed_ || rest_.empty()) return false;
  const auto header = take<nlattr>(rest_);
  if (!header || header->nla_len < kAttributeBytes || header->nla_len > rest_.size()) {
    malformed_ = true;
    return false;
  }
  out.type = header->nla_type & NLA_TYPE_MASK;
  out.payload = rest_.subspan(kAttributeBytes, header->nla_len - kAttributeBytes);
  rest_ = behind(rest_, header->nla_len);
  return true;
}

std::optional<Attribute> find_attribute(Bytes attributes, uint16_t type) {
  AttributeReader reader(attributes);
  Attribute attribute;
  while (reader.next(attribute))
    if (attribute.type == type) return attribute;
  return std::nullopt;
}

bool MessageReader::next(Message& out) {
  if (malformed_ || rest_.empty()) return false;
  const auto header = take<nlmsghdr>(rest_);
  if (!header || header->nlmsg_len < kHeaderBytes || header->nlmsg_len > rest_.size()) {
    malformed_ = true;
    return false;
  }
  out.type = header->nlmsg_type;
  out.flags = header->nlmsg_flags;
  out.sequence = header->nlmsg_seq;
  out.payload = rest_.subspan(kHeaderBytes, header->nlmsg_len - kHeaderBytes);
  rest_ = behind(rest_, header->nlmsg_len);
  return true;
}

std::optional<GenericMessage> as_generic(const Message& message) {
  const auto header = take<genlmsghdr>(message.payload);
  if (!header) return std::nullopt;
  return GenericMessage{header->cmd, message.payload.subspan(kGenericBytes)};
}

std::optional<Verdict> as_verdict(const Message& message) {
  const auto error = take<int32_t>(message.payload);
  if (!error || *error > 0 || *error < -kErrnoMax) return std::nullopt;
  Verdict verdict{-*error, {}};
  if ((message.flags & NLM_F_ACK_TLVS) == 0) return verdict;
  // Behind the error stands the request it is about: its header, and unless capped its payload.
  const Bytes request = message.payload.subspan(sizeof *error);
  const auto header = take<nlmsghdr>(request);
  if (!header) return verdict;
  const bool capped = (message.flags & NLM_F_CAPPED) != 0 || verdict.error == 0;
  const size_t skipped = capped ? kHeaderBytes : size_t{header->nlmsg_len};
  if (skipped < kHeaderBytes || skipped > request.size()) return verdict;
  if (const auto text = find_attribute(behind(request, skipped), NLMSGERR_ATTR_MSG))
    verdict.text = printable(text->text());
  return verdict;
}

// ---- Writing -----------------------------------------------------------------------------------

MessageWriter::MessageWriter(uint16_t family, uint8_t command, uint32_t sequence) {
  nlmsghdr header = {};
  header.nlmsg_type = family;
  header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
  header.nlmsg_seq = sequence;
  genlmsghdr generic = {};
  generic.cmd = command;
  generic.version = kVersion;
  append(&header, sizeof header);
  append(&generic, sizeof generic);
}

void MessageWriter::append(const void* data, size_t length) {
  const auto* const first = static_cast<const uint8_t*>(data);
  bytes_.insert(bytes_.end(), first, first + length);
  bytes_.resize(padded(bytes_.size()));
}

void MessageWriter::attribute(uint16_t type, const void* data, size_t length) {
  CSNAP_ASSERT(length <= UINT16_MAX - kAttributeBytes);
  const nlattr header = {static_cast<uint16_t>(kAttributeBytes + length), type};
  append(&header, sizeof header);
  append(data, length);
}

void MessageWriter::u32(uint16_t type, uint32_t value) { attribute(type, &value, sizeof value); }
void MessageWriter::u64(uint16_t type, uint64_t value) { attribute(type, &value, sizeof value); }

void MessageWriter::text(uint16_t type, std::string_view value) {
  const std::string terminated(value);
  attribute(type, terminated.c_str(), terminated.size() + 1);
}

size_t MessageWriter::begin(uint16_t type) {
  const size_t nest = bytes_.size();
  attribute(type, nullptr, 0);
  return nest;
}

void MessageWriter::end(size_t nest) {
  const size_t length = bytes_.size() - nest;
  CSNAP_ASSERT(length <= UINT16_MAX);
  const auto value = static_cast<uint16_t>(length);
  std::memcpy(bytes_.data() + nest + offsetof(nlattr, nla_len), &value, sizeof value);
}

Bytes MessageWriter::finish() {
  const auto length = static_cast<uint32_t>(bytes_.size());
  std::memcpy(bytes_.data() + offsetof(nlmsghdr, nlmsg_len), &length, sizeof length);
  return bytes_;
}

}  // namespace csnap::netlink
