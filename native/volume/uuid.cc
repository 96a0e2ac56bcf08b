#include "volume/uuid.h"

#include <sys/random.h>

#include <cstdio>
#include <cstring>

#include "base/assert.h"

namespace csnap {

bool Uuid::operator==(const Uuid& other) const {
  return std::memcmp(bytes, other.bytes, sizeof bytes) == 0;
}

bool Uuid::is_nil() const { return *this == Uuid(); }

std::string Uuid::to_text() const {
  std::string text;
  for (int i = 0; i < 16; i++) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    char hex[3];
    std::snprintf(hex, sizeof hex, "%02x", bytes[i]);
    text += hex;
  }
  return text;
}

bool Uuid::parse(const std::string& text, Uuid& out) {
  if (text.size() != 36) return false;
  int nibble = 0;
  for (size_t i = 0; i < text.size(); i++) {
    const bool dash = i == 8 || i == 13 || i == 18 || i == 23;
    const char c = text[i];
    if (dash != (c == '-')) return false;
    if (dash) continue;
    uint8_t value;
    if (c >= '0' && c <= '9')
      value = static_cast<uint8_t>(c - '0');
    else if ((c | 32) >= 'a' && (c | 32) <= 'f')
      value = static_cast<uint8_t>((c | 32) - 'a' + 10);
    else
      return false;
    uint8_t& byte = out.bytes[nibble / 2];
    byte = nibble % 2 ? static_cast<uint8_t>(byte << 4 | value) : value;
    nibble++;
  }
  return true;
}

Uuid Uuid::random() {
  Uuid uuid;
  CSNAP_ASSERT(getrandom(uuid.bytes, sizeof uuid.bytes, 0) == sizeof uuid.bytes);
  uuid.bytes[6] = static_cast<uint8_t>((uuid.bytes[6] & 0x0f) | 0x40);  // RFC 9562, version 4
  uuid.bytes[8] = static_cast<uint8_t>((uuid.bytes[8] & 0x3f) | 0x80);
  return uuid;
}

}  // namespace csnap
