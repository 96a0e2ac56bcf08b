// Staged writes in trouble: bad places in the store, a full file system below the origin, servers
// that are killed again and again.
#include "volume/staging_test_rig.h"

namespace csnap {
namespace {

constexpr uint64_t kWaitMs = 20000;

// True once `condition` holds; false after kWaitMs.
template <typename Condition>
bool comes(const Condition& condition) {
  for (const uint64_t end = monotonic_ms() + kWaitMs; monotonic_ms() < end; rest(5))
    if (condition()) return true;
  return condition();
}

// As a kill leaves it after the copy-out of one staged write, which could not be put in place.
Image killed_after_copying(format::DurabilityMode mode) {
  Rig rig(mode);
  rig.snapshot("a");
  rig.origin.applier_full = true;
  rig.write(0, kBlock, 2);
  REQUIRE(comes([&] { return rig.volume->info().copy_outs == 1; }));
  Image image = rig.image();
  rig.origin.applier_full = false;
  return image;
}

}  // namespace

// Recovery does not know that it was copied: the index does, and a second copy would ask for room
// that a full store does not have.
TEST_CASE("staging trouble: what was copied out before a kill is not copied again") {
  for (const auto mode : kModes) {
    Rig rig(killed_after_copying(mode), mode);
    CHECK(rig.volume->info().staged_bytes == kBlock);
    CHECK(rig.volume->checkpoint().ok());
    CHECK(rig.origin.copying_reads == 0);
    CHECK(rig.volume->info().staged_bytes == 0);
    CHECK(rig.now(0, 2) == Bytes{2, 1});
    const Uuid a = rig.live().at(0).uuid;
    CHECK(rig.blocks(rig.volume->open_snapshot(a).take(), 0, 4) == Bytes(4, 1));
    rig.check_clean();
  }
}

TEST_CASE("staging trouble: a place in the store that takes no write is not tried for ever") {
  Rig rig;
  const auto a = rig.snapshot("a");
  REQUIRE(rig.volume->checkpoint().ok());
  // The first two places, wherever those are: the first copy finds out, and so does its second try.
  Fault fault;
  fault.times = Fault::kForever;
  fault.begin_offset = format::kJournalOffset + rig.volume->info().journal_bytes;
  while (fault.begin_offset < rig.store.size_bytes()) {
    const auto* bytes = rig.store.bytes().data() + fault.begin_offset;
    if (std::all_of(bytes, bytes + 2 * kChunk, [](uint8_t byte) { return byte == 0; })) break;
    fault.begin_offset += kChunk;
  }
  fault.begin_offset = round_up(fault.begin_offset, kChunk);
  fault.end_offset = fault.begin_offset + 2 * kChunk;
  rig.faulty_store.add_fault(fault);
  rig.write(0, kBlock, 2);
  CHECK(comes([&] { return rig.volume->info().copy_outs == 1; }));
  CHECK(rig.faulty_store.hit_count() > 0);
  CHECK(rig.blocks(a, 0, 4) == Bytes(4, 1));
  rig.faulty_store.clear_faults();
  CHECK(rig.volume->checkpoint().ok());
  rig.check_clean();
}

// Each server that ends with writes it could not put in place leaves its term in the chain, which
// has an end; the one that finds it full says what to do, and goes on when that is done.
TEST_CASE("staging trouble: servers killed again and again while the origin has no room (W5)") {
  const auto mode = format::DurabilityMode::FLUSH;
  Image image = killed_after_copying(mode);
  Status refused;
  for (int term = 0; term < 20 && refused.ok(); term++) {
    Rig rig(Rig::Closed{}, image, mode);
    rig.origin.applier_full = true;
    refused = rig.try_open();
    if (!refused.ok()) break;
    CHECK(rig.now(0, 2) == Bytes{2, 1});
    rig.write(0, kBlock, 2);  // a term without any record needs no place
    CHECK(comes([&] { return rig.origin_full_events == 1; }));
    image = rig.image();
    rig.origin.applier_full = false;
  }
  CHECK(refused.code() == Code::NO_SPACE);
  CHECK(refused.message().find("make room for origin") != std::string::npos);
  Rig rig(Rig::Closed{}, image, mode);
  REQUIRE(rig.try_open().ok());
  CHECK(rig.volume->checkpoint().ok());
  CHECK(rig.volume->info().staged_bytes == 0);
  CHECK(rig.origin.bytes()[0] == 2);
  rig.check_clean();
}

// Else a later open would take damage to what was durable for a crash's doing.
TEST_CASE("staging trouble: a checkpoint confirms all that it follows (W1)") {
  Rig rig;
  rig.snapshot("a");
  rig.origin.hold(true);
  // Acknowledged, in the page cache: nobody has synced it but the checkpoint, which can't drain it.
  rig.write(0, kBlock, 2);
  REQUIRE(rig.volume->checkpoint().ok());
  CHECK(rig.volume->info().staged_bytes == kBlock);
  const auto superblock = read_superblock(rig.store).take();
  CHECK(superblock->state_sequence >= superblock->tail_sequence);
  CHECK(superblock->confirmed_sequence >= superblock->state_sequence);
}

}  // namespace csnap
