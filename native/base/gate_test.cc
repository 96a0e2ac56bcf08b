// The gate by itself: what opens and closes it, also from several threads at once (F2).
#include "base/gate.h"

#include <doctest/doctest.h>
#include <time.h>

#include <thread>
#include <vector>

#include "testing/rng.h"
#include "testing/scheduler.h"

namespace csnap {
namespace {

TEST_CASE("gate: without a deadline it is open and reads no clock") {
  int looks = 0;
  Gate gate([&looks] {
    looks++;
    return INT64_MAX;
  });
  CHECK(gate.is_open());
  CHECK(gate.admit());
  CHECK(looks == 0);
  CHECK(gate.refusals() == 0);
}

TEST_CASE("gate: open before the deadline, closed at it, and open again when it is extended") {
  int64_t now = 100;
  Gate gate([&now] { return now; });
  gate.extend(200);
  CHECK(gate.is_open());
  now = 199;
  CHECK(gate.is_open());
  now = 200;
  CHECK(!gate.is_open());
  CHECK(gate.refusals() == 0);
  CHECK(!gate.admit());
  CHECK(gate.refusals() == 1);
  gate.extend(201);
  CHECK(gate.admit());
  CHECK(gate.refusals() == 1);
}

TEST_CASE("gate: the deadline never goes back (GA2)") {
  int64_t now = 100;
  Gate gate([&now] { return now; });
  gate.extend(200);
  gate.extend(150);
  gate.extend(-5);
  now = 199;
  CHECK(gate.is_open());
  now = 200;
  CHECK(!gate.is_open());
}

TEST_CASE("gate: a first deadline in the past closes it (GA2)") {
  int64_t now = 100;
  Gate gate([&now] { return now; });
  gate.extend(50);
  CHECK(!gate.is_open());
}

TEST_CASE("gate: shut is final, with a deadline or without one (GA1)") {
  for (const bool bounded : {false, true}) {
    Gate gate([] { return int64_t{100}; });
    if (bounded) gate.extend(200);
    CHECK(gate.is_open());
    gate.shut();
    CHECK(!gate.is_open());
    gate.extend(300);
    CHECK(!gate.is_open());
    gate.shut();
    CHECK(!gate.admit());
  }
}

TEST_CASE("gate: its clock is CLOCK_BOOTTIME, or simulated time") {
  const auto raw = [] {
    timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return int64_t{now.tv_sec} * 1000000000 + now.tv_nsec;
  };
  const int64_t before = raw();
  const int64_t seen = boottime_ns();
  CHECK(before <= seen);
  CHECK(seen <= raw());
  SimScheduler scheduler;
  int64_t first = -1, later = -1;
  const auto outcome = scheduler.run(1, [&] {
    first = boottime_ns();
    Mutex mutex;
    CondVar never;
    MutexLock lock(mutex);
    const uint64_t until = monotonic_ms() + 5000;
    while (monotonic_ms() < until) never.wait_for(lock, 5000);
    later = boottime_ns();
  });
  REQUIRE_MESSAGE(outcome.ok(), outcome.report);
  CHECK(first >= 0);
  CHECK(later - first >= int64_t{5000} * 1000000);
  CHECK(later < before);  // not this machine's clock
}

constexpr int64_t kNow = 500;

// Deadlines before and behind kNow, from several threads; `during` runs meanwhile.
template <typename During>
void extend_from_threads(Gate& gate, uint64_t seed, During during) {
  std::vector<std::thread> threads;
  for (uint64_t i = 0; i < 3; i++)
    threads.emplace_back([&gate, seed, i] {
      Rng rng(mix64(seed + i));
      for (int n = 0; n < 2000; n++) gate.extend(1 + static_cast<int64_t>(rng.below(2 * kNow)));
    });
  during();
  for (std::thread& thread : threads) thread.join();
}

TEST_CASE("gate: who has seen it open sees it open while many threads extend it (GA2, GA4)") {
  const uint64_t seed = seed_from_environment(0x6a7e);
  CAPTURE(seed);
  for (uint64_t round = 0; round < 20; round++) {
    Gate gate([] { return kNow; });
    gate.extend(1);
    std::atomic<bool> stop{false}, went_back{false};
    std::thread looker([&] {
      for (bool seen = false; !stop;) {
        const bool open = gate.admit();
        if (seen && !open) went_back = true;
        seen = open;
      }
    });
    extend_from_threads(gate, seed + round, [] {});
    CHECK(gate.is_open());  // one of 6000 deadlines lay behind
    stop = true;
    looker.join();
    CHECK(!went_back);
  }
}

TEST_CASE(
    "gate: whoever looks after shut() finds it closed, whatever extends are under way (GA1)") {
  const uint64_t seed = seed_from_environment(0x6a7e);
  CAPTURE(seed);
  for (uint64_t round = 0; round < 20; round++) {
    Gate gate([] { return kNow; });
    std::atomic<bool> stop{false}, is_shut{false}, open_again{false};
    std::thread looker([&] {
      while (!stop) {
        const bool shut = is_shut;
        if (gate.admit() && shut) open_again = true;
      }
    });
    extend_from_threads(gate, seed + round, [&] {
      gate.shut();
      is_shut = true;
    });
    CHECK(!gate.is_open());
    stop = true;
    looker.join();
    CHECK(!open_again);
  }
}

}  // namespace
}  // namespace csnap
