// The remembered answers by themselves: against a model, where they grow, and where readers meet a
// change. CSNAP_SEED repeats a run.
#include "store/lookup_cache.h"

#include <map>

#include "store/index_test_io.h"

namespace csnap {
namespace {

constexpr uint64_t kSetBytes = 128;

Key key(ChunkIndex chunk, Generation generation) { return {kOriginVolume, chunk, generation}; }

}  // namespace

// Chunks with entries that come and go; an answer is either right or not there. In a cache that
// grows several times, and whose places are too few in the end.
TEST_CASE("lookup_cache_answers_as_the_model_does_or_not_at_all (L1)") {
  const uint64_t seed = seed_from_environment(20261123);
  MESSAGE("CSNAP_SEED=" << seed);
  Rng rng(seed);
  LookupCache cache(40000 * kSetBytes, 512 * kSetBytes);
  std::map<Key, Entry> model;
  uint64_t found = 0;
  uint64_t grown = 0;
  for (uint64_t i = 0; i < scaled(2000000); i++) {
    const Key asked = key(rng.below(60000), 1 + rng.below(12));
    if (rng.one_in(8)) {
      const auto at = model.find(asked);
      if (at == model.end())
        model[asked] = make_entry(asked, 1 + rng.below(1000));
      else
        model.erase(at);
      cache.forget(asked);
      continue;
    }
    const auto next = model.lower_bound(asked);
    LookupCache::Answer answer;
    if (next != model.end() && next->first.same_chunk(asked)) answer.entry = next->second;
    std::optional<Entry> remembered;
    if (cache.find(asked, remembered)) {
      CSNAP_MUST(remembered == answer.entry);
      found++;
      continue;
    }
    answer.from = asked.generation;
    if (next != model.begin() && std::prev(next)->first.same_chunk(asked))
      answer.from = std::prev(next)->first.generation + 1;
    else if (rng.coin())
      answer.from = 0;
    cache.keep(asked, answer);
    if (cache.full()) {
      cache.grow();
      grown++;
    }
  }
  CHECK(found > scaled(2000000) / 10);
  CHECK(grown >= 2);
}

TEST_CASE("lookup_cache_keeps_only_what_it_can_hold") {
  LookupCache cache(uint64_t{1} << 20);
  std::optional<Entry> found;
  for (const Key& odd : {Key{1, 5, 3}, key(5, 0), key(5, UINT32_MAX), key(5, kHeadGeneration)}) {
    cache.keep(odd, {odd.generation, std::nullopt});
    CHECK_FALSE(cache.find(odd, found));
  }
  // An answer far away in time is none that it could tell.
  cache.keep(key(5, 3), {0, make_entry(key(5, uint64_t{1} << 40), 9)});
  CHECK_FALSE(cache.find(key(5, 3), found));
  cache.keep(key(5, 3), {0, std::nullopt});
  CHECK(cache.find(key(5, UINT32_MAX - 1), found));
  CHECK_FALSE(found.has_value());
  LookupCache nothing(0);
  nothing.keep(key(5, 3), {0, std::nullopt});
  nothing.forget(key(5, 3));
  nothing.clear();
  CHECK_FALSE(nothing.find(key(5, 3), found));
}

// Every entry's place and checksum follow from its key, so that a mixture of two would show. One
// thread forgets, empties and makes room as the index does, those that keep hold a latch shared.
TEST_CASE("lookup_cache_readers_never_see_a_mixture (L2)") {
  const uint64_t seed = seed_from_environment(5);
  constexpr ChunkIndex kChunks = 12;
  // One set: all share four slots.
  LookupCache cache(kSetBytes);
  SharedMutex latch;
  const auto entry_of = [](ChunkIndex chunk, Generation generation) {
    Entry entry = make_entry(key(chunk, generation), chunk * 1000 + generation);
    entry.crc = static_cast<uint32_t>(chunk * 77 + generation);
    return entry;
  };
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> seen{0};
  Thread readers[3];
  for (int reader = 0; reader < 3; reader++) {
    readers[reader].start("cache-reader", [&, reader] {
      Rng rng(seed + static_cast<uint64_t>(reader));
      while (!stop) {
        const ChunkIndex chunk = rng.below(kChunks);
        const Generation generation = 1 + rng.below(3);
        std::optional<Entry> found;
        if (cache.find(key(chunk, generation), found)) {
          CSNAP_MUST(found);
          CSNAP_MUST(*found == entry_of(chunk, generation));
          seen.fetch_add(1, std::memory_order_relaxed);
        } else {
          SharedLock lock(latch);
          cache.keep(key(chunk, generation), {generation, entry_of(chunk, generation)});
        }
      }
    });
  }
  Rng rng(seed + 99);
  for (uint64_t i = 0; i < scaled(300000) || seen < 1000; i++) {
    ExclusiveLock lock(latch);
    if (rng.one_in(1000))
      cache.clear();
    else
      cache.forget(key(rng.below(kChunks), 1));
  }
  stop = true;
  for (Thread& reader : readers) reader.join();
}

}  // namespace csnap
