// The committer's rounds: what shares one, and what goes on beside one.
#include "volume/staging_test_rig.h"

namespace csnap {
namespace {

constexpr uint64_t kWaitMs = 20000;
constexpr uint64_t kStaged = 300;
// A journal that takes them all, and is a quarter full then: the oldest are copied out first.
constexpr Sizes kLarge{.chunks = 2 * kStaged, .store_bytes = 64 << 20, .journal_bytes = 4 << 20};

// Into each second chunk from `first` on, so that each is read by itself.
void stage_each_second(Rig& rig, ChunkIndex first, uint64_t count) {
  for (uint64_t i = 0; i < count; i++) rig.write((first + 2 * i) * kChunk, kBlock, 2);
}

}  // namespace

TEST_CASE("committer: the next round is copied while one is recorded, none twice (W2)") {
  Rig rig(format::DurabilityMode::FLUSH, kLarge);
  const auto a = rig.snapshot("a");
  rig.origin.hold(true);
  stage_each_second(rig, 0, kStaged);
  rig.origin.hold(true, "csnap-copy");
  // The first round is recorded although the copier gets no further.
  for (const uint64_t end = monotonic_ms() + kWaitMs;
       rig.volume->info().copy_outs == 0 && monotonic_ms() < end;)
    rest(1);
  CHECK(rig.volume->info().copy_outs > 0);
  const uint64_t recorded = rig.volume->info().copy_outs;
  CHECK(recorded < kStaged);
  // What the copier has read is nobody's before it is recorded, and not applied.
  rest(20);
  CHECK(rig.volume->info().copy_outs == recorded);
  CHECK(rig.blocks(a, 0, 4) == Bytes(4, 1));
  rig.origin.hold(false);
  CHECK(rig.volume->checkpoint().ok());
  CHECK(rig.volume->info().copy_outs == kStaged);
  CHECK(rig.origin.copying_reads == kStaged);
  for (ChunkIndex chunk = 0; chunk < 2 * kStaged; chunk += 2) {
    CHECK(rig.blocks(a, chunk * kChunk, 4) == Bytes(4, 1));
    CHECK(rig.now(chunk * kChunk, 2) == Bytes{2, 1});
  }
  rig.check_clean();
}

// Nobody asks for it, and what comes as a burst may wait, but not for ever.
TEST_CASE("committer: what is staged is copied out by itself, also after a burst") {
  Rig rig(format::DurabilityMode::FLUSH, kLarge);
  rig.snapshot("a");
  stage_each_second(rig, 0, kStaged);
  for (const uint64_t end = monotonic_ms() + kWaitMs;
       rig.volume->info().copy_outs < kStaged && monotonic_ms() < end;)
    rest(5);
  CHECK(rig.volume->info().copy_outs == kStaged);
}

TEST_CASE("committer: parked and staged writes share a round and its sync") {
  Rig rig;
  const auto a = rig.snapshot("a");
  rig.origin.hold(true);
  rig.write(0, kBlock, 2);
  while (rig.origin.copying_reads == 0) rest(1);
  // These gather behind the first.
  stage_each_second(rig, 2, 5);
  Bytes large(kChunk, 3);
  Submitted parked(*rig.volume, IoOp::WRITE, *rig.volume->open_origin(), 3 * kChunk, large);
  while (rig.volume->info().parked == 0) rest(1);
  const uint64_t before = rig.volume->info().commits;
  rig.origin.hold(false);
  CHECK(parked.wait().ok());
  CHECK(rig.volume->info().copy_outs == 7);
  CHECK(rig.volume->info().commits == before + 2);
  CHECK(rig.volume->checkpoint().ok());
  CHECK(rig.now(3 * kChunk, 4) == Bytes(4, 3));
  for (ChunkIndex chunk = 0; chunk < kChunks; chunk++)
    CHECK(rig.blocks(a, chunk * kChunk, 4) == Bytes(4, 1));
  rig.check_clean();
}

// The staged half of a round must not wait for ever behind writes that are parked all the time.
TEST_CASE("committer: parked writes leave what is staged half of a round") {
  Rig rig(format::DurabilityMode::FLUSH, kLarge);
  rig.snapshot("a");
  rig.origin.hold(true);
  rig.write(0, kBlock, 2);
  while (rig.origin.copying_reads == 0) rest(1);
  stage_each_second(rig, 2, 10);
  // More than a round of chunks that parked writes wait for.
  std::vector<Bytes> contents(8, Bytes(32 * kChunk, 3));
  std::vector<std::unique_ptr<Submitted>> parked;
  for (uint64_t i = 0; i < contents.size(); i++)
    parked.push_back(std::make_unique<Submitted>(
        *rig.volume, IoOp::WRITE, *rig.volume->open_origin(), (32 + 32 * i) * kChunk, contents[i]));
  while (rig.volume->info().parked < contents.size()) rest(1);
  rig.origin.hold(false);
  for (auto& each : parked) CHECK(each->wait().ok());
  // The second round: each of those staged, and one run of 64 neighbours.
  CHECK(rig.origin.asked().substr(0, 24) == "wr" + std::string(11, 'w') + std::string(11, 'r'));
  CHECK(rig.volume->checkpoint().ok());
  rig.check_clean();
}

}  // namespace csnap
