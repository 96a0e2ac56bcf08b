// The exception index against std::map: random operations over tiny and real nodes, with
// checkpoints, crashes in the middle of them, reopening, eviction and read errors. CSNAP_SEED
// repeats a run.
#include <algorithm>

#include "store/index_test_io.h"

namespace csnap {
namespace {

struct Shape {
  std::string name;
  IndexOptions options;
  uint64_t operations;
  uint64_t chunks;  // the keys' range
  uint64_t generations;
};

class Model {
 public:
  Model(const Shape& shape, uint64_t seed) : shape_(shape), rng_(seed), io_(rng_.next()) {
    reopen(IndexRoot{});
  }

  void run() {
    for (uint64_t i = 0; i < shape_.operations; i++) {
      if (rng_.one_in(5000)) growing_ = rng_.coin();
      step();
      if (i % (shape_.operations / 16) == 0) compare_all();
    }
    drain();
  }

 private:
  using Map = std::map<Key, Entry>;

  void reopen(IndexRoot root) {
    index_ = std::make_unique<Index>(io_, shape_.options);
    index_->open(root, durable_.size());
  }

  Key random_key() {
    if (rng_.one_in(4)) {  // ascending and descending runs
      run_chunk_ += run_up_ ? 1 : -1;
      if (rng_.one_in(50)) {
        run_up_ = rng_.coin();
        run_chunk_ = rng_.below(shape_.chunks);
      }
      return {0, run_chunk_ % shape_.chunks, 1 + rng_.below(shape_.generations)};
    }
    const Generation generation =
        rng_.one_in(50) ? kHeadGeneration : 1 + rng_.below(shape_.generations);
    return {static_cast<VolumeId>(rng_.below(3)), rng_.below(shape_.chunks), generation};
  }

  Entry random_entry() {
    Entry entry = make_entry(random_key(), 1 + rng_.below(1 << 20));
    if (rng_.one_in(8))
      entry = {entry.key,
               Location::of(rng_.coin() ? format::LocationKind::ZERO : format::LocationKind::LOST),
               0};
    return entry;
  }

  void step() {
    const uint64_t dice = rng_.below(1000);
    if (dice < 250)
      growing_ ? insert() : erase();
    else if (dice < 350)
      growing_ ? erase() : insert();
    else if (dice < 550)
      rng_.coin() ? look_up_at_or_after() : look_up_covering();
    else if (dice < 720)
      look_up_before();
    else if (dice < 900)
      look_up_exact();
    else if (dice < 960)
      scan();
    else if (dice < 990)
      batch();
    else if (dice < 997 || !rng_.one_in(4))
      read_error();
    else if (!rng_.one_in(10))
      checkpoint_slowly();
    else
      recover();
  }

  void insert() {
    const Entry entry = random_entry();
    CSNAP_MUST(index_->insert(entry).ok());
    model_[entry.key] = entry;
  }

  void erase() {
    Key key = random_key();
    // Mostly one that is there.
    const auto near = model_.lower_bound(key);
    if (near != model_.end() && !rng_.one_in(10)) key = near->first;
    bool erased = false;
    CSNAP_MUST(index_->erase(key, erased).ok());
    CSNAP_MUST(erased == (model_.erase(key) == 1));
  }

  void look_up_at_or_after() {
    const Key key = random_key();
    const auto expected = model_.lower_bound(key);
    Result<std::optional<Entry>> result = index_->at_or_after(key);
    CSNAP_MUST(result.ok());
    CSNAP_MUST(result.value().has_value() == (expected != model_.end()));
    if (result.value()) CSNAP_MUST(*result.value() == expected->second);
  }

  void look_up_before() {
    const Key key = random_key();
    auto expected = model_.lower_bound(key);
    Result<std::optional<Entry>> result = index_->before(key);
    CSNAP_MUST(result.ok());
    CSNAP_MUST(result.value().has_value() == (expected != model_.begin()));
    if (result.value()) CSNAP_MUST(*result.value() == (--expected)->second);
  }

  // Twice: the second answer is most likely a remembered one.
  void look_up_covering() {
    const Key key = random_key();
    const auto expected = model_.lower_bound(key);
    const bool there = expected != model_.end() && expected->first.same_chunk(key);
    for (int i = 0; i < 2; i++) {
      Result<std::optional<Entry>> result = index_->covering(key);
      CSNAP_MUST(result.ok());
      CSNAP_MUST(result.value().has_value() == there);
      if (there) CSNAP_MUST(*result.value() == expected->second);
    }
  }

  void look_up_exact() {
    const Key key = random_key();
    const auto expected = model_.find(key);
    Result<std::optional<Entry>> result = index_->find(key);
    CSNAP_MUST(result.ok());
    CSNAP_MUST(result.value().has_value() == (expected != model_.end()));
    if (result.value()) CSNAP_MUST(*result.value() == expected->second);
  }

  // A few pieces of a scan for a range of generations: whatever matches must be in it, and nothing
  // that is not in the tree.
  void scan() {
    const Generation first = 1 + rng_.below(shape_.generations);
    const Generation last = first + rng_.below(3);
    const auto wanted = [&](Generation min, Generation max) {
      CSNAP_MUST(min <= max);
      return min <= last && first <= max;
    };
    Key from = random_key();
    for (int piece = 0; piece < 4 && from != kKeyEnd; piece++) {
      std::vector<Entry> out;
      Key next;
      const size_t max_entries = 1 + rng_.below(20);
      const size_t max_nodes = rng_.below(10);
      CSNAP_MUST(index_->scan(from, wanted, max_entries, max_nodes, out, next).ok());
      CSNAP_MUST(next > from);
      CSNAP_MUST(out.size() <= max_entries);
      auto it = model_.lower_bound(from);
      size_t seen = 0;
      for (; it != model_.end() && it->first < next; ++it) {
        if (seen < out.size() && out[seen] == it->second)
          seen++;
        else
          CSNAP_MUST(it->first.generation < first || it->first.generation > last);
      }
      CSNAP_MUST(seen == out.size());
      from = next;
    }
  }

  // blocks_needed() is an upper bound also of many changes at once.
  void batch() {
    const uint64_t count = 1 + rng_.below(rng_.one_in(20) ? 200 : 10);
    const uint64_t bound = index_->blocks_needed(count);
    const uint64_t before = io_.allocations();
    for (uint64_t i = 0; i < count; i++) rng_.one_in(3) == growing_ ? erase() : insert();
    CSNAP_MUST(io_.allocations() - before <= bound);
  }

  // A read that fails leaves the tree as it was.
  void read_error() {
    const Entry entry = random_entry();
    const auto near = model_.lower_bound(entry.key);
    const Key victim = near == model_.end() ? entry.key : near->first;
    const uint64_t used = io_.used();
    io_.fail_reads(1 + rng_.below(4));
    bool erased = false;
    const bool inserting = rng_.coin();
    const Status status = inserting ? index_->insert(entry) : index_->erase(victim, erased);
    io_.fail_reads(0);
    if (status.ok() && inserting) model_[entry.key] = entry;
    if (status.ok() && !inserting) CSNAP_MUST(erased == (model_.erase(victim) == 1));
    if (status.ok()) return;
    CSNAP_MUST(status.code() == Code::IO_ERROR);
    CSNAP_MUST(!erased);
    CSNAP_MUST(io_.used() == used);
    CSNAP_MUST(index_->stats().entries == model_.size());
    if (model_.size() < 2000) compare_all();
  }

  // Images are written one by one while the tree changes further.
  void checkpoint_slowly() {
    std::vector<SealedBlock> out;
    const IndexRoot root = index_->freeze(out);
    io_.frozen();
    const Map frozen = model_;
    const bool crash_within = rng_.one_in(4);
    for (size_t i = 0; i < out.size(); i++) {
      if (crash_within && rng_.one_in(out.size())) return recover();
      io_.write(out[i]);
      if (i < 30) rng_.coin() ? insert() : erase();
    }
    if (crash_within) return recover();
    index_->frozen_written();
    io_.durable();
    durable_root_ = root;
    durable_ = frozen;
    checkpoints_++;
  }

  void recover() {
    reopen(durable_root_);
    model_ = durable_;
    const WalkResult found = walk_all(*index_);
    CSNAP_MUST(found.problems.empty());
    io_.reset_to(found.blocks);
    compare(found);
    // The walk reads past the cache, so begin with whatever a lookup finds.
    growing_ = model_.size() < 1000 || rng_.coin();
  }

  void compare(const WalkResult& found) {
    CSNAP_MUST(found.problems.empty());
    CSNAP_MUST(found.entries.size() == model_.size());
    CSNAP_MUST(std::equal(found.entries.begin(), found.entries.end(), model_.begin(),
                          [](const Entry& a, const auto& b) { return a == b.second; }));
    // No block is lost or held twice.
    CSNAP_MUST(found.blocks.size() == io_.used());
  }

  void compare_all() {
    compare(walk_all(*index_));
    CSNAP_MUST(index_->stats().entries == model_.size());
  }

  // Down to nothing: every block comes back.
  void drain() {
    while (!model_.empty()) {
      auto it = model_.lower_bound(random_key());
      if (it == model_.end()) it = model_.begin();
      bool erased = false;
      CSNAP_MUST(index_->erase(it->first, erased).ok());
      CSNAP_MUST(erased);
      model_.erase(it);
      if (rng_.one_in(1000)) checkpoint_slowly();
    }
    if (index_->stats().entries == 0) {
      CSNAP_MUST(io_.used() == 0);
      CSNAP_MUST(index_->stats().height == 0);
      CSNAP_MUST(index_->stats().cached_nodes == 0);
    }
    CHECK(checkpoints_ > 0);
  }

  const Shape shape_;
  Rng rng_;
  MemoryIo io_;
  std::unique_ptr<Index> index_;
  Map model_;
  Map durable_;
  IndexRoot durable_root_;
  bool growing_ = true;
  bool run_up_ = true;
  uint64_t run_chunk_ = 0;
  uint64_t checkpoints_ = 0;
};

void run_shape(const Shape& shape) {
  const uint64_t seed = seed_from_environment(20251122);
  MESSAGE(shape.name << ", CSNAP_SEED=" << seed);
  Shape scaled_shape = shape;
  scaled_shape.operations = scaled(shape.operations);
  Model(scaled_shape, seed).run();
}

}  // namespace

TEST_CASE("index_model_tiny_nodes_with_room_in_the_cache") {
  run_shape({"tiny nodes, large cache", {4, 4, uint64_t{64} << 20}, 300000, 300, 8});
}

TEST_CASE("index_model_tiny_nodes_without_a_cache") {
  run_shape({"tiny nodes, no cache", {4, 4, 0, 0}, 100000, 200, 4});
}

TEST_CASE("index_model_tiny_nodes_small_cache") {
  run_shape({"tiny nodes, 16 cached", {4, 5, 16 * kBlockBytes, 10 * 128}, 200000, 400, 5});
}

TEST_CASE("index_model_odd_nodes") {
  run_shape({"7 and 5 entries", {7, 5, 64 * kBlockBytes}, 200000, 1000, 20});
}

TEST_CASE("index_model_real_nodes") {
  const uint32_t leaf = format::kLeafEntriesMax;
  const uint32_t inner = format::kInnerEntriesMax;
  run_shape({"real nodes", {leaf, inner, 64 * kBlockBytes}, 300000, 100000, 100});
}

}  // namespace csnap
