// The budget that connections share: its limit, its floor, its waiters.
#include "nbd/payload.h"

#include <doctest/doctest.h>

namespace csnap::nbd {
namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kLimit = PayloadBudget::kLimitBytesMin;

struct Holder : PayloadBudget::Member {
  void budget_wake() override { wakes++; }
  void budget_evict() override { evictions++; }
  int wakes = 0;
  int evictions = 0;
};

TEST_CASE("the floor is free, the rest is shared, who waits is woken (Y1, Y2)") {
  PayloadBudget budget(kLimit);
  Holder greedy;
  Holder other;
  budget.join(greedy);
  budget.join(other);
  CHECK(budget.try_take(greedy, kLimit + PayloadBudget::kFloorBytes));
  CHECK(!budget.try_take(greedy, 1));
  CHECK(budget.try_take(other, PayloadBudget::kFloorBytes));
  CHECK(!budget.try_take(other, kMiB));
  CHECK(budget.held(other) == PayloadBudget::kFloorBytes);
  budget.give(greedy, kMiB);
  CHECK(other.wakes == 1);
  CHECK(greedy.wakes == 1);
  CHECK(budget.try_take(other, kMiB));
  CHECK(!budget.try_take(greedy, kMiB));
  budget.give(other, PayloadBudget::kFloorBytes + kMiB);
  CHECK(budget.try_take(greedy, kMiB));
  budget.give(greedy, kLimit + PayloadBudget::kFloorBytes);
  budget.leave(greedy);
  budget.leave(other);
}

TEST_CASE("only a holder whose client has stalled is evicted, the largest first") {
  PayloadBudget budget(kLimit, 0);
  Holder busy;
  Holder large;
  Holder small;
  Holder floor;
  for (Holder* holder : {&busy, &large, &small, &floor}) budget.join(*holder);
  CHECK(budget.try_take(busy, 8 * kMiB));
  CHECK(budget.try_take(large, 4 * kMiB));
  CHECK(budget.try_take(small, 2 * kMiB));
  CHECK(budget.try_take(floor, PayloadBudget::kFloorBytes));
  budget.relieve();
  CHECK(busy.evictions + large.evictions + small.evictions + floor.evictions == 0);
  for (Holder* holder : {&busy, &large, &small, &floor}) budget.stalled(*holder);
  budget.moved(busy);
  budget.relieve();
  CHECK(large.evictions == 1);
  budget.give(large, 4 * kMiB);
  budget.relieve();
  CHECK(small.evictions == 1);
  budget.give(small, 2 * kMiB);
  budget.relieve();
  CHECK(busy.evictions + floor.evictions == 0);
  budget.give(busy, 8 * kMiB);
  budget.give(floor, PayloadBudget::kFloorBytes);
  for (Holder* holder : {&busy, &large, &small, &floor}) budget.leave(*holder);
}

TEST_CASE("a stall within the allowed time is left alone") {
  PayloadBudget budget(kLimit, 3600 * 1000);
  Holder holder;
  budget.join(holder);
  CHECK(budget.try_take(holder, kMiB));
  budget.stalled(holder);
  budget.relieve();
  CHECK(holder.evictions == 0);
  budget.give(holder, kMiB);
  budget.leave(holder);
}

TEST_CASE("buffers are aligned, large enough, and used again") {
  BufferCache cache;
  const size_t sizes[] = {1, 4096, 4097, 65536, 100000, kPayloadBytesMax};
  for (const size_t size : sizes) {
    PayloadBuffer buffer = cache.take(size);
    const auto address = reinterpret_cast<uintptr_t>(buffer.bytes.get());
    CHECK(address % 4096 == 0);
    buffer.bytes.get()[size - 1] = std::byte{1};
    cache.give(std::move(buffer));
    if (size > (8 << 20)) continue;  // beyond what is kept
    PayloadBuffer again = cache.take(size);
    CHECK(reinterpret_cast<uintptr_t>(again.bytes.get()) == address);
    cache.give(std::move(again));
  }
  CHECK(!cache.idle());
  cache.trim();
  CHECK(cache.idle());
}

}  // namespace
}  // namespace csnap::nbd
