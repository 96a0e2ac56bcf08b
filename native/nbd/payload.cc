#include "nbd/payload.h"

#include <algorithm>
#include <bit>

#include "base/assert.h"

namespace csnap::nbd {

// ---- Buffers -----------------------------------------------------------------------------------

PayloadBuffer BufferCache::take(size_t length) {
  CSNAP_ASSERT(length > 0);
  CSNAP_ASSERT(length <= kPayloadBytesMax);
  const size_t bytes = std::bit_ceil(std::max(length, kSmallestBytes));
  const auto size_class =
      static_cast<uint8_t>(std::countr_zero(bytes) - std::countr_zero(kSmallestBytes));
  std::vector<PayloadBuffer>& idle = idle_buffers_[size_class];
  if (!idle.empty()) {
    PayloadBuffer buffer = std::move(idle.back());
    idle.pop_back();
    idle_bytes_ -= bytes;
    return buffer;
  }
  PayloadBuffer buffer;
  buffer.bytes.reset(static_cast<std::byte*>(std::aligned_alloc(4096, bytes)));
  buffer.size_class = size_class;
  CSNAP_ASSERT(buffer.bytes != nullptr);
  return buffer;
}

void BufferCache::give(PayloadBuffer buffer) {
  const size_t bytes = kSmallestBytes << buffer.size_class;
  if (idle_bytes_ + bytes > kIdleBytesMax) return;
  idle_bytes_ += bytes;
  idle_buffers_[buffer.size_class].push_back(std::move(buffer));
}

void BufferCache::trim() {
  for (std::vector<PayloadBuffer>& idle : idle_buffers_) {
    idle.clear();
    idle.shrink_to_fit();
  }
  idle_bytes_ = 0;
}

// ---- Budget ------------------------------------------------------------------------------------

PayloadBudget::PayloadBudget(uint64_t limit_bytes, uint64_t stall_ms)
    : limit_bytes_(limit_bytes), stall_ms_(stall_ms) {
  CSNAP_ASSERT(limit_bytes >= kLimitBytesMin);
}

void PayloadBudget::join(Member& member) {
  MutexLock lock(mutex_);
  members_.push_back(&member);
}

void PayloadBudget::leave(Member& member) {
  CSNAP_ASSERT(held(member) == 0);
  MutexLock lock(mutex_);
  if (member.waiting_) waiting_count_--;
  member.waiting_ = false;
  std::erase(members_, &member);
}

bool PayloadBudget::try_charge(uint64_t bytes) {
  uint64_t charged = charged_.load();
  while (charged + bytes <= limit_bytes_)
    if (charged_.compare_exchange_weak(charged, charged + bytes)) return true;
  return false;
}

bool PayloadBudget::try_take(Member& member, uint64_t bytes) {
  const uint64_t held = member.held_.load(std::memory_order_relaxed);
  const uint64_t more = charge(held + bytes) - charge(held);
  if (more > 0 && !try_charge(more)) {
    // Registers first, tries again after: a give() in between sees the waiter or is seen by it.
    MutexLock lock(mutex_);
    if (!member.waiting_) waiting_count_++;
    member.waiting_ = true;
    if (!try_charge(more)) return false;
    member.waiting_ = false;
    waiting_count_--;
  }
  member.held_.store(held + bytes, std::memory_order_relaxed);
  return true;
}

void PayloadBudget::give(Member& member, uint64_t bytes) {
  const uint64_t held = member.held_.load(std::memory_order_relaxed);
  CSNAP_ASSERT(held >= bytes);
  const uint64_t less = charge(held) - charge(held - bytes);
  member.held_.store(held - bytes, std::memory_order_relaxed);
  if (less == 0) return;
  charged_ -= less;
  if (waiting_count_.load() == 0) return;
  MutexLock lock(mutex_);
  for (Member* other : members_) {
    if (!other->waiting_) continue;
    other->waiting_ = false;
    waiting_count_--;
    other->budget_wake();
  }
}

void PayloadBudget::stalled(Member& member) {
  if (member.stalled_since_ms_.load(std::memory_order_relaxed) == 0)
    member.stalled_since_ms_.store(monotonic_ms(), std::memory_order_relaxed);
}

void PayloadBudget::relieve() {
  const uint64_t now = monotonic_ms();
  MutexLock lock(mutex_);
  Member* largest = nullptr;
  for (Member* member : members_) {
    const uint64_t since = member->stalled_since_ms_.load(std::memory_order_relaxed);
    if (since == 0 || now < since + stall_ms_ || charge(held(*member)) == 0) continue;
    if (largest == nullptr || held(*member) > held(*largest)) largest = member;
  }
  if (largest != nullptr) largest->budget_evict();
}

}  // namespace csnap::nbd
