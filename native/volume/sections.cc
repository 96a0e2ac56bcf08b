#include "volume/sections.h"

#include <thread>

namespace csnap {
namespace {

// Where this thread looks for a slot first.
size_t slot_hint() {
  static std::atomic<size_t> next{0};
  static thread_local const size_t hint = next.fetch_add(1, std::memory_order_relaxed);
  return hint;
}

}  // namespace

size_t Sections::enter() {
  yield_point();
  for (size_t tried = slot_hint();; tried++) {
    Slot& slot = slots_[tried % kSlots];
    uint64_t empty = 0;
    const uint64_t phase = phase_.load();
    if (!slot.phase.compare_exchange_strong(empty, phase)) {
      if (tried % kSlots == kSlots - 1) {
        // More threads inside than slots: rare, and they leave soon.
        yield_point();
        if (!current_scheduler) std::this_thread::yield();
      }
      continue;
    }
    // A synchronize() that began in between may have passed this slot already; then enter anew, so
    // that what its caller stored before is seen (N2).
    if (phase_.load() == phase) return tried % kSlots;
    leave(tried % kSlots);
  }
}

void Sections::leave(size_t slot) {
  slots_[slot].phase.store(0);
  if (waiting_.load()) {
    MutexLock lock(mutex_);
    all_left_.notify_all();
  }
}

bool Sections::left(const Slot& slot, uint64_t phase) const {
  const uint64_t entered = slot.phase.load();
  return entered == 0 || entered >= phase;
}

void Sections::synchronize() {
  MutexLock one(synchronize_mutex_);
  const uint64_t phase = phase_.fetch_add(1) + 1;
  waiting_.store(true);
  MutexLock lock(mutex_);
  for (const Slot& slot : slots_)
    while (!left(slot, phase)) all_left_.wait(lock);
  waiting_.store(false);
}

}  // namespace csnap
