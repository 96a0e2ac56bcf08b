// The content of a small disk as pages shared between copies, so that an image at every crash point
// costs a table of pointers. Caller: SimDisk and its images.
//
// Invariants
//  I1  A page is changed only while exactly one CowBytes holds it.
//  I2  A page never written is a hole: it reads as zeros and takes no memory.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "base/assert.h"
#include "base/units.h"

namespace csnap {

class CowBytes {
 public:
  static constexpr uint64_t kPageBytes = 4096;

  CowBytes() = default;
  explicit CowBytes(uint64_t size_bytes)
      : size_bytes_(size_bytes), pages_(div_up(size_bytes, kPageBytes)) {}

  uint64_t size_bytes() const { return size_bytes_; }

  void read(uint64_t offset, void* data, size_t length) const {
    auto* to = static_cast<uint8_t*>(data);
    each_page(offset, length, [&](size_t page, size_t within, size_t bytes) {
      if (pages_[page])
        std::memcpy(to, pages_[page]->data() + within, bytes);
      else
        std::memset(to, 0, bytes);
      to += bytes;
    });
  }

  // `data` null: zeros.
  void write(uint64_t offset, const void* data, size_t length) {
    const auto* from = static_cast<const uint8_t*>(data);
    each_page(offset, length, [&](size_t page, size_t within, size_t bytes) {
      uint8_t* to = writable(page) + within;
      if (from == nullptr) {
        std::memset(to, 0, bytes);
      } else {
        std::memcpy(to, from, bytes);
        from += bytes;
      }
    });
  }

  bool is_hole(uint64_t offset) const { return !pages_[offset / kPageBytes]; }

  void fill_holes(uint64_t offset, size_t length) {
    each_page(offset, length, [&](size_t page, size_t, size_t) {
      if (!pages_[page]) pages_[page] = std::make_shared<Page>();
    });
  }

  // Makes holes of the pages that lie whole in the range and hold only zeros.
  void punch_zero_pages(uint64_t offset, uint64_t length) {
    static constexpr Page kZeros{};
    const uint64_t end = (offset + length) / kPageBytes;
    for (uint64_t page = div_up(offset, kPageBytes); page < end; page++) {
      if (pages_[page] && *pages_[page] == kZeros) pages_[page] = nullptr;
    }
  }

 private:
  using Page = std::array<uint8_t, kPageBytes>;

  template <typename Visit>
  void each_page(uint64_t offset, size_t length, Visit visit) const {
    CSNAP_ASSERT(offset <= size_bytes_ && length <= size_bytes_ - offset);
    while (length > 0) {
      const size_t within = offset % kPageBytes;
      const size_t bytes = std::min<size_t>(length, kPageBytes - within);
      visit(offset / kPageBytes, within, bytes);
      offset += bytes;
      length -= bytes;
    }
  }

  uint8_t* writable(size_t page) {
    std::shared_ptr<Page>& slot = pages_[page];
    if (!slot)
      slot = std::make_shared<Page>();
    else if (slot.use_count() > 1)
      slot = std::make_shared<Page>(*slot);
    return slot->data();
  }

  uint64_t size_bytes_ = 0;
  std::vector<std::shared_ptr<Page>> pages_;
};

}  // namespace csnap
