#include "io/write_claims.h"

#include <algorithm>

#include "base/assert.h"

namespace csnap {

WriteClaim::WriteClaim(WriteClaims& claims, uint64_t offset, uint64_t length) : claims_(claims) {
  CSNAP_ASSERT(length > 0);
  const uint64_t unit = claims.unit_bytes_;
  const uint64_t end = offset + length;
  first_ = offset / unit;
  last_ = (end - 1) / unit;
  // In a claim within one block both say the same.
  first_partial_ = offset % unit != 0 || end < (first_ + 1) * unit;
  last_partial_ = end % unit != 0 || offset > last_ * unit;
  MutexLock lock(claims_.mutex_);
  claims_.claims_.push_back(this);
  claims_.waiting_count_++;
  while (must_wait()) claims_.released_cond_.wait(lock);
  claims_.waiting_count_--;
}

WriteClaim::~WriteClaim() {
  MutexLock lock(claims_.mutex_);
  const auto own = std::find(claims_.claims_.begin(), claims_.claims_.end(), this);
  CSNAP_ASSERT(own != claims_.claims_.end());
  claims_.claims_.erase(own);
  if (claims_.waiting_count_ > 0) claims_.released_cond_.notify_all();
}

bool WriteClaim::rewrites_part_within(const WriteClaim& other) const {
  return (first_partial_ && other.covers(first_)) || (last_partial_ && other.covers(last_));
}

// WC1, WC3
bool WriteClaim::must_wait() const {
  for (const WriteClaim* other : claims_.claims_) {
    if (other == this) return false;
    if (rewrites_part_within(*other) || other->rewrites_part_within(*this)) return true;
  }
  return false;
}

}  // namespace csnap
