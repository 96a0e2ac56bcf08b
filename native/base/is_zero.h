#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>

namespace csnap {

// True if all bytes are zero.
inline bool is_zero(const void* data, size_t bytes) {
  const auto* p = static_cast<const unsigned char*>(data);
  constexpr size_t kHead = 16;
  for (size_t i = 0; i < std::min(bytes, kHead); i++)
    if (p[i] != 0) return false;
  // The rest equals itself shifted by the zero head.
  return bytes <= kHead || std::memcmp(p, p + kHead, bytes - kHead) == 0;
}

}  // namespace csnap
