// The staged table by itself: what overlays what, and what a chunk needs before it may leave.
#include "volume/staged_table.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>

#include "testing/rng.h"

namespace csnap {
namespace {

constexpr uint64_t kChunkBytes = 16384;
constexpr uint64_t kChunks = 64;

struct Table {
  StagedTable staged{kChunks, kChunkBytes};
  Sequence sequence = 0;

  // Sectors [first, first + count) of the chunk become `fill`.
  void put(ChunkIndex chunk, uint64_t first, uint64_t count, int fill, Generation generation = 1,
           bool copied = true, BlockNumber reserved = 0) {
    const std::vector<std::byte> data(count * kSectorBytes, static_cast<std::byte>(fill));
    sequence++;
    staged.put(chunk, generation, first * kSectorBytes, data.data(), data.size(),
               {sequence * 4096, sequence}, copied, reserved);
  }
  // One character a sector of what a read finds that has '.' everywhere below.
  std::string read(uint64_t sector, uint64_t count, Generation upto = kHeadGeneration) {
    std::vector<std::byte> data(count * kSectorBytes, std::byte{'.'});
    StagedTable::overlay(staged.take(sector * kSectorBytes, data.size(), upto), data.data());
    std::string seen;
    for (uint64_t i = 0; i < count; i++) {
      const std::byte first = data[i * kSectorBytes];
      const auto* begin = data.data() + i * kSectorBytes;
      const bool whole =
          std::all_of(begin, begin + kSectorBytes, [&](std::byte byte) { return byte == first; });
      seen += whole ? static_cast<char>(first) : '!';
    }
    return seen;
  }
};

using Chunks = std::vector<ChunkIndex>;
using Blocks = std::vector<BlockNumber>;
using Contents = std::vector<StagedTable::Content>;

// Whether the chunk left.
bool applied(StagedTable& staged, ChunkIndex chunk, Sequence last) {
  return staged.applied(Contents{{chunk, last, {}}}) == Chunks{chunk};
}

using Below = StagedTable::Below;

TEST_CASE("staged table: a read finds the newest of each sector, and only what its view may see") {
  Table table;
  CHECK_FALSE(table.staged.any());
  table.put(0, 6, 4, 'a');
  table.put(0, 8, 8, 'b');
  table.put(1, 0, 1, 'c', 2);
  CHECK(table.read(4, 14) == "..aabbbbbbbb..");
  CHECK(table.read(9, 2) == "bb");
  // Chunk 1 begins at sector 32 and is of a younger generation.
  CHECK(table.read(30, 4) == "..c.");
  CHECK(table.read(30, 4, 1) == "....");
  CHECK(table.staged.has(1));
  CHECK_FALSE(table.staged.has(2));
  CHECK(table.staged.has_any(0, 63));
  CHECK_FALSE(table.staged.has_any(2, 63));
  CHECK(table.staged.find(0, kChunks, 0, 1) == std::vector<ChunkIndex>{0});
  CHECK(table.staged.find(0, kChunks, 1, 2) == std::vector<ChunkIndex>{1});
  CHECK(table.staged.find(2, kChunks, 0, 9).empty());
}

TEST_CASE("staged table: a chunk takes writes of any generation, and none once it is waited for") {
  Table table;
  CHECK(table.staged.below(3, 5) == Below::NOTHING);
  table.put(3, 0, 1, 'a', 5);
  CHECK(table.staged.below(3, 5) == Below::SAME);
  CHECK(table.staged.below(3, 6) == Below::OLDER);
  CHECK(table.staged.below(3, 4) == Below::WAITS);
  table.put(3, 0, 1, 'b', 6, false);
  CHECK(table.staged.below(3, 6) == Below::SAME);
  CHECK(table.staged.below(3, 7) == Below::OLDER);
  CHECK(table.staged.below(3, 5) == Below::WAITS);
  CHECK_FALSE(table.staged.wait_for(4));
  CHECK_FALSE(table.staged.awaited());
  CHECK(table.staged.wait_for(3));
  CHECK(table.staged.wait_for(3));
  CHECK(table.staged.awaited());
  CHECK(table.staged.below(3, 5) == Below::WAITS);
  CHECK(table.staged.below(3, 6) == Below::WAITS);
  // Who waits does so until both have left.
  CHECK_FALSE(applied(table.staged, 3, 1));
  CHECK(table.staged.awaited());
  CHECK(table.staged.below(3, 6) == Below::WAITS);
  CHECK(table.staged.set_copied(Chunks{3}).empty());
  CHECK(applied(table.staged, 3, 2));
  CHECK_FALSE(table.staged.awaited());
  CHECK(table.staged.below(3, 7) == Below::NOTHING);
}

TEST_CASE("staged table: what is staged above is owed and applied when the older has left (T1)") {
  Table table;
  table.put(2, 0, 3, 'a', 5, false, 80);
  table.put(4, 0, 1, 'x', 5);
  table.put(2, 1, 1, 'b', 6, false, 84);
  table.put(4, 1, 1, 'y', 5);
  CHECK(table.staged.count() == 2);
  CHECK(table.staged.bytes() == 3 * StagedTable::kPageBytes);
  // A view sees its own generation's and what is older.
  CHECK(table.read(64, 4) == "aba.");
  CHECK(table.read(64, 4, 5) == "aaa.");
  CHECK(table.read(64, 4, 4) == "....");
  CHECK(table.staged.find(0, kChunks, 5, 6) == Chunks{2});
  CHECK(table.staged.find(2, 1, 4, 5) == Chunks{2});
  CHECK(table.staged.find(2, 1, 5, 6) == Chunks{2});
  CHECK(table.staged.find(0, kChunks, 6, 9).empty());
  // Only the older is owed, and first in the order of records; but both will have to be copied for.
  CHECK(table.staged.owed_count() == 1);
  CHECK(table.staged.uncopied_count() == 2);
  CHECK(table.staged.owed(Chunks{2})[0]->generation == 5);
  CHECK(table.staged.oldest_owed(9) == Chunks{2});
  CHECK(table.staged.take_reserved(Chunks{2}) == Blocks{80});
  CHECK(table.staged.set_copied(Chunks{2}).empty());
  CHECK(table.staged.owed_count() == 0);
  CHECK(table.staged.uncopied_count() == 1);
  CHECK(table.staged.oldest_owed(9).empty());
  Contents contents = table.staged.applicable(~uint64_t{0}, true);
  REQUIRE(contents.size() == 2);
  CHECK(contents[0].generation == 5);
  CHECK(contents[0].last == 1);
  REQUIRE(contents[0].pieces.size() == 1);
  CHECK(contents[0].pieces[0].length == 3 * kSectorBytes);
  CHECK(contents[0].pieces[0].data[kSectorBytes] == std::byte{'a'});
  table.staged.set_in_place(contents);
  CHECK(table.staged.oldest()->sequence == 3);
  size_t promoted = 0;
  CHECK(table.staged.applied(contents, &promoted) == Chunks{4});
  CHECK(promoted == 1);
  // Now it is the chunk's only content, and owed.
  CHECK(table.staged.has(2));
  CHECK(table.read(64, 4) == ".b..");
  CHECK(table.staged.oldest()->sequence == 3);
  CHECK(table.staged.applicable(~uint64_t{0}, true).empty());
  CHECK(table.staged.owed_count() == 1);
  CHECK(table.staged.owed_from(0, 9) == Chunks{2});
  CHECK(table.staged.oldest_owed(9) == Chunks{2});
  CHECK(table.staged.owed(Chunks{2})[0]->generation == 6);
  CHECK(table.staged.set_copied(Chunks{2}) == Blocks{84});
  // A third layer, and a fourth, come while the second is on its way.
  contents = table.staged.applicable(~uint64_t{0}, true);
  table.put(2, 2, 1, 'c', 8, false);
  table.put(2, 3, 1, 'd', 9, false);
  CHECK(table.read(64, 4) == ".bcd");
  CHECK(table.read(64, 4, 8) == ".bc.");
  CHECK(table.staged.find(0, kChunks, 8, 9) == Chunks{2});
  REQUIRE(contents.size() == 1);
  CHECK(contents[0].generation == 6);
  CHECK_FALSE(applied(table.staged, 2, contents[0].last));
  for (const Generation generation : {8, 9}) {
    CHECK(table.staged.oldest_owed(9) == Chunks{2});
    CHECK(table.staged.owed(Chunks{2})[0]->generation == generation);
    CHECK(table.staged.set_copied(Chunks{2}).empty());
    contents = table.staged.applicable(~uint64_t{0}, true);
    REQUIRE(contents.size() == 1);
    CHECK(contents[0].generation == generation);
    CHECK(applied(table.staged, 2, contents[0].last) == (generation == 9));
  }
  CHECK(table.staged.uncopied_count() == 0);
  CHECK_FALSE(table.staged.any());
  CHECK_FALSE(table.staged.oldest());
  CHECK(table.staged.bytes() == 0);
}

TEST_CASE("staged table: nothing is applied before it is copied out") {
  Table table;
  table.put(2, 0, 2, 'a', 1, false, 77);
  table.put(7, 0, 1, 'b');
  CHECK(table.staged.owed_count() == 1);
  CHECK(table.staged.owed_from(0, 9) == std::vector<ChunkIndex>{2});
  CHECK(table.staged.owed_from(5, 9) == std::vector<ChunkIndex>{2});
  const auto owed = table.staged.owed(Chunks{2, 7, 8});
  REQUIRE(owed.size() == 3);
  REQUIRE(owed[0]);
  CHECK(owed[0]->generation == 1);
  CHECK_FALSE(owed[1]);
  CHECK_FALSE(owed[2]);
  std::vector<StagedTable::Content> contents = table.staged.applicable(~uint64_t{0}, true);
  REQUIRE(contents.size() == 1);
  CHECK(contents[0].chunk == 7);
  CHECK(table.staged.set_copied(Chunks{2}) == Blocks{77});
  CHECK(table.staged.owed_count() == 0);
  contents = table.staged.applicable(~uint64_t{0}, true);
  REQUIRE(contents.size() == 2);
  REQUIRE(contents[0].pieces.size() == 1);
  CHECK(contents[0].pieces[0].length == 2 * kSectorBytes);
  // Only what is waited for, where that is asked.
  CHECK(table.staged.applicable(~uint64_t{0}, false).empty());
  CHECK(table.staged.wait_for(7));
  CHECK(table.staged.applicable(~uint64_t{0}, false).size() == 1);
}

TEST_CASE("staged table: of a chunk that is written all the time the oldest gets on (W8)") {
  Table table;
  table.put(2, 0, 1, 'a');
  for (Sequence round = 1; round < 4; round++) {
    const std::vector<StagedTable::Content> contents = table.staged.applicable(~uint64_t{0}, true);
    REQUIRE(contents.size() == 1);
    table.put(2, 0, 1, 'b');
    table.staged.set_in_place(contents);
    CHECK_FALSE(applied(table.staged, 2, contents[0].last));
    REQUIRE(table.staged.oldest());
    CHECK(table.staged.oldest()->sequence == round + 1);
  }
}

TEST_CASE("staged table: who is copied out first gets the store chunk that was reserved first") {
  Table table;
  table.put(5, 0, 1, 'a', 1, false, 80);
  table.put(2, 0, 1, 'b', 1, false, 84);
  table.put(9, 0, 1, 'c', 1, false);
  CHECK(table.staged.take_reserved(Chunks{2}) == Blocks{80});
  CHECK(table.staged.take_reserved(Chunks{2, 4, 9}) == Blocks{0, 0, 0});
  // The copy fails: its store chunk is the first again.
  CHECK(table.staged.give_reserved(2, 80));
  CHECK_FALSE(table.staged.give_reserved(2, 80));
  CHECK(table.staged.take_reserved(Chunks{4, 5}) == Blocks{0, 80});
  CHECK(table.staged.set_copied(Chunks{5}).empty());
  CHECK_FALSE(table.staged.give_reserved(5, 80));
  CHECK(table.staged.set_copied(Chunks{2, 9}) == Blocks{84});
}

TEST_CASE(
    "staged table: a chunk written to while it is applied stays, and the oldest says what is "
    "kept") {
  Table table;
  table.put(2, 0, 1, 'a');
  table.put(9, 0, 1, 'b');
  const Sequence last = table.sequence;
  CHECK(table.staged.oldest()->sequence == 1);
  const std::vector<StagedTable::Content> contents = table.staged.applicable(~uint64_t{0}, true);
  table.put(2, 1, 1, 'c');
  CHECK_FALSE(applied(table.staged, 2, contents[0].last));
  CHECK(table.read(64, 3) == "ac.");
  CHECK(table.staged.oldest()->sequence == 1);
  CHECK(applied(table.staged, 9, last));
  // What is in place is not needed, but replay may meet it: the chunk stays, and takes more.
  table.staged.set_in_place(Contents{{2, table.sequence, {}}});
  CHECK_FALSE(table.staged.oldest());
  CHECK(table.staged.has(2));
  table.put(2, 2, 1, 'd');
  CHECK(table.read(64, 3) == "acd");
  CHECK(table.staged.oldest()->sequence == table.sequence);
  CHECK_FALSE(applied(table.staged, 2, table.sequence - 1));
  CHECK(applied(table.staged, 2, table.sequence));
  CHECK_FALSE(table.staged.oldest());
  CHECK(table.staged.bytes() == 0);
  CHECK(table.staged.count() == 0);
  CHECK(table.read(64, 3) == "...");
}

TEST_CASE("staged table: what is handed out is in pages, and no later write changes it (T6)") {
  Table table;
  table.put(0, 7, 1, 'a');  // the end of the first page
  table.put(0, 8, 1, 'b');  // the start of the second
  table.put(0, 10, 2, 'c');
  table.put(0, 11, 1, 'd');
  const std::vector<StagedTable::Content> contents = table.staged.applicable(~uint64_t{0}, true);
  REQUIRE(contents.size() == 1);
  const std::vector<StagedTable::Piece>& pieces = contents[0].pieces;
  REQUIRE(pieces.size() == 3);
  CHECK(pieces[0].at == 7 * kSectorBytes);
  CHECK(pieces[0].length == kSectorBytes);
  CHECK(pieces[1].at == 8 * kSectorBytes);
  CHECK(pieces[2].at == 10 * kSectorBytes);
  CHECK(pieces[2].length == 2 * kSectorBytes);
  table.put(0, 10, 2, 'e');
  table.put(0, 8, 1, 'f');
  CHECK(pieces[1].data[0] == std::byte{'b'});
  CHECK(pieces[2].data[0] == std::byte{'c'});
  CHECK(pieces[2].data[kSectorBytes] == std::byte{'d'});
  CHECK(table.read(7, 5) == "af.ee");
}

// A disk below it and a plain array beside it: reads are right at each moment, and the disk at the
// end.
TEST_CASE("staged table: random writes, applies and reads, against an array") {
  const char* given = std::getenv("CSNAP_SEED");
  const uint64_t seed = given ? std::strtoull(given, nullptr, 0) : 1;
  MESSAGE("CSNAP_SEED=" << seed);
  Rng rng(seed);
  Table table;
  constexpr uint64_t kBytes = kChunks * kChunkBytes;
  std::vector<std::byte> disk(kBytes), model(kBytes);
  const auto apply = [&] {
    for (const StagedTable::Content& content :
         table.staged.applicable(1 + rng.below(8 * kChunkBytes), true)) {
      for (const StagedTable::Piece& piece : content.pieces)
        std::memcpy(disk.data() + content.chunk * kChunkBytes + piece.at, piece.data, piece.length);
      REQUIRE(applied(table.staged, content.chunk, content.last));
    }
  };
  for (int step = 0; step < 20000; step++) {
    const uint64_t dice = rng.below(100);
    const ChunkIndex chunk = rng.below(kChunks);
    if (dice < 50) {
      const uint64_t first = rng.below(kChunkBytes / kSectorBytes);
      const uint64_t count = 1 + rng.below(kChunkBytes / kSectorBytes - first);
      const int fill = static_cast<int>(rng.below(256));
      table.put(chunk, first, count, fill);
      std::memset(model.data() + chunk * kChunkBytes + first * kSectorBytes, fill,
                  count * kSectorBytes);
    } else if (dice < 60) {
      apply();
    } else {
      const uint64_t start = rng.below(kBytes / kSectorBytes) * kSectorBytes;
      const uint64_t length =
          std::min(kBytes - start, (1 + rng.below(3 * kChunkBytes / kSectorBytes)) * kSectorBytes);
      std::vector<std::byte> found(disk.begin() + static_cast<ptrdiff_t>(start),
                                   disk.begin() + static_cast<ptrdiff_t>(start + length));
      StagedTable::overlay(table.staged.take(start, length, kHeadGeneration), found.data());
      REQUIRE(std::memcmp(found.data(), model.data() + start, length) == 0);
    }
  }
  while (table.staged.any()) apply();
  CHECK(std::memcmp(disk.data(), model.data(), kBytes) == 0);
  CHECK(table.staged.bytes() == 0);
}

}  // namespace
}  // namespace csnap
