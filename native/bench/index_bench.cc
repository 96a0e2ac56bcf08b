// Index look-ups and commits beside LMDB, with the same entries on the same file system, in
// interleaved rounds of the same random successor look-ups.
//   bare tree        Index::at_or_after with every node in its cache; LMDB's cursor in one read
//                    transaction
//   read path        a read of 512 bytes of a snapshot through Volume::run (reader section, staged
//                    table, look-up, check) with the product's cache; LMDB's cursor with its
//                    transaction renewed for each, and as many bytes cleared
//   read path, cold  the same where neither process nor page cache holds anything. LMDB has the
//                    kernel's readahead, its default, which fetches a tree that fits into RAM in
//                    few large pieces; and then without, as its manual has it for one that does not
//   commits          64 exceptions at random places of the tree, durable before the next 64; the
//                    checkpoints that they call for count
//
// All chunks are ZERO, so no row reads or copies data.
#include <cstring>
#include <functional>
#include <limits>

#include "bench/lmdb_index.h"
#include "bench/load.h"
#include "bench/ratio.h"
#include "testing/rng.h"

namespace csnap::bench {
namespace {

constexpr uint64_t kChunkBytes = 16384;
constexpr uint64_t kSnapshots = 1000;
constexpr uint64_t kReadBytes = 512;
// Loaded chunks are even, those of commits odd, so that commits insert all over the tree.
constexpr uint64_t kStride = 2;
constexpr uint64_t kBareLookups = 500000;
constexpr uint64_t kWarmLookups = 200000;
constexpr uint64_t kColdLookups = 5000;
constexpr uint64_t kCommits = 128;
constexpr uint64_t kGroup = 64;
constexpr uint64_t kAgreeing = 100000;
constexpr double kNone = std::numeric_limits<double>::quiet_NaN();  // no such target

using Key = LmdbIndex::Key;

struct Setting {
  uint64_t entries, rounds;
  // One that an entry answers: else a read would go on to the origin.
  Key random_key(Rng& rng) const {
    const uint64_t number = rng.below(entries / 2);
    return {number * kStride, 1 + rng.below(newest_generation(number, kSnapshots))};
  }
};

struct Contestant {
  std::function<void(uint64_t round)> work;
  std::function<void()> before;  // each round, not timed; may be empty
};

// `count` operations of each in every round, whoever begins taking turns; then the row.
void compare(const char* what, const Setting& setting, uint64_t count, double least, double aim,
             const Contestant& ours, const Contestant& theirs) {
  std::vector<double> our_rates;
  std::vector<double> their_rates;
  const auto measure = [&](const Contestant& one, uint64_t round, std::vector<double>& rates) {
    if (one.before) one.before();
    const double start = seconds();
    one.work(round);
    rates.push_back(static_cast<double>(count) / (seconds() - start));
  };
  for (uint64_t round = 0; round < setting.rounds; round++) {
    if (round % 2 == 1) measure(theirs, round, their_rates);
    measure(ours, round, our_rates);
    if (round % 2 == 0) measure(theirs, round, their_rates);
  }
  const Ratio ratio = ratio_of(our_rates, their_rates);
  std::printf(
      "{\"what\":\"%s\",\"entries\":%llu,\"rounds\":%llu,\"csnap_per_s\":%.0f,"
      "\"lmdb_per_s\":%.0f,\"ratio\":%s,\"low95\":%s,\"high95\":%s,\"least\":%s,\"aim\":%s}\n",
      what, static_cast<unsigned long long>(setting.entries),
      static_cast<unsigned long long>(setting.rounds), percentile(our_rates, 0.5),
      percentile(their_rates, 0.5), json_number(ratio.median).c_str(),
      json_number(ratio.low).c_str(), json_number(ratio.high).c_str(), json_number(least).c_str(),
      json_number(aim).c_str());
  std::fflush(stdout);
}

std::optional<Generation> successor(Index& index, const Key& key) {
  const auto found = must(index.at_or_after({kOriginVolume, key.first, key.second}), "look-up");
  if (!found || found->key.chunk != key.first) return std::nullopt;
  return found->key.generation;
}

// Both hold the same, or no figure means anything.
void check_agreement(Index& index, LmdbIndex& lmdb, const Setting& setting) {
  Rng rng(7);
  for (uint64_t i = 0; i < kAgreeing; i++) {
    const Key key = setting.random_key(rng);
    if (successor(index, key) == lmdb.at_or_after(key)) continue;
    std::fprintf(stderr, "bench: the indexes differ at chunk %llu\n",
                 static_cast<unsigned long long>(key.first));
    std::exit(1);
  }
}

// What the compiler must not drop.
volatile uint64_t sink;

void bare_tree(Files& files, LmdbIndex& lmdb, const Setting& setting) {
  IndexOptions everything;
  everything.cache_bytes = uint64_t{1} << 40;
  const auto store = open_store(*files.store, *files.origin, everything);
  check_agreement(store->index(), lmdb, setting);
  const auto run = [&](uint64_t seed, const auto& lookup) {
    Rng rng(seed);
    uint64_t sum = 0;
    for (uint64_t i = 0; i < kBareLookups; i++) sum += lookup(setting.random_key(rng)).value_or(0);
    sink = sum;
  };
  const Contestant ours = {[&](uint64_t round) {
                             run(round,
                                 [&](const Key& key) { return successor(store->index(), key); });
                           },
                           nullptr};
  const Contestant theirs = {
      [&](uint64_t round) { run(round, [&](const Key& key) { return lmdb.at_or_after(key); }); },
      nullptr};
  // Every node is in the cache, every page mapped.
  each_exception(setting.entries, kSnapshots, kStride, [&](ChunkIndex chunk, Generation) {
    sink = successor(store->index(), {chunk, 1}).value_or(0) +
           lmdb.at_or_after({chunk, 1}).value_or(0);
  });
  compare("look-ups, bare tree", setting, kBareLookups, 1.5, 3, ours, theirs);
  must(store->checkpoint(true), "checkpoint");
}

void read_path(Files& files, const std::vector<Uuid>& snapshots, LmdbIndex& lmdb,
               const Setting& setting) {
  std::unique_ptr<Volume> volume;
  std::vector<std::shared_ptr<View>> views;
  const auto close = [&] {
    views.clear();
    must(volume->close(), "close");
    volume.reset();
  };
  const auto open = [&] {
    volume = must(Volume::open(files.options()), "open");
    for (const Uuid& snapshot : snapshots)
      views.push_back(must(volume->open_snapshot(snapshot), "view"));
  };
  std::vector<std::byte> data(kReadBytes);
  const auto read = [&](const Key& key) {
    must(io(*volume, *views[key.second - 1], IoOp::READ, key.first * kChunkBytes, data.size(),
            data.data()),
         "read");
  };
  const auto ours = [&](uint64_t seed, uint64_t count) {
    Rng rng(seed);
    for (uint64_t i = 0; i < count; i++) read(setting.random_key(rng));
  };
  const auto theirs = [&](uint64_t seed, uint64_t count) {
    Rng rng(seed);
    for (uint64_t i = 0; i < count; i++) {
      sink = lmdb.at_or_after_now(setting.random_key(rng)).value_or(0);
      std::memset(data.data(), 0, data.size());
    }
  };
  open();
  // Warm: each has answered every question before. Twice, as csnap forgets what it knows when it
  // makes room for more.
  for (int pass = 0; pass < 2; pass++)
    each_exception(setting.entries, kSnapshots, kStride,
                   [&](ChunkIndex chunk, Generation generation) {
                     read({chunk, generation});
                     sink = lmdb.at_or_after_now({chunk, generation}).value_or(0);
                   });
  compare("look-ups, read path", setting, kWarmLookups, 3, 10,
          {[&](uint64_t round) { ours(round + 1, kWarmLookups); }, nullptr},
          {[&](uint64_t round) { theirs(round + 1, kWarmLookups); }, nullptr});
  const auto cool = [&] {
    close();
    files.store->drop_cache();
    open();
  };
  compare("look-ups, read path, cold", setting, kColdLookups, 3, 10,
          {[&](uint64_t round) { ours(round, kColdLookups); }, cool},
          {[&](uint64_t round) { theirs(round, kColdLookups); }, [&] { lmdb.cool(); }});
  compare("look-ups, read path, cold, LMDB without readahead", setting, kColdLookups, kNone, kNone,
          {[&](uint64_t round) { ours(round, kColdLookups); }, cool},
          {[&](uint64_t round) { theirs(round, kColdLookups); }, [&] { lmdb.cool(false); }});
  close();
}

void commits(Files& files, LmdbIndex& lmdb, const Setting& setting) {
  const auto store = open_store(*files.store, *files.origin);
  // Odd chunks, scattered; hardly a key comes twice.
  const auto key_of = [&](uint64_t number) -> Key {
    return {mix64(number) % (setting.entries / 2) * kStride + 1, 1 + number % kSnapshots};
  };
  const auto ours = [&](uint64_t round) {
    std::vector<Entry> entries(kGroup);
    for (uint64_t i = 0; i < kCommits; i++) {
      for (uint64_t k = 0; k < kGroup; k++) {
        const Key key = key_of((round * kCommits + i) * kGroup + k);
        entries[k].key = {kOriginVolume, key.first, key.second};
        entries[k].location = Location::of(format::LocationKind::ZERO);
      }
      auto transaction =
          must(store->begin(Priority::DATA, RecordBatch::entries_bytes(kGroup), kGroup), "begin");
      transaction.batch.add_entries(format::RecordKind::EXCEPTION, entries);
      must(store->commit(transaction), "commit");
      must(store->apply_exceptions(entries), "apply");
    }
  };
  const auto theirs = [&](uint64_t round) {
    std::vector<Key> keys(kGroup);
    for (uint64_t i = 0; i < kCommits; i++) {
      for (uint64_t k = 0; k < kGroup; k++) keys[k] = key_of((round * kCommits + i) * kGroup + k);
      lmdb.commit(keys);
    }
  };
  compare("inserts, durable in groups of 64", setting, kCommits * kGroup, 1.5, 3, {ours, nullptr},
          {theirs, nullptr});
  must(store->checkpoint(true), "checkpoint");
}

}  // namespace

int index_lookups(int argc, char** argv) {
  const std::string directory = option(argc, argv, "--dir", ".");
  const Setting setting = {
      std::strtoull(option(argc, argv, "--entries", "10000000").c_str(), nullptr, 10),
      std::strtoull(option(argc, argv, "--rounds", "15").c_str(), nullptr, 10)};
  if (setting.entries < 10000 || setting.rounds < 1) {
    std::fprintf(stderr, "bench: at least 10000 entries and one round\n");
    return 2;
  }
  const uint64_t origin_bytes = setting.entries / 2 * kStride * kChunkBytes;
  const uint64_t store_bytes = (uint64_t{2} << 30) + setting.entries * 192;
  Files files(directory, origin_bytes, round_up(store_bytes, kChunkBytes), kChunkBytes);
  std::vector<Uuid> snapshots;
  {
    const auto volume = must(Volume::open(files.options()), "open");
    for (uint64_t i = 0; i < kSnapshots; i++)
      snapshots.push_back(
          must(volume->create_snapshot("s" + std::to_string(i), false, 0, {}), "snapshot").uuid);
    must(volume->close(), "close");
  }
  load(*open_store(*files.store, *files.origin), setting.entries, kSnapshots, kStride);
  LmdbIndex lmdb(directory, (uint64_t{2} << 30) + setting.entries * 192);
  {
    LmdbIndex::Loader loader(lmdb);
    each_exception(setting.entries, kSnapshots, kStride,
                   [&](ChunkIndex chunk, Generation generation) {
                     loader.add({chunk, generation});
                   });
  }
  lmdb.cool();
  bare_tree(files, lmdb, setting);
  read_path(files, snapshots, lmdb, setting);
  commits(files, lmdb, setting);
  return 0;
}

}  // namespace csnap::bench
