// Reads of snapshots that the connection's own thread answers from RAM, and what comes between the
// steps of one.
#include "volume/staging_test_rig.h"

namespace csnap {
namespace {

// False: the pool's threads read it.
bool read_inline(Rig& rig, const std::shared_ptr<View>& view, uint64_t offset, Bytes& data) {
  Submitted read(*rig.volume, IoOp::READ, *view, offset, data);
  CHECK(read.wait().ok());
  return read.was_inline();
}

TEST_CASE("snapshot reads: the second of a place needs no other thread") {
  Rig rig;
  rig.write(2 * kChunk, kBlock, 7);
  rig.write(3 * kChunk, kChunk, 0);
  rig.origin.before_nowait = [] {};
  const auto a = rig.snapshot("a");
  rig.write(2 * kChunk, kBlock, 8);
  rig.write(3 * kChunk, kBlock, 8);
  // Staged, copied out (one of zeros), of the origin still.
  const auto content = [&](const char* when) {
    CAPTURE(when);
    Bytes chunks(3 * kChunk);
    read_inline(rig, a, 2 * kChunk, chunks);
    Bytes expected(3 * kChunk, 1);
    std::fill_n(expected.begin(), kBlock, uint8_t{7});
    std::fill_n(expected.begin() + kChunk, kChunk, uint8_t{0});
    CHECK(chunks == expected);
  };
  content("staged");
  CHECK(rig.volume->checkpoint().ok());
  content("copied out");
  // Within one chunk and over the edges of all.
  for (const auto& [offset, length] : {std::pair{2 * kChunk, kBlock},
                                       {3 * kChunk + 512, uint64_t{512}},
                                       {4 * kChunk, kChunk},
                                       {2 * kChunk - 512, 3 * kChunk}}) {
    CAPTURE(offset);
    Bytes first(length), second(length);
    read_inline(rig, a, offset, first);
    CHECK(read_inline(rig, a, offset, second));
    CHECK(first == second);
  }
  content("remembered");
  rig.write(4 * kChunk, kBlock, 9);
  Bytes block(kBlock);
  CHECK_FALSE(read_inline(rig, a, 4 * kChunk, block));
  CHECK(block == Bytes(kBlock, 1));
}

TEST_CASE("snapshot reads: a chunk that is overwritten during the read is looked up again (W6)") {
  Rig rig;
  const auto a = rig.snapshot("a");
  Bytes data(kBlock);
  read_inline(rig, a, kChunk, data);
  int reads = 0;
  rig.origin.before_nowait = [&] {
    if (reads++ > 0) return;
    rig.write(kChunk, kBlock, 2);
    CHECK(rig.volume->checkpoint().ok());
    CHECK(rig.origin.bytes()[kChunk] == 2);
  };
  CHECK_FALSE(read_inline(rig, a, kChunk, data));
  CHECK(reads > 0);
  CHECK(data == Bytes(kBlock, 1));
}

TEST_CASE("snapshot reads: of one that is deleted during the read nothing is said (W6)") {
  Rig rig;
  const auto a = rig.snapshot("a");
  Bytes data(kBlock);
  read_inline(rig, a, kChunk, data);
  bool deleted = false;
  rig.origin.before_nowait = [&] {
    if (std::exchange(deleted, true)) return;
    CHECK(rig.volume->delete_snapshot(a->uuid, false).ok());
    // Owed to nobody any more.
    rig.write(kChunk, kBlock, 2);
  };
  CHECK(rig.io(IoOp::READ, *a, kChunk, data).code() == Code::SNAPSHOT_DELETED);
  CHECK(deleted);
}

}  // namespace
}  // namespace csnap
