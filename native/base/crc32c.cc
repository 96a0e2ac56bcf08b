#include "base/crc32c.h"

#include <array>
#include <cstring>

namespace csnap {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;
// Bytes of one of the three interleaved streams. Longer inputs are cut into triples of these; the
// streams are joined by advancing a CRC over kStreamBytes zero bytes (a linear map, tabulated).
constexpr size_t kStreamBytes = 1360;

constexpr std::array<uint32_t, 256> make_byte_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ ((crc & 1) ? kPolynomial : 0);
    table[i] = crc;
  }
  return table;
}

constexpr std::array<uint32_t, 256> kByteTable = make_byte_table();

#if defined(__x86_64__)

uint32_t advance_zeros(uint32_t crc, size_t count) {
  for (size_t i = 0; i < count; i++) crc = (crc >> 8) ^ kByteTable[crc & 0xff];
  return crc;
}

// The map "advance a raw CRC over kStreamBytes zeros", one table for each byte of the CRC.
struct ZerosTable {
  uint32_t by_byte[4][256];
  ZerosTable() {
    for (int byte = 0; byte < 4; byte++)
      for (uint32_t value = 0; value < 256; value++)
        by_byte[byte][value] = advance_zeros(value << (8 * byte), kStreamBytes);
  }
  uint32_t operator()(uint32_t crc) const {
    return by_byte[0][crc & 0xff] ^ by_byte[1][(crc >> 8) & 0xff] ^ by_byte[2][(crc >> 16) & 0xff] ^
           by_byte[3][crc >> 24];
  }
};

uint64_t load64(const unsigned char* p) {
  uint64_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

__attribute__((target("sse4.2"))) uint32_t crc32c_sse42(const unsigned char* p, size_t length,
                                                        uint32_t crc) {
  static const ZerosTable zeros;
  uint64_t a = ~crc;
  while (length >= 3 * kStreamBytes) {
    uint64_t b = 0;
    uint64_t c = 0;
    for (size_t i = 0; i < kStreamBytes; i += 8) {
      a = __builtin_ia32_crc32di(a, load64(p + i));
      b = __builtin_ia32_crc32di(b, load64(p + kStreamBytes + i));
      c = __builtin_ia32_crc32di(c, load64(p + 2 * kStreamBytes + i));
    }
    a = zeros(static_cast<uint32_t>(zeros(static_cast<uint32_t>(a)) ^ b)) ^ c;
    p += 3 * kStreamBytes;
    length -= 3 * kStreamBytes;
  }
  for (; length >= 8; p += 8, length -= 8) a = __builtin_ia32_crc32di(a, load64(p));
  uint32_t tail = static_cast<uint32_t>(a);
  for (; length > 0; p++, length--) tail = __builtin_ia32_crc32qi(tail, *p);
  return ~tail;
}

#endif

}  // namespace

uint32_t crc32c_portable(const void* data, size_t length, uint32_t crc) {
  const auto* p = static_cast<const unsigned char*>(data);
  crc = ~crc;
  for (size_t i = 0; i < length; i++) crc = (crc >> 8) ^ kByteTable[(crc ^ p[i]) & 0xff];
  return ~crc;
}

uint32_t crc32c(const void* data, size_t length, uint32_t crc) {
#if defined(__x86_64__)
  static const bool has_sse42 = __builtin_cpu_supports("sse4.2");
  if (has_sse42) return crc32c_sse42(static_cast<const unsigned char*>(data), length, crc);
#endif
  return crc32c_portable(data, length, crc);
}

}  // namespace csnap
