// Integers of fixed byte order for disk (little endian) and wire (big endian) structs. Byte arrays
// inside, so such structs have alignment 1, no padding, and may be laid over any buffer.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

namespace csnap {

template <typename T, std::endian Order>
class EndianInt {
 public:
  EndianInt() = default;
  EndianInt(T value) { store(value); }
  EndianInt& operator=(T value) {
    store(value);
    return *this;
  }
  operator T() const {
    T value;
    std::memcpy(&value, bytes_, sizeof value);
    return swap(value);
  }

 private:
  static T swap(T value) {
    if constexpr (Order == std::endian::native)
      return value;
    else if constexpr (sizeof(T) == 2)
      return __builtin_bswap16(value);
    else if constexpr (sizeof(T) == 4)
      return __builtin_bswap32(value);
    else
      return __builtin_bswap64(value);
  }
  void store(T value) {
    value = swap(value);
    std::memcpy(bytes_, &value, sizeof value);
  }
  unsigned char bytes_[sizeof(T)];
};

using le16 = EndianInt<uint16_t, std::endian::little>;
using le32 = EndianInt<uint32_t, std::endian::little>;
using le64 = EndianInt<uint64_t, std::endian::little>;
using be16 = EndianInt<uint16_t, std::endian::big>;
using be32 = EndianInt<uint32_t, std::endian::big>;
using be64 = EndianInt<uint64_t, std::endian::big>;

}  // namespace csnap
