// The exception index, invariant by invariant: shapes that splits and merges leave, checkpoints
// beside changes, ranges, corruption of every kind, readers beside a writer.
#include <algorithm>
#include <atomic>

#include "store/index_node.h"
#include "store/index_test_io.h"

namespace csnap {
namespace {

constexpr uint64_t kPlenty = uint64_t{64} << 20;
const IndexOptions kTiny{4, 4, kPlenty};

Key key(ChunkIndex chunk, Generation generation = 1) { return {0, chunk, generation}; }

void insert(Index& index, const Key& where, uint64_t block = 1) {
  CSNAP_MUST(index.insert(make_entry(where, block)).ok());
}

bool erase(Index& index, const Key& where) {
  bool erased = false;
  CSNAP_MUST(index.erase(where, erased).ok());
  return erased;
}

std::optional<Entry> find(Index& index, const Key& where) {
  Result<std::optional<Entry>> result = index.find(where);
  CSNAP_MUST(result.ok());
  return result.value();
}

// A tree of `count` chunks, written out, and opened anew with nothing resident.
struct Written {
  Written(uint64_t count, IndexOptions options, uint64_t seed = 1) : io(seed) {
    Index builder(io, options);
    builder.open({}, 0);
    for (uint64_t i = 0; i < count; i++) insert(builder, key(i * 10, 1 + i % 5), i + 1);
    root = checkpoint(builder, io);
    index = std::make_unique<Index>(io, options);
    index->open(root, count);
  }
  MemoryIo io;
  IndexRoot root;
  std::unique_ptr<Index> index;
};

}  // namespace

TEST_CASE("index_empty_tree_answers_nothing") {
  MemoryIo io;
  Index index(io, {});
  index.open({}, 0);
  CHECK_FALSE(index.at_or_after({}).value().has_value());
  CHECK_FALSE(index.before(kKeyEnd).value().has_value());
  CHECK_FALSE(find(index, key(1)).has_value());
  CHECK_FALSE(erase(index, key(1)));
  std::vector<Entry> out;
  Key next;
  CHECK(index
            .scan(
                {}, [](auto, auto) { return true; }, 1, 1, out, next)
            .ok());
  CHECK(next == kKeyEnd);
  CHECK(index.blocks_needed(0) == 0);
  CHECK(index.stats().height == 0);
  std::vector<SealedBlock> sealed;
  CHECK(index.freeze(sealed).ref.block == 0);
  CHECK(sealed.empty());
  index.frozen_written();
  CHECK(io.allocations() == 0);
}

TEST_CASE("index_insert_replaces_the_entry_of_the_same_key") {
  MemoryIo io;
  Index index(io, kTiny);
  index.open({}, 0);
  insert(index, key(5), 1);
  insert(index, key(5), 2);
  CHECK(index.stats().entries == 1);
  CHECK(find(index, key(5))->location.block() == 2);
  CHECK(erase(index, key(5)));
  CHECK(index.stats().entries == 0);
  CHECK(io.used() == 0);
}

TEST_CASE("index_keys_order_by_volume_then_chunk_then_generation") {
  MemoryIo io;
  Index index(io, kTiny);
  index.open({}, 0);
  const Key keys[] = {{0, 7, 9},           {0, 7, kHeadGeneration}, {0, 8, 1},
                      {1, 0, 1},           {1, ~uint64_t{0}, 2},    {2, 0, 3},
                      {~VolumeId{0}, 0, 1}};
  for (size_t i = std::size(keys); i-- > 0;) insert(index, keys[i], i + 1);
  Key at{};
  for (const Key& expected : keys) {
    const std::optional<Entry> entry = index.at_or_after(at).value();
    REQUIRE(entry.has_value());
    CHECK(entry->key == expected);
    at = entry->key;
    at.generation++;
    if (at.generation == 0) at.chunk++;
  }
  CHECK(index.before(keys[0]).value() == std::nullopt);
  CHECK(index.before(kKeyEnd).value()->key == keys[6]);
}

TEST_CASE("index_ascending_inserts_leave_full_leaves") {
  MemoryIo io;
  Index index(io, {});
  index.open({}, 0);
  constexpr uint64_t kCount = 200000;
  for (uint64_t i = 0; i < kCount; i++) insert(index, key(i));
  const WalkResult found = walk_all(index);
  CHECK(found.problems.empty());
  CHECK(found.entries.size() == kCount);
  CHECK(found.leaves == div_up(kCount, format::kLeafEntriesMax));
}

TEST_CASE("index_descending_inserts_leave_leaves_at_least_half_full") {
  // Also those at the right edge of full leaves, where ascending ones came before.
  MemoryIo io;
  Index index(io, {});
  index.open({}, 0);
  constexpr uint64_t kGroups = 20;
  constexpr uint64_t kRun = 16 * format::kLeafEntriesMax;
  for (uint64_t group = 0; group < kGroups; group++)
    for (uint64_t i = 0; i < kRun; i++) insert(index, key(group * 100000 + i));
  for (uint64_t group = 0; group < kGroups; group++)
    for (uint64_t i = kRun; i-- > 0;) insert(index, key(group * 100000 + 50000 + i));
  const WalkResult found = walk_all(index);
  CHECK(found.problems.empty());
  CHECK(found.entries.size() == 2 * kGroups * kRun);
  CHECK(found.leaves <= 2 * div_up(2 * kGroups * kRun, format::kLeafEntriesMax) + 2 * kGroups);
}

TEST_CASE("index_erase_merges_nodes_and_lowers_the_tree") {
  MemoryIo io;
  Index index(io, {});
  index.open({}, 0);
  constexpr uint64_t kCount = 100000;
  for (uint64_t i = 0; i < kCount; i++) insert(index, key(i));
  CHECK(index.stats().height == 3);
  for (uint64_t i = 0; i < kCount; i++)
    if (i % 50 != 0) CHECK(erase(index, key(i)));
  const WalkResult found = walk_all(index);
  CHECK(found.problems.empty());
  CHECK(found.entries.size() == kCount / 50);
  CHECK(found.leaves < 5 * div_up(kCount / 50, format::kLeafEntriesMax));
  CHECK(index.stats().height == 2);
  CHECK(io.used() == found.blocks.size());
}

TEST_CASE("index_change_after_a_freeze_shadows_the_path_once (M1, X3)") {
  Written tree(500, kTiny);
  const uint8_t height = tree.index->stats().height;
  const uint64_t before = tree.io.allocations();
  insert(*tree.index, key(2000), 99);
  CHECK(tree.io.allocations() == before + height);
  CHECK(tree.index->stats().dirty_nodes == height);
  insert(*tree.index, key(2000), 98);
  CHECK(tree.io.allocations() == before + height);
  // The checkpoint's tree is still what it was.
  Index old(tree.io, kTiny);
  old.open(tree.root, 500);
  CHECK(find(old, key(2000, 1))->location.block() == 201);
  CHECK(find(*tree.index, key(2000, 1))->location.block() == 98);
}

TEST_CASE("index_blocks_needed_covers_changes_that_shadow_split_and_merge_everywhere") {
  // Every change hits a clean path: full nodes for inserts, sparse ones for erases.
  constexpr uint64_t kCount = 3000;
  for (const bool inserting : {true, false}) {
    for (const uint64_t changes : {1, 2, 7, 60, 400}) {
      Written tree(kCount, kTiny);
      if (!inserting)
        for (uint64_t i = 0; i < kCount; i++)
          if (i % 4 >= 2) CHECK(erase(*tree.index, key(i * 10, 1 + i % 5)));
      checkpoint(*tree.index, tree.io);
      const uint64_t step = kCount / changes / 4 * 4;
      for (uint64_t first = 0; first < std::min<uint64_t>(step, 24); first += 4) {
        const uint64_t bound = tree.index->blocks_needed(changes);
        const uint64_t before = tree.io.allocations();
        for (uint64_t i = first; i < first + changes * step && i < kCount; i += step) {
          if (inserting)
            insert(*tree.index, key(i * 10 + 5 + first % 3));
          else
            CHECK(erase(*tree.index, key(i * 10, 1 + i % 5)));
        }
        CHECK(tree.io.allocations() - before <= bound);
        CHECK(bound <= changes * 4 * (tree.index->stats().height + 2u));
        checkpoint(*tree.index, tree.io);
      }
    }
  }
}

TEST_CASE("index_freeze_hands_out_children_first_and_nothing_when_clean") {
  MemoryIo io;
  Index index(io, kTiny);
  index.open({}, 0);
  for (uint64_t i = 0; i < 200; i++) insert(index, key(i));
  std::vector<SealedBlock> out;
  const IndexRoot root = index.freeze(out);
  io.frozen();
  uint8_t level = 0;
  for (const SealedBlock& sealed : out) {
    CHECK(sealed.image->header().level <= level + 1);
    level = sealed.image->header().level;
  }
  CHECK(out.back().block == root.ref.block);
  CHECK(out.back().image->header().crc == root.ref.crc);
  CHECK(index.stats().dirty_nodes == 0);
  for (const SealedBlock& sealed : out) io.write(sealed);
  index.frozen_written();
  io.durable();
  out.clear();
  CHECK(index.freeze(out).ref.block == root.ref.block);
  CHECK(out.empty());
  index.frozen_written();
}

TEST_CASE("index_frozen_images_do_not_change_when_the_tree_does") {
  MemoryIo io;
  Index index(io, {4, 4, 0});  // with no cache, a frozen node given up too early could not be read
  index.open({}, 0);
  for (uint64_t i = 0; i < 100; i++) insert(index, key(i), i + 1);
  std::vector<SealedBlock> out;
  const IndexRoot root = index.freeze(out);
  io.frozen();
  for (uint64_t i = 0; i < 100; i++) insert(index, key(i), 1000 + i);
  for (uint64_t i = 0; i < 50; i++) CHECK(erase(index, key(i)));
  for (const SealedBlock& sealed : out) io.write(sealed);
  Index old(io, {});
  old.open(root, 100);
  const WalkResult found = walk_all(old);
  CHECK(found.problems.empty());
  REQUIRE(found.entries.size() == 100);
  for (uint64_t i = 0; i < 100; i++) CHECK(found.entries[i].location.block() == i + 1);
  index.frozen_written();
  io.durable();
  CHECK(walk_all(index).entries.size() == 50);
}

TEST_CASE("index_unwritten_nodes_stay_resident_and_clean_ones_go") {
  MemoryIo io;
  Index index(io, {4, 4, 8 * kBlockBytes});
  index.open({}, 0);
  for (uint64_t i = 0; i < 400; i++) insert(index, key(i));
  const uint64_t all = index.stats().cached_nodes;
  CHECK(all > 100);
  std::vector<SealedBlock> out;
  index.freeze(out);
  io.frozen();
  for (uint64_t i = 0; i < 400; i++) CHECK(find(index, key(i)).has_value());
  CHECK(io.reads() == 0);
  CHECK(index.stats().cached_nodes == all);
  for (const SealedBlock& sealed : out) io.write(sealed);
  index.frozen_written();
  io.durable();
  CHECK(index.stats().cached_nodes <= 9);
  for (uint64_t i = 0; i < 400; i++) {
    CHECK(find(index, key(i)).has_value());
    CHECK(index.stats().cached_nodes <= 9 + index.stats().height);
  }
  CHECK(io.reads() > 0);
}

TEST_CASE("index_scan_skips_subtrees_by_generation_and_freeze_tightens_ranges (X2)") {
  MemoryIo io;
  Index index(io, {});
  index.open({}, 0);
  // One generation for each thousand chunks, and one stray entry.
  for (uint64_t i = 0; i < 50000; i++) insert(index, key(i, 1 + i / 1000));
  insert(index, key(25000, 7777));
  const auto count_nodes = [&](Generation generation, size_t& entries) {
    size_t visited = 0;
    std::vector<Entry> out;
    Key next;
    const auto wanted = [&](Generation min, Generation max) {
      const bool want = min <= generation && generation <= max;
      if (want) visited++;
      return want;
    };
    CSNAP_MUST(index.scan({}, wanted, SIZE_MAX / 2, SIZE_MAX, out, next).ok());
    CSNAP_MUST(next == kKeyEnd);
    entries = static_cast<size_t>(std::count_if(out.begin(), out.end(), [&](const Entry& entry) {
      return entry.key.generation == generation;
    }));
    return visited;
  };
  size_t entries = 0;
  CHECK(count_nodes(7, entries) < 20);
  CHECK(entries == 1000);
  CHECK(count_nodes(7777, entries) >= 2);
  CHECK(entries == 1);
  CHECK(count_nodes(8888, entries) == 0);
  CHECK(erase(index, key(25000, 7777)));
  checkpoint(index, io);
  CHECK(count_nodes(7777, entries) == 0);
}

TEST_CASE("index_scan_gets_on_however_small_its_budget_is") {
  Written tree(300, kTiny);
  std::vector<Entry> out;
  Key from{};
  int calls = 0;
  while (from != kKeyEnd) {
    Key next;
    REQUIRE(tree.index
                ->scan(
                    from, [](auto, auto) { return true; }, 3, 0, out, next)
                .ok());
    REQUIRE(next > from);
    from = next;
    REQUIRE(++calls < 1000);
  }
  CHECK(out.size() == 300);
  // Nothing wanted: the nodes above the leaves are a budget too.
  calls = 0;
  for (from = {}; from != kKeyEnd; calls++) {
    Key next;
    const auto leafless = [&](Generation min, Generation max) { return max - min >= 4; };
    REQUIRE(tree.index->scan(from, leafless, 3, 2, out, next).ok());
    REQUIRE(next > from);
    from = next;
    REQUIRE(calls < 1000);
  }
  CHECK(calls > 2);
}

TEST_CASE("index_walk_finds_every_flipped_bit_of_every_node") {
  Written tree(60, kTiny);
  const WalkResult whole = walk_all(*tree.index);
  REQUIRE(whole.problems.empty());
  REQUIRE(whole.entries.size() == 60);
  Rng rng(seed_from_environment(7));
  const BlockNumber whole_node_every = std::getenv("CSNAP_SANITIZED") ? 16 : 8;
  for (BlockNumber block : whole.blocks) {
    for (size_t byte = 0; byte < kBlockBytes; byte++) {
      const std::byte flip = std::byte{1} << rng.below(8);
      tree.io.image(block)->bytes[byte] ^= flip;
      const WalkResult found = walk_all(*tree.index);
      CSNAP_MUST(found.problems.size() == 1);
      CSNAP_MUST(found.problems[0].find("block " + std::to_string(block) + " ") !=
                 std::string::npos);
      CSNAP_MUST(found.entries.size() < 60);
      tree.io.image(block)->bytes[byte] ^= flip;
      // All bytes of a few nodes, of the others every so many.
      if (block % whole_node_every != 0) byte += 61;
    }
  }
  CHECK(walk_all(*tree.index).problems.empty());
}

namespace {

// Rewrites one node of a written tree and every reference above it, as a wrong writer would, so
// that checksums prove nothing. Returns the new root.
IndexRoot forge(Written& tree, BlockNumber victim, const std::function<void(BlockImage&)>& change) {
  std::function<uint32_t(BlockNumber, uint8_t)> visit = [&](BlockNumber block, uint8_t level) {
    BlockImage& image = *tree.io.image(block);
    for (uint32_t i = 0; level > 0 && i < node_count(image); i++) {
      format::IndexChild& child = inner_children(image)[i];
      child.crc = visit(child.block, static_cast<uint8_t>(level - 1));
    }
    if (block == victim) change(image);
    return tree.io.seal(block, image);
  };
  IndexRoot root = tree.root;
  root.ref.crc = visit(root.ref.block, root.level);
  return root;
}

struct Forgery {
  std::string says;
  uint8_t level;
  std::function<void(BlockImage&)> change;
};

}  // namespace

TEST_CASE("index_forged_nodes_are_refused_by_walk_and_lookups (N1, X1, X2, X4)") {
  const std::vector<Forgery> forgeries = {
      {"it is empty", 0,
       [](BlockImage& image) {
         image.header().count = 0;
         std::memset(image.payload(), 0, format::kBlockPayloadBytes);
       }},
      {"records", 0, [](BlockImage& image) { image.header().count = 127; }},
      {"records", 1, [](BlockImage& image) { image.header().count = 85; }},
      {"records", 1, [](BlockImage& image) { image.header().count = 65535; }},
      {"reserved bytes", 0, [](BlockImage& image) { image.header().reserved0 = 1; }},
      {"reserved bytes", 1, [](BlockImage& image) { image.header().reserved1[23] = 1; }},
      {"behind its last record", 0,
       [](BlockImage& image) { image.payload()[4031] = std::byte{1}; }},
      {"out of order", 0,
       [](BlockImage& image) { std::swap(leaf_entries(image)[0], leaf_entries(image)[1]); }},
      {"out of order", 0,
       [](BlockImage& image) { leaf_entries(image)[1] = leaf_entries(image)[0]; }},
      {"out of order", 1,
       [](BlockImage& image) { std::swap(inner_children(image)[1], inner_children(image)[2]); }},
      {"impossible location", 0,
       [](BlockImage& image) { leaf_entries(image)[0].location = uint64_t{15} << 60; }},
      {"impossible location", 0, [](BlockImage& image) { leaf_entries(image)[1].location = 0; }},
      {"no block", 1, [](BlockImage& image) { inner_children(image)[1].block = 0; }},
      {"empty generation range", 1,
       [](BlockImage& image) { inner_children(image)[1].generation_min = 9999; }},
      {"not those its parent leads to", 0,
       [](BlockImage& image) { leaf_entries(image)[node_count(image) - 1].chunk = 99999; }},
      {"not those its parent leads to", 0,
       [](BlockImage& image) { leaf_entries(image)[0].chunk = 0; }},
      {"not those its parent leads to", 1,
       [](BlockImage& image) { inner_children(image)[node_count(image) - 1].chunk = 99999; }},
  };
  for (const Forgery& forgery : forgeries) {
    CAPTURE(forgery.says);
    Written tree(300, kTiny);
    // A node in the middle of its level.
    std::vector<BlockNumber> level;
    CHECK(tree.index
              ->walk(
                  [&](const NodeView& view) {
                    if (view.level == forgery.level) level.push_back(view.block);
                    return true;
                  },
                  [](const Entry&) { return true; }, [](const std::string&) { return true; })
              .ok());
    const BlockNumber victim = level[level.size() / 2];
    const IndexRoot root = forge(tree, victim, forgery.change);
    tree.index->open(root, 300);
    const WalkResult found = walk_all(*tree.index);
    REQUIRE(found.problems.size() == 1);
    CHECK(found.problems[0].find(forgery.says) != std::string::npos);
    CHECK(found.problems[0].find("block " + std::to_string(victim) + " ") != std::string::npos);
    size_t refused = 0;
    for (uint64_t i = 0; i < 300; i++) {
      const Result<std::optional<Entry>> result = tree.index->find(key(i * 10, 1 + i % 5));
      if (result.ok()) continue;
      CHECK(result.status().code() == Code::CORRUPT);
      refused++;
    }
    CHECK(refused > 0);
    CHECK(refused < 100);
    std::vector<Entry> out;
    Key next;
    CHECK(tree.index
              ->scan(
                  {}, [](auto, auto) { return true; }, 1000, 1000, out, next)
              .code() == Code::CORRUPT);
    CHECK(next > Key{});
  }
}

TEST_CASE("index_walk_tells_of_ranges_and_roots_that_lookups_do_not_need (X2, X4)") {
  Written tree(300, kTiny);
  IndexRoot root = forge(tree, tree.root.ref.block, [](BlockImage& image) {
    inner_children(image)[0].generation_min = 3;
    inner_children(image)[0].generation_max = 3;
  });
  tree.index->open(root, 300);
  WalkResult found = walk_all(*tree.index);
  REQUIRE(found.problems.size() == 1);
  CHECK(found.problems[0].find("outside the range") != std::string::npos);
  CHECK(found.entries.size() == 300);
  // A root with one child; changes below it put it right.
  root = forge(tree, tree.root.ref.block, [](BlockImage& image) {
    std::memset(image.payload() + sizeof(format::IndexChild), 0,
                format::kBlockPayloadBytes - sizeof(format::IndexChild));
    image.header().count = 1;
    set_range(inner_children(image)[0], {1, 5});
  });
  tree.index->open(root, 300);
  found = walk_all(*tree.index);
  REQUIRE(found.problems.size() == 1);
  CHECK(found.problems[0].find("single child") != std::string::npos);
  for (const Entry& entry : found.entries) CHECK(erase(*tree.index, entry.key));
  CHECK(tree.index->stats().height == 0);
}

TEST_CASE("index_root_of_an_impossible_level_is_refused") {
  MemoryIo io;
  Index index(io, {});
  for (const uint8_t level : {uint8_t{kIndexLevelsMax}, uint8_t{255}}) {
    index.open({{5, 1}, level}, 1);
    CHECK(index.find(key(1)).status().code() == Code::CORRUPT);
    CHECK(index.insert(make_entry(key(1))).code() == Code::CORRUPT);
    CHECK(walk_all(index).problems.size() == 1);
    CHECK(index.blocks_needed(1) > 0);
    CHECK(index.blocks_needed(1000000) < 1000000000);
    CHECK(index.stats().height == kIndexLevelsMax);
  }
}

TEST_CASE("index_walk_stops_when_told_and_refuses_a_changing_tree") {
  Written tree(300, kTiny);
  int nodes = 0;
  int entries = 0;
  const auto no_problem = [](const std::string&) { return true; };
  CHECK(tree.index
            ->walk([&](const NodeView&) { return ++nodes < 5; }, [&](const Entry&) { return true; },
                   no_problem)
            .ok());
  CHECK(nodes == 5);
  CHECK(tree.index
            ->walk([](const NodeView&) { return true; },
                   [&](const Entry&) { return ++entries < 5; }, no_problem)
            .ok());
  CHECK(entries == 5);
  const Status status = tree.index->walk([](const NodeView&) { return true; },
                                         [&](const Entry& entry) {
                                           insert(*tree.index, entry.key);
                                           return true;
                                         },
                                         no_problem);
  CHECK(status.code() == Code::BUSY);
}

// Each read a change needs fails once; the tree must stay as it was, on the device and in RAM.
TEST_CASE("index_changes_are_atomic_when_the_nth_read_fails") {
  for (const bool inserting : {true, false}) {
    int failures = 0;
    for (uint64_t nth = 1;; nth++) {
      Written tree(300, {4, 4, 0});
      const uint64_t used = tree.io.used();
      tree.io.fail_reads(nth);
      bool erased = false;
      const Status status = inserting ? tree.index->insert(make_entry(key(1555)))
                                      : tree.index->erase(key(1550, 1), erased);
      tree.io.fail_reads(0);
      if (status.ok()) break;
      failures++;
      CHECK(status.code() == Code::IO_ERROR);
      CHECK_FALSE(erased);
      CHECK(tree.io.used() == used);
      CHECK(tree.index->stats().dirty_nodes == 0);
      CHECK(tree.index->stats().entries == 300);
      const WalkResult found = walk_all(*tree.index);
      CHECK(found.problems.empty());
      CHECK(found.entries.size() == 300);
    }
    CHECK(failures >= 3);
  }
}

// What covering() has answered is remembered only until a change makes it wrong: of the chunk's
// other generations too, which one entry answers for.
TEST_CASE("index_covering_forgets_what_a_change_makes_wrong (L1)") {
  MemoryIo io;
  Index index(io, {4, 4, kPlenty, uint64_t{1} << 20});
  index.open({}, 0);
  for (ChunkIndex chunk = 0; chunk < 40; chunk++) insert(index, key(chunk, 5), chunk + 1);
  const auto covering = [&](Generation generation) {
    Result<std::optional<Entry>> found = index.covering(key(20, generation));
    CSNAP_MUST(found.ok());
    return found.value() ? found.value()->key.generation : 0;
  };
  for (int twice = 0; twice < 2; twice++) {
    CHECK(covering(2) == 5);
    CHECK(covering(5) == 5);
    CHECK(covering(6) == 0);
  }
  insert(index, key(20, 3));
  CHECK(covering(2) == 3);
  CHECK(covering(3) == 3);
  CHECK(covering(4) == 5);
  insert(index, key(20, 9));
  CHECK(covering(6) == 9);
  CHECK(covering(4) == 5);
  CHECK(erase(index, key(20, 5)));
  CHECK(covering(4) == 9);
  CHECK(covering(2) == 3);
  // The same key, another place.
  insert(index, key(20, 3), 77);
  CHECK(index.covering(key(20, 3)).value()->location.block() == 77);
  index.open({}, 0);
  CHECK(covering(3) == 0);
}

// Readers look up, scan and make room in a small cache while a writer changes and checkpoints.
// Even chunks never change, odd ones come and go.
TEST_CASE("index_readers_run_beside_a_writer (X5)") {
  const uint64_t seed = seed_from_environment(11);
  constexpr uint64_t kChunks = 2000;
  MemoryIo io(seed);
  Index index(io, {6, 5, 40 * kBlockBytes, uint64_t{1} << 20});
  index.open({}, 0);
  for (uint64_t i = 0; i < kChunks; i += 2) insert(index, key(i), i + 1);
  checkpoint(index, io);
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> looked_up{0};
  Thread readers[3];
  for (int reader = 0; reader < 3; reader++) {
    readers[reader].start("index-reader", [&, reader] {
      Rng rng(seed + static_cast<uint64_t>(reader));
      while (!stop || looked_up < 3000) {
        const uint64_t chunk = rng.below(kChunks / 2) * 2;
        CSNAP_MUST(find(index, key(chunk))->location.block() == chunk + 1);
        for (const ChunkIndex asked : {chunk, chunk + 1}) {
          const std::optional<Entry> covering = index.covering(key(asked)).value();
          CSNAP_MUST(covering || asked != chunk);
          CSNAP_MUST(!covering || covering->location.block() == asked + 1);
        }
        const std::optional<Entry> after = index.at_or_after(key(chunk, 2)).value();
        CSNAP_MUST(chunk + 2 >= kChunks || (after && after->key.chunk <= chunk + 2));
        const std::optional<Entry> before = index.before(key(chunk)).value();
        CSNAP_MUST(chunk < 2 || (before && before->key.chunk + 2 >= chunk));
        std::vector<Entry> out;
        Key next;
        CSNAP_MUST(index
                       .scan(
                           key(chunk), [](auto, auto) { return true; }, 10, 5, out, next)
                       .ok());
        CSNAP_MUST(!out.empty());
        CSNAP_MUST(out[0].key == key(chunk));
        index.blocks_needed(3);
        CSNAP_MUST(index.stats().entries >= kChunks / 2);
        looked_up++;
      }
    });
  }
  Rng rng(seed + 99);
  std::set<uint64_t> odd;
  for (int i = 0; i < 10000; i++) {
    const uint64_t chunk = rng.below(kChunks / 2) * 2 + 1;
    if (odd.count(chunk)) {
      CSNAP_MUST(index.covering(key(chunk)).value());
      CSNAP_MUST(erase(index, key(chunk)));
      CSNAP_MUST(!index.covering(key(chunk)).value());
      odd.erase(chunk);
    } else {
      CSNAP_MUST(!index.covering(key(chunk)).value());
      insert(index, key(chunk), chunk + 1);
      CSNAP_MUST(index.covering(key(chunk)).value());
      odd.insert(chunk);
    }
    if (i % 500 == 0) checkpoint(index, io);
  }
  stop = true;
  for (Thread& reader : readers) reader.join();
  checkpoint(index, io);
  const WalkResult found = walk_all(index);
  CHECK(found.problems.empty());
  CHECK(found.entries.size() == kChunks / 2 + odd.size());
  CHECK(io.used() == found.blocks.size());
}

}  // namespace csnap
