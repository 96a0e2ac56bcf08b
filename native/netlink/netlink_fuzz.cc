// Fuzz target: a datagram of the kernel's. Whatever its bytes are, nothing beyond them is read, and
// what is handed out lies within them (M1, M3).
#include "base/assert.h"
#include "netlink/hardening.h"
#include "netlink/nbd_messages.h"

namespace csnap::netlink {
namespace {

void within(Bytes part, Bytes whole) {
  if (part.empty()) return;
  CSNAP_ASSERT(part.data() >= whole.data());
  CSNAP_ASSERT(part.data() + part.size() <= whole.data() + whole.size());
}

void read_message(const Message& message, Bytes datagram) {
  within(message.payload, datagram);
  if (const auto verdict = as_verdict(message)) CSNAP_ASSERT(verdict->error >= 0);
  const auto generic = as_generic(message);
  if (!generic) return;
  within(generic->attributes, message.payload);
  AttributeReader reader(generic->attributes);
  Attribute attribute;
  while (reader.next(attribute)) {
    within(attribute.payload, generic->attributes);
    CSNAP_ASSERT(attribute.text().size() <= attribute.payload.size());
  }
  (void)as_index(*generic);
  (void)as_family(*generic);
  if (const auto devices = as_devices(*generic))
    CSNAP_ASSERT(devices->size() * 20 <= datagram.size());
}

}  // namespace
}  // namespace csnap::netlink

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t length) {
  using namespace csnap::netlink;
  const Bytes datagram(data, length);
  MessageReader reader(datagram);
  Message message;
  while (reader.next(message)) read_message(message, datagram);
  (void)lockable_mapping({reinterpret_cast<const char*>(data), length});
  return 0;
}
