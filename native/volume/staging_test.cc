// Staged writes while nothing is copied out: what is seen is seen from the journal and the table.
#include <array>
#include <chrono>
#include <thread>

#include "io/file_device.h"
#include "io/test_directory.h"
#include "volume/staging_test_rig.h"

namespace csnap {
namespace {

TEST_CASE("staging: a first write is acknowledged before anything is copied out, and is seen") {
  for (const auto mode : kModes) {
    Rig rig(mode);
    const auto a = rig.snapshot("a");
    rig.origin.hold(true);
    rig.write(0, kBlock, 2);
    rig.write(2 * kBlock, kBlock, 3);
    // Of two chunks.
    rig.write(3 * kChunk - kBlock, 2 * kBlock, 4);
    CHECK(rig.volume->info().staged_bytes > 0);
    CHECK(rig.volume->info().copy_outs == 0);
    CHECK(rig.origin.bytes() == Bytes(kChunks * kChunk, 1));
    CHECK(rig.now(0, 4) == Bytes{2, 1, 3, 1});
    CHECK(rig.now(3 * kChunk - 2 * kBlock, 4) == Bytes{1, 4, 4, 1});
    CHECK(rig.blocks(a, 0, 4) == Bytes{1, 1, 1, 1});
    CHECK(rig.diff(a->uuid, Uuid()) == std::vector<ChunkIndex>{0, 2, 3});
    rig.origin.hold(false);
    CHECK(rig.volume->checkpoint().ok());
    CHECK(rig.volume->info().staged_bytes == 0);
    CHECK(rig.volume->info().copy_outs == 3);
    CHECK(rig.origin.bytes()[0] == 2);
    CHECK(rig.now(0, 4) == Bytes{2, 1, 3, 1});
    CHECK(rig.blocks(a, 0, 4) == Bytes{1, 1, 1, 1});
    CHECK(rig.diff(a->uuid, Uuid()) == std::vector<ChunkIndex>{0, 2, 3});
    rig.check_clean();
  }
}

// A disk does many reads in the time of one. Neighbours are one read.
TEST_CASE("staging: all that a group has to read is asked for before any of it is waited for") {
  Rig rig;
  const auto a = rig.snapshot("a");
  rig.origin.hold(true);
  rig.write(9 * kChunk, kBlock, 2);
  while (rig.origin.asked() != "wr") rest(1);
  // These gather behind the first.
  for (const ChunkIndex chunk : {1, 3, 4, 6}) rig.write(chunk * kChunk, kBlock, 2);
  rig.origin.hold(false);
  CHECK(rig.volume->checkpoint().ok());
  CHECK(rig.origin.asked() == "wrwwwrrr");
  for (const ChunkIndex chunk : {1, 3, 4, 6, 9})
    CHECK(rig.blocks(a, chunk * kChunk, 4) == Bytes(4, 1));
}

TEST_CASE(
    "staging: snapshots taken meanwhile hold what is staged, and nobody waits for that (T1)") {
  for (const auto mode : kModes) {
    Rig rig(mode);
    const auto a = rig.snapshot("a");
    rig.origin.hold(true);
    rig.write(0, kBlock, 2);
    const auto b = rig.snapshot("b");
    rig.write(kChunk, kBlock, 3);
    rig.write(0, kBlock, 4);  // above what is staged of this chunk
    CHECK(rig.now(0, 5) == Bytes{4, 1, 1, 1, 3});
    CHECK(rig.blocks(b, 0, 5) == Bytes{2, 1, 1, 1, 1});
    CHECK(rig.volume->info().parked == 0);
    const auto c = rig.snapshot("c");
    rig.write(0, kBlock, 5);  // of a third generation
    CHECK(rig.volume->info().parked == 0);
    const auto check_content = [&] {
      CHECK(rig.blocks(a, 0, 5) == Bytes{1, 1, 1, 1, 1});
      CHECK(rig.blocks(b, 0, 5) == Bytes{2, 1, 1, 1, 1});
      CHECK(rig.blocks(c, 0, 5) == Bytes{4, 1, 1, 1, 3});
      CHECK(rig.diff(a->uuid, b->uuid) == std::vector<ChunkIndex>{0});
      CHECK(rig.diff(b->uuid, c->uuid) == std::vector<ChunkIndex>{0, 1});
    };
    CHECK(rig.now(0, 5) == Bytes{5, 1, 1, 1, 3});
    check_content();
    CHECK(rig.diff(c->uuid, Uuid()) == std::vector<ChunkIndex>{0});
    rig.origin.hold(false);
    CHECK(rig.volume->checkpoint().ok());
    CHECK(rig.now(0, 5) == Bytes{5, 1, 1, 1, 3});
    check_content();
    CHECK(rig.diff(c->uuid, Uuid()) == std::vector<ChunkIndex>{0});
    rig.check_clean();
  }
}

TEST_CASE("staging: killed, opened, killed again: what was acknowledged is served at once (W8)") {
  for (const auto mode : kModes) {
    Image image;
    Uuid a;
    {
      Rig rig(mode);
      a = rig.snapshot("a")->uuid;
      rig.origin.hold(true);
      rig.write(0, kBlock, 2);
      rig.write(kBlock, kBlock, 3);
      rig.write(0, 512, 4);
      image = rig.image();
    }
    for (int round = 0; round < 3; round++) {
      Rig rig(image, mode);
      CHECK_FALSE(rig.volume->info().clean);
      CHECK(rig.volume->info().staged_bytes > 0);
      CHECK(rig.origin.bytes() == Bytes(kChunks * kChunk, 1));
      Bytes data(kBlock);
      CHECK(rig.io(IoOp::READ, *rig.volume->open_origin(), 0, data).ok());
      CHECK(data[0] == 4);
      CHECK(data[511] == 4);
      CHECK(data[512] == 2 + (round > 0));
      CHECK(rig.now(kBlock, 1) == Bytes{3});
      CHECK(rig.blocks(rig.volume->open_snapshot(a).take(), 0, 4) == Bytes{1, 1, 1, 1});
      // Staged on top of what the former term left.
      rig.write(512, kBlock - 512, 3);
      image = rig.image();
    }
    Rig rig(image, mode);
    rig.origin.hold(false);
    CHECK(rig.volume->checkpoint().ok());
    CHECK(rig.origin.bytes()[511] == 4);
    CHECK(rig.origin.bytes()[512] == 3);
    CHECK(rig.blocks(rig.volume->open_snapshot(a).take(), 0, 4) == Bytes{1, 1, 1, 1});
    rig.check_clean();
  }
}

TEST_CASE(
    "staging: killed with two generations of a chunk staged, each is its snapshot's (W6, W8)") {
  for (const auto mode : kModes) {
    Image image;
    Uuid a, b;
    {
      Rig rig(mode);
      a = rig.snapshot("a")->uuid;
      rig.origin.hold(true);
      rig.write(0, kBlock, 2);
      rig.write(kChunk, kBlock, 2);
      b = rig.snapshot("b")->uuid;
      rig.write(0, 512, 3);
      rig.write(2 * kChunk, kBlock, 3);
      image = rig.image();
    }
    const auto check_content = [&](Rig& rig) {
      Bytes data(kBlock);
      CHECK(rig.io(IoOp::READ, *rig.volume->open_origin(), 0, data).ok());
      CHECK(data[511] == 3);
      CHECK(data[512] == 2);
      CHECK(rig.now(kChunk, 8) == Bytes{2, 1, 1, 1, 3, 1, 1, 1});
      CHECK(rig.blocks(rig.volume->open_snapshot(a).take(), 0, 12) == Bytes(12, 1));
      CHECK(rig.blocks(rig.volume->open_snapshot(b).take(), 0, 12) ==
            Bytes{2, 1, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1});
    };
    for (int round = 0; round < 2; round++) {
      Rig rig(image, mode);
      CHECK(rig.volume->info().staged_bytes > 0);
      check_content(rig);
      // Goes on top of the younger of the two.
      rig.write(0, 512, 3);
      CHECK(rig.volume->info().parked == 0);
      image = rig.image();
    }
    Rig rig(image, mode);
    rig.origin.hold(false);
    CHECK(rig.volume->checkpoint().ok());
    CHECK(rig.volume->info().staged_bytes == 0);
    check_content(rig);
    rig.check_clean();
  }
}

TEST_CASE("staging: the journal half full and the table full, writes wait and get on") {
  for (const auto mode : kModes) {
    Rig rig(mode);
    for (int round = 0; round < 20; round++) {
      rig.snapshot(("s" + std::to_string(round)).c_str());
      for (uint64_t at = 0; at < kChunks * kChunk; at += kBlock)
        rig.write(at, kBlock, static_cast<uint8_t>(round + 2));
      if (round > 3) CHECK(rig.volume->delete_snapshot(rig.live().at(0).uuid).ok());
    }
    CHECK(rig.volume->info().staged > 0);
    CHECK(rig.now(0, kChunks * kChunk / kBlock) == Bytes(kChunks * kChunk / kBlock, 21));
    for (const SnapshotInfo& info : rig.live()) {
      const auto value = static_cast<uint8_t>(std::stoi(info.name.substr(1)) + 1);
      CHECK(rig.blocks(rig.volume->open_snapshot(info.uuid).take(), 0, 8) == Bytes(8, value));
    }
    rig.check_clean();
  }
}

TEST_CASE("staging: large writes among small ones, each in its place") {
  Rig rig;
  const auto a = rig.snapshot("a");
  rig.origin.hold(true);
  rig.write(kBlock, kBlock, 2);
  std::atomic<int> done{0};
  Thread large, later;
  large.start("large", [&] {
    rig.write(0, 2 * kChunk, 3);
    done++;
  });
  while (rig.volume->info().parked == 0) {
  }
  // Behind it: the chunk takes no more, or the large write would wait for ever.
  later.start("later", [&] {
    rig.write(kBlock, kBlock, 4);
    done++;
  });
  while (rig.volume->info().parked < 2) {
  }
  CHECK(done == 0);
  rig.origin.hold(false);
  large.join();
  later.join();
  const Bytes now = rig.now(0, 8);
  CHECK((now[1] == 3 || now[1] == 4));
  for (const size_t i : {0u, 2u, 3u, 4u, 5u, 6u, 7u}) CHECK(now[i] == 3);
  CHECK(rig.blocks(a, 0, 8) == Bytes(8, 1));
  rig.check_clean();
}

// The connection takes the next payload meanwhile, and answers others.
TEST_CASE("staging: a large write keeps nobody but itself, also where it goes in place") {
  Rig rig(format::DurabilityMode::FLUSH, {.chunks = 64});
  Bytes large(512 * 1024, 2), small(kBlock, 3);
  rig.origin.hold_large(true);
  Submitted held(*rig.volume, IoOp::WRITE, *rig.volume->open_origin(), 0, large);
  while (!rig.origin.large_waiting) rest(1);
  CHECK_FALSE(held.ended());
  CHECK(Submitted(*rig.volume, IoOp::WRITE, *rig.volume->open_origin(), 48 * kChunk, small)
            .was_inline());
  rig.origin.hold_large(false);
  CHECK(held.wait().ok());
  CHECK(rig.now(0, 128) == Bytes(128, 2));
  CHECK(rig.now(48 * kChunk, 2) == Bytes{3, 1});
}

// What is staged must find room in the origin later, when nobody can be told any more.
TEST_CASE("staging: a hole of the origin is allocated first, also one that is made later") {
  Rig rig;
  REQUIRE(rig.volume->create_snapshot("s", false, 0, {}).ok());
  rig.origin.hold(true);
  rig.write(3 * kChunk, kBlock, 2);
  // That look went far ahead.
  CHECK(rig.origin.allocated == 1);
  rig.write(5 * kChunk, kBlock, 2);
  CHECK(rig.origin.allocated == 1);
  rig.origin.hold(false);
  REQUIRE(rig.volume->checkpoint().ok());
  // Chunk 5 is copied: the trim makes a hole of it.
  Bytes none(kChunk);
  REQUIRE(rig.io(IoOp::TRIM, *rig.volume->open_origin(), 5 * kChunk, none).ok());
  REQUIRE(rig.volume->create_snapshot("t", false, 0, {}).ok());
  rig.origin.hold(true);
  rig.origin.hole_at = 5 * kChunk;
  rig.origin.full = true;
  Bytes data(kBlock, 3);
  CHECK(rig.io(IoOp::WRITE, *rig.volume->open_origin(), 5 * kChunk, data).code() == Code::NO_SPACE);
  rig.write(6 * kChunk, kBlock, 4);
  rig.origin.full = false;
  rig.origin.hole_at = kNowhere;
  rig.write(5 * kChunk, kBlock, 5);
  CHECK(rig.now(5 * kChunk, 2) == Bytes{5, 0});
  CHECK(rig.now(6 * kChunk, 1) == Bytes{4});
}

TEST_CASE("staging: what was applied is not put back over a later write in place (W8)") {
  Image image;
  {
    Rig rig;
    rig.snapshot("a");
    rig.write(0, kBlock, 2);
    // By itself: the journal's tail stays, and replay meets the write.
    while (rig.volume->info().staged_bytes > 0) rest(1);
    REQUIRE(rig.volume->info().applied == 1);
    rig.write(0, kBlock, 3);
    CHECK(rig.volume->info().staged == 1);
    image = rig.image();
  }
  Rig rig(image, format::DurabilityMode::FLUSH);
  CHECK(rig.volume->info().replayed_records > 0);
  CHECK(rig.now(0, 2) == Bytes{3, 1});
}

TEST_CASE("staging: a checkpoint leaves the journal what is not in the origin yet (W8)") {
  Image image;
  {
    Rig rig;
    rig.snapshot("a");
    rig.origin.hold(true);
    rig.write(0, kBlock, 2);
    const uint64_t before = rig.volume->info().checkpoints;
    REQUIRE(rig.volume->checkpoint().ok());
    REQUIRE(rig.volume->info().checkpoints > before);
    CHECK(rig.origin.bytes()[0] == 1);
    image = rig.image();
  }
  Rig rig(image, format::DurabilityMode::FLUSH);
  CHECK(rig.now(0, 2) == Bytes{2, 1});
}

// The snapshot waits for a write of before it; one of after it must not be in the journal ahead of
// the snapshot's record.
TEST_CASE("staging: nothing is staged in a generation that is not in the journal yet (W7)") {
  Image image;
  {
    Rig rig;
    rig.origin.hold(true);
    rig.origin.hold_large(true);
    std::atomic<bool> ended{false};
    Thread before, creator, after;
    before.start("before", [&] { rig.write(5 * kChunk, kChunk, 3); });
    while (!rig.origin.large_waiting) std::this_thread::yield();
    creator.start("creator", [&] { rig.snapshot("a"); });
    // From then on a write is of the new generation, and not in place.
    after.start("after", [&] {
      uint8_t value = 4;
      while (rig.volume->recent_info().parked + rig.volume->recent_info().staged == 0)
        rig.write(0, kBlock, value++);
      ended = true;
    });
    while (rig.volume->recent_info().parked + rig.volume->recent_info().staged == 0)
      std::this_thread::yield();
    // Once more: behind the last write that went in place.
    (void)rig.volume->recent_info();
    image = rig.image();
    rig.origin.hold_large(false);
    before.join();
    creator.join();
    // It waited for the record, not for its chunk to be copied out, which nobody does now.
    constexpr uint64_t kWaitMs = 20000;
    for (const uint64_t end = monotonic_ms() + kWaitMs; !ended && monotonic_ms() < end;) rest(5);
    CHECK(ended);
    rig.origin.hold(false);
    after.join();
    CHECK(rig.live().size() == 1);
  }
  Rig rig(image, format::DurabilityMode::FLUSH);
  CHECK(rig.live().empty());
}

// A write in place that saw its chunk before something was staged of it would land on what is
// applied, behind the table's back: reads, and snapshots, would see the staged write come and go.
TEST_CASE("staging: nothing is applied beside a write in place that is under way (W6)") {
  constexpr uint64_t kApplierIdlesMs = 500;
  Rig rig(format::DurabilityMode::SYNC);
  rig.origin.hold_large(true);
  Thread large;
  large.start("large", [&] { rig.write(0, kChunk, 3); });
  while (!rig.origin.large_waiting) std::this_thread::yield();
  rig.write(0, kBlock, 4);
  CHECK(rig.volume->info().staged == 1);
  rest(2 * kApplierIdlesMs);
  CHECK(rig.origin.applier_writes == 0);
  CHECK(rig.now(0, 2) == Bytes{4, 1});
  rig.origin.hold_large(false);
  large.join();
  CHECK(rig.now(0, 4) == Bytes{4, 3, 3, 3});
  CHECK(rig.volume->checkpoint().ok());
  CHECK(rig.origin.applier_writes > 0);
  CHECK(rig.now(0, 4) == Bytes{4, 3, 3, 3});
}

TEST_CASE("staging: a copy that could not be written gives its place in the store back") {
  Rig rig;
  const auto a = rig.snapshot("a");
  REQUIRE(rig.volume->checkpoint().ok());
  const uint64_t before = rig.volume->info().blocks_free;
  // Whatever lies behind the journal.
  Fault fault;
  fault.times = Fault::kForever;
  fault.begin_offset = format::kJournalOffset + rig.volume->info().journal_bytes;
  rig.faulty_store.add_fault(fault);
  Bytes data(2 * kChunk, 2);
  for (int round = 0; round < 5; round++)
    CHECK(rig.io(IoOp::WRITE, *rig.volume->open_origin(), 0, data).code() == Code::IO_ERROR);
  CHECK(rig.faulty_store.hit_count() >= 10);
  CHECK(rig.volume->info().blocks_free == before);
  CHECK(rig.now(0, 8) == Bytes(8, 1));
  rig.faulty_store.clear_faults();
  CHECK(rig.io(IoOp::WRITE, *rig.volume->open_origin(), 0, data).ok());
  CHECK(rig.volume->info().copy_outs == 2);
  CHECK(rig.blocks(a, 0, 8) == Bytes(8, 1));
  rig.check_clean();
}

// A write is acknowledged only with a place for its copy, so what comes when there is none is
// refused, and told; nothing that was acknowledged suffers.
TEST_CASE("staging: the store full while writes are staged") {
  for (const auto mode : kModes) {
    constexpr uint64_t kMany = 96;
    constexpr Sizes kLittle = {kMany, 3392 << 10, 2 << 20};
    Image image;
    Uuid a;
    uint64_t staged = 0;
    {
      Rig rig(mode, kLittle);
      a = rig.snapshot("a")->uuid;
      rig.origin.hold(true);
      while (staged < kMany) {
        std::atomic<bool> done{false}, refused{false};
        Thread writer;
        writer.start("writer", [&] {
          Bytes data(kBlock, 9);
          const Status status =
              rig.io(IoOp::WRITE, *rig.volume->open_origin(), staged * kChunk, data);
          refused = status.code() == Code::NO_SPACE;
          done = true;
        });
        while (!done && rig.volume->info().parked == 0) std::this_thread::yield();
        const bool parked = rig.volume->info().parked > 0;
        if (parked) {
          image = rig.image();
          rig.origin.hold(false);
        }
        writer.join();
        CHECK(refused == parked);
        if (parked) break;
        staged++;
      }
      CHECK(rig.volume->info().staged == staged);
      REQUIRE(staged > 0);
      REQUIRE(staged < kMany);
      CHECK(rig.full_events > 0);
      for (ChunkIndex chunk = 0; chunk < kMany; chunk++) {
        CHECK(rig.now(chunk * kChunk, 2) == Bytes{chunk < staged ? uint8_t{9} : uint8_t{1}, 1});
        CHECK(rig.blocks(rig.volume->open_snapshot(a).take(), chunk * kChunk, 2) == Bytes{1, 1});
      }
    }
    // Killed while it was full.
    Rig rig(image, mode);
    const auto found = rig.volume->open_snapshot(a).take();
    CHECK(rig.now((staged - 1) * kChunk, 2) == Bytes{9, 1});
    rig.origin.hold(false);
    Bytes data(kBlock, 7);
    CHECK(rig.io(IoOp::WRITE, *rig.volume->open_origin(), staged * kChunk, data).code() ==
          Code::NO_SPACE);
    CHECK(rig.full_events > 0);
    CHECK(rig.blocks(found, (staged - 1) * kChunk, 2) == Bytes{1, 1});
    CHECK(rig.volume->delete_snapshot(a).ok());
    CHECK(rig.volume->wait_reclaimed().ok());
    CHECK(rig.io(IoOp::WRITE, *rig.volume->open_origin(), staged * kChunk, data).ok());
    CHECK(rig.volume->checkpoint().ok());
    CHECK(rig.volume->info().staged_bytes == 0);
    for (ChunkIndex chunk = 0; chunk < kMany; chunk++)
      CHECK(rig.origin.bytes()[chunk * kChunk] == (chunk < staged ? 9 : chunk == staged ? 7 : 1));
    rig.check_clean();
  }
}

// Files, for real syncs. A write's delay is printed beside what a bare sync takes; how long a sync
// takes beside others is the machine's affair and nothing to judge.
TEST_CASE("staging: snapshots in quick succession under hot writes in mode sync") {
  using Clock = std::chrono::steady_clock;
  constexpr int kSnapshots = 40;
  constexpr uint64_t kPeriodMs = 50;
  constexpr size_t kWriters = 4;
  constexpr uint64_t kBlocks = kChunks * kChunk / kBlock;
  const TestDirectory directory;
  bool created = false;
  REQUIRE(allocate_in_full(directory.file("origin"), kChunks * kChunk, {}, created).ok());
  REQUIRE(allocate_in_full(directory.file("store"), 64 << 20, {}, created).ok());
  auto origin = FileDevice::open(directory.file("origin"), {}).take();
  FileDeviceOptions uncached;
  uncached.uncached_writes = true;
  auto store = FileDevice::open(directory.file("store"), uncached).take();
  CreateOptions create;
  create.volume_name = "vol";
  create.origin.text = "test";
  create.origin_bytes = origin->size_bytes();
  create.store_bytes = store->size_bytes();
  create.chunk_bytes = kChunk;
  REQUIRE(create_store(*store, create).ok());

  const auto since = [](Clock::time_point start) {
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
  };
  double sync_ms = 0;
  for (int i = 0; i < 20; i++) {
    const Bytes bytes(kBlock, 0);
    REQUIRE(origin->write(0, bytes.data(), bytes.size()).ok());
    const auto start = Clock::now();
    REQUIRE(origin->sync().ok());
    sync_ms = std::max(sync_ms, since(start));
  }

  VolumeOptions options;
  options.origin = origin.get();
  options.store = store.get();
  options.identity.text = "test";
  options.durability = format::DurabilityMode::SYNC;
  std::unique_ptr<Volume> volume = Volume::open(std::move(options)).take();
  const std::shared_ptr<View> live = volume->open_origin();
  // Each block holds the number of its last write, in all its words.
  const auto access = [&](View& view, IoOp op, uint64_t block, uint64_t count,
                          std::vector<uint64_t>& words) {
    IoRequest request;
    request.op = op;
    request.view = &view;
    request.offset = block * kBlock;
    request.length = count * kBlock;
    request.data = words.data();
    return volume->run(request).ok();
  };
  const auto numbers = [&](View& view) {
    constexpr size_t kWords = kBlock / sizeof(uint64_t);
    std::vector<uint64_t> words(kBlocks * kWords), found;
    CHECK(access(view, IoOp::READ, 0, kBlocks, words));
    for (auto at = words.begin(); at != words.end(); at += kWords) {
      CHECK(std::count(at, at + kWords, *at) == kWords);
      found.push_back(*at);
    }
    return found;
  };
  std::array<std::atomic<uint64_t>, kBlocks> submitted{}, acknowledged{};
  const auto all = [](const std::array<std::atomic<uint64_t>, kBlocks>& numbers) {
    return std::vector<uint64_t>(numbers.begin(), numbers.end());
  };
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> failed{0}, writes{0};
  std::array<double, kWriters> longest_ms{};
  std::array<Thread, kWriters> writers;
  for (size_t i = 0; i < kWriters; i++)
    writers[i].start("writer", [&, i] {
      uint64_t block = i;
      for (uint64_t number = 1; !stop; number++) {
        std::vector<uint64_t> words(kBlock / sizeof number, number);
        submitted[block] = number;
        const auto start = Clock::now();
        if (!access(*live, IoOp::WRITE, block, 1, words)) failed++;
        longest_ms[i] = std::max(longest_ms[i], since(start));
        acknowledged[block] = number;
        writes++;
        // Chunks are shared by the writers, blocks are not.
        block = (block + 7 * kWriters) % kBlocks;
      }
    });

  std::vector<std::pair<std::shared_ptr<View>, std::vector<uint64_t>>> kept;
  for (int i = 0; i < kSnapshots; i++) {
    const uint64_t next = monotonic_ms() + kPeriodMs;
    const std::vector<uint64_t> low = all(acknowledged);
    Result<SnapshotInfo> made = volume->create_snapshot("s" + std::to_string(i), false, 0, {});
    const std::vector<uint64_t> high = all(submitted);
    REQUIRE(made.ok());
    const auto view = volume->open_snapshot(made.value().uuid).take();
    std::vector<uint64_t> found = numbers(*view);
    for (size_t block = 0; block < kBlocks; block++) {
      CHECK(found[block] >= low[block]);
      CHECK(found[block] <= high[block]);
    }
    kept.emplace_back(view, std::move(found));
    if (const uint64_t now = monotonic_ms(); now < next) rest(next - now);
  }
  stop = true;
  for (Thread& writer : writers) writer.join();
  CHECK(failed == 0);
  CHECK(numbers(*live) == all(submitted));
  CHECK(volume->checkpoint().ok());
  CHECK(numbers(*live) == all(submitted));
  for (const auto& [view, before] : kept) CHECK(numbers(*view) == before);
  MESSAGE(kSnapshots << " snapshots, " << writes.load() << " writes; the longest took "
                     << *std::max_element(longest_ms.begin(), longest_ms.end())
                     << " ms, a bare sync of the origin before that at most " << sync_ms << " ms");
  kept.clear();
  CHECK(volume->close().ok());
}

}  // namespace
}  // namespace csnap
