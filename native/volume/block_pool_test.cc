#include "volume/block_pool.h"

#include <doctest/doctest.h>

#include <cstring>
#include <map>
#include <set>

#include "testing/rng.h"

namespace csnap {
namespace {

constexpr size_t kBytes = 4200;
constexpr size_t kPerSlab = BlockPool::kSlabBytes / kBytes;

TEST_CASE("block pool: blocks keep what is in them and never overlap; a burst's memory goes back") {
  const uint64_t seed = seed_from_environment(0xb10c);
  CAPTURE(seed);
  Rng rng(seed);
  BlockPool pool(3 * kPerSlab);
  std::map<unsigned char*, unsigned char> taken;
  size_t most = 0;
  for (int round = 0; round < 20; round++) {
    const size_t wanted = rng.below(20 * kPerSlab);
    while (taken.size() != wanted) {
      if (taken.size() < wanted) {
        auto* block = static_cast<unsigned char*>(pool.take(kBytes));
        const auto value = static_cast<unsigned char>(rng.next());
        REQUIRE(taken.emplace(block, value).second);
        std::memset(block, value, kBytes);
      } else {
        auto at = taken.begin();
        std::advance(at, rng.below(std::min<uint64_t>(taken.size(), 100)));
        REQUIRE(at->first[0] == at->second);
        REQUIRE(std::memcmp(at->first, at->first + 1, kBytes - 1) == 0);
        pool.give(at->first);
        taken.erase(at);
      }
      most = std::max(most, pool.slab_count());
    }
    CHECK(pool.slab_count() * (kPerSlab + 1) >= taken.size());
  }
  for (const auto& [block, value] : taken) {
    REQUIRE(block[0] == value);
    REQUIRE(std::memcmp(block, block + 1, kBytes - 1) == 0);
    pool.give(block);
  }
  CHECK(most > 4);
  // B2
  CHECK(pool.slab_count() <= 4);
}

}  // namespace
}  // namespace csnap
