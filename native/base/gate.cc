#include "base/gate.h"

#include <time.h>

#include "base/assert.h"
#include "base/sync.h"

namespace csnap {

int64_t boottime_ns() {
  if (current_scheduler) return static_cast<int64_t>(current_scheduler->now_ms()) * 1000000;
  timespec now;
  clock_gettime(CLOCK_BOOTTIME, &now);
  return int64_t{now.tv_sec} * 1000000000 + now.tv_nsec;
}

void Gate::extend(int64_t deadline_ns) {
  CSNAP_ASSERT(deadline_ns > kShut && deadline_ns < kForever);
  int64_t former = deadline_ns_.load(std::memory_order_relaxed);
  do {
    if (former == kShut) return;                              // GA1
    if (former != kForever && former >= deadline_ns) return;  // GA2
  } while (!deadline_ns_.compare_exchange_weak(former, deadline_ns, std::memory_order_release,
                                               std::memory_order_relaxed));
}

void Gate::shut() { deadline_ns_.store(kShut, std::memory_order_release); }

bool Gate::is_open() const {
  // The deadline before the clock: one that is extended in between only makes this look stricter.
  const int64_t deadline = deadline_ns_.load(std::memory_order_acquire);
  if (deadline == kForever) [[likely]]
    return true;
  return deadline != kShut && clock_() < deadline;
}

bool Gate::admit() {
  if (is_open()) [[likely]]
    return true;
  refusals_.fetch_add(1, std::memory_order_relaxed);
  return false;
}

}  // namespace csnap
