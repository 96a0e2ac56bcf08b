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

// What is staged above becomes the committer's when what is below has been applied.
TEST_CASE("staging trouble: a clean stop waits for a slow device, whatever is staged above (W8)") {
  constexpr uint64_t kStallMs = 4000;  // longer than it waits for what does not get on
  for (const auto mode : kModes) {
    Rig rig(mode);
    const Uuid a = rig.snapshot("a")->uuid;
    rig.origin.hold(true);
    rig.write(0, kBlock, 2);
    const Uuid b = rig.snapshot("b")->uuid;
    rig.write(0, kBlock, 3);
    Thread device;
    device.start("device", [&] {
      rest(kStallMs);
      rig.origin.hold(false);
    });
    const Status closed = rig.volume->close();
    device.join();
    CHECK_MESSAGE(closed.ok(), closed.to_text());
    rig.volume.reset();
    CHECK(rig.origin.bytes()[0] == 3);
    REQUIRE(rig.try_open().ok());
    CHECK(rig.blocks(rig.volume->open_snapshot(a).take(), 0, 2) == Bytes{1, 1});
    CHECK(rig.blocks(rig.volume->open_snapshot(b).take(), 0, 2) == Bytes{2, 1});
    rig.check_clean();
  }
}

TEST_CASE("staging trouble: a stop that leaves writes in the store says why, and loses none") {
  Rig rig;
  const Uuid a = rig.snapshot("a")->uuid;
  const auto stop = [&](Code code, const char* why) {
    const Status closed = rig.volume->close();
    CHECK(closed.code() == code);
    CHECK_MESSAGE(closed.message().find(why) != std::string::npos, closed.message());
    rig.volume.reset();
    REQUIRE(rig.try_open().ok());
  };
  rig.origin.applier_full = true;
  rig.write(0, kBlock, 2);
  stop(Code::NO_SPACE, "its file system is full");
  rig.origin.applier_full = false;
  REQUIRE(rig.volume->checkpoint().ok());
  // Nothing can be copied to the store; only its journal, which lies before, still takes writes.
  Fault fault;
  fault.times = Fault::kForever;
  fault.begin_offset = format::kJournalOffset + rig.volume->info().journal_bytes;
  fault.end_offset = rig.store.size_bytes();
  rig.faulty_store.add_fault(fault);
  rig.write(kChunk, kBlock, 3);
  stop(Code::IO_ERROR, "store");
  CHECK(rig.copy_failed_events > 0);
  CHECK(rig.full_events == 0);
  rig.faulty_store.clear_faults();
  CHECK(rig.now(0, 5) == Bytes{2, 1, 1, 1, 3});
  CHECK(rig.blocks(rig.volume->open_snapshot(a).take(), 0, 8) == Bytes(8, 1));
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
