// The gate of one server term (rule F2): open as long as the server can prove its grant. Whoever
// renews the grant extends the gate; the devices (io/gated_device.h) and the connections (nbd/) ask
// it before they issue something and before they tell somebody that it is done. So a renewal that
// comes too late, a thread that was stopped or a host that slept ends the acknowledging by itself:
// nobody has to notice. Callers: io/, volume/, nbd/, addon/.
//
// Invariants
//  GA1  Shut is final: no later extend() opens the gate again.
//  GA2  The deadline never goes back. The first extend() ends "for ever".
//  GA3  A gate with a deadline is open only while CLOCK_BOOTTIME, which counts a suspend and knows
//       no leap, is before it.
//  GA4  All calls may be made from several threads at once. Without a deadline (one kernel, whose
//       lock decides) a look costs one load and reads no clock.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

namespace csnap {

// Nanoseconds of CLOCK_BOOTTIME, or of simulated time.
int64_t boottime_ns();

class Gate {
 public:
  // `clock` may be called from any thread; tests pass their own.
  explicit Gate(std::function<int64_t()> clock = boottime_ns) : clock_(std::move(clock)) {}
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;

  // The grant is proven until then. A deadline in the past is one.
  void extend(int64_t deadline_ns);
  // The grant was given back or is lost.
  void shut();

  bool is_open() const;
  // The same for somebody who holds back what it refuses: that is counted.
  bool admit();
  // How often admit() said no.
  uint64_t refusals() const { return refusals_.load(std::memory_order_relaxed); }

 private:
  static constexpr int64_t kForever = INT64_MAX;
  static constexpr int64_t kShut = INT64_MIN;

  const std::function<int64_t()> clock_;
  std::atomic<int64_t> deadline_ns_{kForever};
  std::atomic<uint64_t> refusals_{0};
};

}  // namespace csnap
