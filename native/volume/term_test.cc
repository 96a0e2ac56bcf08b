// One term after the other: what a former term wrote late, the epoch chain when it is full, the
// durability id over changes of mode, a crash while a store is made (W5, W8, F3).
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <functional>

#include "store/superblock.h"
#include "testing/faulty_device.h"
#include "testing/rng.h"
#include "testing/scheduler.h"
#include "testing/sim_disk.h"
#include "volume/volume.h"

namespace csnap {
namespace {

constexpr uint64_t kChunk = 4096;
constexpr uint64_t kChunks = 32;
constexpr uint64_t kOriginBytes = kChunks * kChunk;
constexpr uint64_t kStoreBytes = 3 << 20;

using Bytes = std::vector<uint8_t>;

OriginIdentity identity() {
  OriginIdentity identity;
  identity.text = "origin";
  return identity;
}

Status create(Device& store, uint64_t journal_bytes) {
  CreateOptions create;
  create.volume_name = "terms";
  create.origin = identity();
  create.origin_bytes = kOriginBytes;
  create.store_bytes = store.size_bytes();
  create.chunk_bytes = kChunk;
  create.journal_bytes = journal_bytes;
  return create_store(store, create);
}

VolumeOptions options_for(Device& origin, Device& store, uint64_t boot = 1) {
  VolumeOptions options;
  options.origin = &origin;
  options.store = &store;
  options.identity = identity();
  options.io_threads = 1;
  options.index.leaf_capacity = 4;
  options.index.inner_capacity = 4;
  std::memcpy(options.boot_id.bytes, &boot, sizeof boot);
  return options;
}

void simulate(const std::function<void()>& body, uint64_t seed = 1) {
  SimScheduler scheduler;
  const auto outcome = scheduler.run(seed, body);
  REQUIRE_MESSAGE(outcome.ok(), outcome.report);
}

std::unique_ptr<Volume> open(VolumeOptions options) {
  Result<std::unique_ptr<Volume>> opened = Volume::open(std::move(options));
  CHECK_MESSAGE(opened.ok(), opened.status().to_text());
  if (!opened.ok()) static_cast<SimScheduler*>(current_scheduler)->stop("no volume");
  return opened.take();
}

Status io(Volume& volume, View& view, IoOp op, uint64_t offset, uint64_t length, void* data) {
  IoRequest request;
  request.op = op;
  request.view = &view;
  request.offset = offset;
  request.length = length;
  request.data = data;
  return volume.run(request);
}

void fill(Volume& volume, ChunkIndex chunk, int value) {
  Bytes data(kChunk, static_cast<uint8_t>(value));
  const Status status =
      io(volume, *volume.open_origin(), IoOp::WRITE, chunk * kChunk, kChunk, data.data());
  CHECK_MESSAGE(status.ok(), status.to_text());
}

Bytes content(Volume& volume, const std::string& name) {
  for (const SnapshotInfo& info : volume.list_snapshots().take()) {
    if (info.name != name || info.state != format::SnapshotState::LIVE) continue;
    Bytes data(kOriginBytes);
    const std::shared_ptr<View> view = volume.open_snapshot(info.uuid).take();
    const Status status = io(volume, *view, IoOp::READ, 0, kOriginBytes, data.data());
    CHECK_MESSAGE(status.ok(), status.to_text());
    return data;
  }
  return {};
}

void check_clean(Volume& volume) {
  Result<CheckReport> report = volume.check(true, nullptr);
  REQUIRE_MESSAGE(report.ok(), report.status().to_text());
  CHECK_MESSAGE(report.value().clean, report.value().problems.at(0));
  CHECK(report.value().lost_entries == 0);
}

}  // namespace

TEST_CASE("terms: records that a former term wrote late are void (W5)") {
  for (int appends = 0; appends <= 6; appends++) {
    for (const bool before : {true, false}) {
      INFO(appends << " appends of the new term, late records land "
                   << (before ? "before" : "after") << " them");
      MemoryDevice origin("origin", kOriginBytes), store("store", kStoreBytes);
      REQUIRE(create(store, 256 * 1024).ok());
      Bytes origin_then, store_then, first;
      simulate([&] {
        std::unique_ptr<Volume> volume = open(options_for(origin, store));
        for (ChunkIndex chunk = 0; chunk < kChunks; chunk++) fill(*volume, chunk, 1);
        CHECK(volume->create_snapshot("first", false, 0, {}).ok());
        first = origin.bytes();
        fill(*volume, 0, 2);
        // All up to here is on the medium. What follows is lost with the host, but for the journal,
        // which lands late.
        origin_then = origin.bytes();
        store_then = store.bytes();
        for (ChunkIndex chunk = 1; chunk < 10; chunk++) fill(*volume, chunk, 3);
        CHECK(volume->create_snapshot("void", false, 0, {}).ok());
      });
      const Bytes late(store.bytes().begin() + format::kJournalOffset,
                       store.bytes().begin() + format::kJournalOffset + 256 * 1024);
      const Bytes on_time(store_then.begin() + format::kJournalOffset,
                          store_then.begin() + format::kJournalOffset + 256 * 1024);
      MemoryDevice origin2("origin", origin_then), store2("store", store_then);
      // Where the late records go, but not over what the new term has written meanwhile.
      const auto land = [&](const Bytes& then) {
        uint8_t* ring = store2.bytes().data() + format::kJournalOffset;
        for (size_t at = 0; at < late.size(); at += 4096)
          if (std::memcmp(ring + at, then.data() + at, 4096) == 0)
            std::memcpy(ring + at, late.data() + at, 4096);
      };
      simulate([&] {
        std::unique_ptr<Volume> volume = open(options_for(origin2, store2, 2));
        if (before) land(on_time);
        for (int i = 0; i < appends; i++) fill(*volume, static_cast<ChunkIndex>(20 + i), 4);
        if (!before) land(on_time);
      });
      simulate([&] {
        std::unique_ptr<Volume> volume = open(options_for(origin2, store2, 2));
        CHECK(volume->info().epoch == 3);
        CHECK(volume->info().replayed_records >= static_cast<uint64_t>(appends));
        CHECK(volume->list_snapshots().value().size() == 1);
        CHECK(content(*volume, "first") == first);
        fill(*volume, 30, 5);
        CHECK(content(*volume, "first") == first);
        check_clean(*volume);
        CHECK(volume->close().ok());
      });
    }
  }
}

TEST_CASE("terms: a full epoch chain is emptied by a checkpoint before the volume serves (W5)") {
  SimHost host(1);
  SimDisk& origin = host.add_disk("origin", kOriginBytes);
  SimDisk& store = host.add_disk("store", kStoreBytes);
  REQUIRE(create(store, 1 << 20).ok());
  Bytes first;
  uint64_t checkpoints_at_open = 0, crashes = 0;
  Rng rng(5);
  // The store as it is, crashed at an operation of an open, must open again and be right.
  SimScheduler inner;
  const auto crash = [&](Epoch served) {
    crashes++;
    const HostImage image =
        rng.coin() ? host.kill_image(rng) : host.crash_image(CrashLoss::RANDOM, rng);
    SimHost other(rng.next(), image);
    const auto outcome = inner.run(rng.next(), [&] {
      std::unique_ptr<Volume> volume = open(options_for(other.disk(0), other.disk(1), 1));
      CHECK(volume->info().epoch > served);
      if (!first.empty()) CHECK(content(*volume, "first") == first);
      check_clean(*volume);
    });
    REQUIRE_MESSAGE(outcome.ok(), outcome.report);
  };
  for (uint64_t term = 1; term <= 40; term++) {
    simulate(
        [&] {
          host.set_observer([&](const SimEvent& event) {
            if (event.op != DeviceOp::READ) crash(term - 1);
          });
          std::unique_ptr<Volume> volume = open(options_for(origin, store, 1));
          host.set_observer(nullptr);
          const VolumeInfo info = volume->info();
          CHECK(info.epoch == term);
          CHECK(info.durability_id == volume->info().durability_id);
          checkpoints_at_open += info.checkpoints;
          if (term == 1) {
            for (ChunkIndex chunk = 0; chunk < kChunks; chunk++) fill(*volume, chunk, 1);
            CHECK(volume->create_snapshot("first", false, 0, {}).ok());
            first = Bytes(kOriginBytes, 1);
          }
          // A record or two in each term, and never so many that a checkpoint is due for them.
          fill(*volume, term % kChunks, static_cast<int>(term + 1));
          CHECK(content(*volume, "first") == first);
          // Killed: destroyed without a close.
        },
        term);
  }
  MESSAGE(checkpoints_at_open << " checkpoints at open, " << crashes << " crashes");
  CHECK(checkpoints_at_open >= 2);
}

// The superblock that an open finds may live in the page cache only. Its stamp must not go over the
// last one that is on the medium, whose successor a power loss can take and tear.
TEST_CASE("terms: killed between a superblock's write and its sync, then power loss (W5)") {
  SimHost host(1);
  SimDisk& origin = host.add_disk("origin", kOriginBytes);
  SimDisk& store = host.add_disk("store", kStoreBytes);
  REQUIRE(create(store, 64 * 1024).ok());
  Rng rng(seed_from_environment(9));
  uint64_t crashes = 0;
  std::vector<std::unique_ptr<SimScheduler>> inner;
  for (int i = 0; i < 2; i++) inner.push_back(std::make_unique<SimScheduler>());
  const auto look = [&](const HostImage& image) {
    crashes++;
    SimHost third(rng.next(), image);
    const auto outcome = inner[1]->run(rng.next(), [&] {
      std::unique_ptr<Volume> volume = open(options_for(third.disk(0), third.disk(1), 3));
      check_clean(*volume);
    });
    REQUIRE_MESSAGE(outcome.ok(), outcome.report);
  };
  const auto superblock_written = [](const SimEvent& event) {
    return event.op == DeviceOp::WRITE && event.completed && event.disk->name() == "store" &&
           event.offset < format::kJournalOffset;
  };
  const auto kill = [&] {
    SimHost second(rng.next(), host.kill_image(rng));
    second.set_observer([&](const SimEvent& event) {
      if (superblock_written(event))
        for (int i = 0; i < 6; i++) look(second.crash_image(CrashLoss::RANDOM, rng));
    });
    const auto outcome = inner[0]->run(rng.next(), [&] {
      std::unique_ptr<Volume> volume = open(options_for(second.disk(0), second.disk(1), 2));
      second.set_observer(nullptr);
    });
    REQUIRE_MESSAGE(outcome.ok(), outcome.report);
  };
  simulate([&] {
    std::unique_ptr<Volume> volume = open(options_for(origin, store, 1));
    host.set_observer([&](const SimEvent& event) {
      if (superblock_written(event)) kill();
    });
    for (int round = 0; round < 12; round++) {
      CHECK(volume->create_snapshot("s" + std::to_string(round), false, 0, {}).ok());
      for (ChunkIndex chunk = 0; chunk < kChunks; chunk += 3) fill(*volume, chunk, round);
      if (round >= 3) {
        // What is being reclaimed still is listed.
        const std::vector<SnapshotInfo> listed = volume->list_snapshots().value();
        const auto oldest = std::find_if(
            listed.begin(), listed.end(),
            [](const SnapshotInfo& info) { return info.state == format::SnapshotState::LIVE; });
        REQUIRE(oldest != listed.end());
        CHECK(volume->delete_snapshot(oldest->uuid).ok());
      }
      CHECK(volume->checkpoint().ok());
    }
    host.set_observer(nullptr);
  });
  CHECK(crashes > 100);
}

TEST_CASE("terms: what a term in mode flush acknowledged is not lost unseen in mode sync (W8)") {
  SimHost host(1);
  SimDisk& origin = host.add_disk("origin", kOriginBytes);
  SimDisk& store = host.add_disk("store", kStoreBytes);
  REQUIRE(create(store, 256 * 1024).ok());
  Uuid id;
  simulate([&] {
    std::unique_ptr<Volume> volume = open(options_for(origin, store, 1));
    fill(*volume, 3, 7);  // acknowledged, not flushed
    id = volume->info().durability_id;
  });
  // Killed; the next server runs in mode sync, on the same boot.
  simulate([&] {
    VolumeOptions options = options_for(origin, store, 1);
    options.durability = format::DurabilityMode::SYNC;
    std::unique_ptr<Volume> volume = open(std::move(options));
    CHECK(volume->info().durability_id == id);
  });
  Rng rng(1);
  SimHost other(2, host.crash_image(CrashLoss::EVERYTHING, rng));
  simulate([&] {
    VolumeOptions options = options_for(other.disk(0), other.disk(1), 2);
    options.durability = format::DurabilityMode::SYNC;
    std::unique_ptr<Volume> volume = open(std::move(options));
    Bytes data(kChunk);
    CHECK(io(*volume, *volume->open_origin(), IoOp::READ, 3 * kChunk, kChunk, data.data()).ok());
    const bool there = data == Bytes(kChunk, 7);
    CHECK((there || !(volume->info().durability_id == id)));
  });
}

TEST_CASE("terms: the durability id changes for an accepted origin, not for a clean open") {
  MemoryDevice origin("origin", kOriginBytes), store("store", kStoreBytes);
  REQUIRE(create(store, 256 * 1024).ok());
  Uuid id;
  simulate([&] {
    std::unique_ptr<Volume> volume = open(options_for(origin, store, 1));
    id = volume->info().durability_id;
    CHECK(volume->create_snapshot("old", false, 0, {}).ok());
    CHECK(volume->close().ok());
  });
  simulate([&] {
    std::unique_ptr<Volume> volume = open(options_for(origin, store, 2));
    CHECK(volume->info().durability_id == id);
    CHECK(volume->close().ok());
  });
  simulate([&] {
    VolumeOptions options = options_for(origin, store, 3);
    options.identity.text = "a copy";
    CHECK(Volume::open(options).status().code() == Code::WRONG_ORIGIN);
    options.accept_origin = true;
    std::unique_ptr<Volume> volume = open(options);
    CHECK_FALSE(volume->info().durability_id == id);
    CHECK(volume->list_snapshots().value().at(0).suspect);
    CHECK(volume->create_snapshot("new", false, 0, {}).ok());
    CHECK_FALSE(volume->list_snapshots().value().at(1).suspect);
    id = volume->info().durability_id;
  });
  // And stays, after a kill too.
  simulate([&] {
    VolumeOptions options = options_for(origin, store, 3);
    options.identity.text = "a copy";
    std::unique_ptr<Volume> volume = open(options);
    CHECK(volume->info().durability_id == id);
    CHECK(volume->list_snapshots().value().at(0).suspect);
    CHECK(volume->close().ok());
  });
}

TEST_CASE("terms: a granted epoch is the one stamped; an overtaken one changes no byte (W5)") {
  MemoryDevice origin("origin", kOriginBytes), store("store", kStoreBytes);
  REQUIRE(create(store, 256 * 1024).ok());
  const auto granted = [&](Epoch epoch) {
    VolumeOptions options = options_for(origin, store);
    options.epoch = epoch;
    return options;
  };
  simulate([&] {
    std::unique_ptr<Volume> volume = open(granted(7));
    CHECK(volume->info().epoch == 7);
    fill(*volume, 3, 1);
    CHECK(volume->create_snapshot("kept", false, 0, {}).ok());
    fill(*volume, 3, 2);
    // Killed: its records count under the next term, however far that one's epoch is.
  });
  const Bytes before = store.bytes();
  simulate([&] {
    for (const Epoch late : {Epoch{1}, Epoch{6}, Epoch{7}}) {
      const Status refused = Volume::open(granted(late)).take_status();
      CHECK(refused.code() == Code::FENCED);
      CHECK(refused.message().find("epoch " + std::to_string(late)) != std::string::npos);
    }
  });
  CHECK(store.bytes() == before);
  simulate([&] {
    std::unique_ptr<Volume> volume = open(granted(1000));
    CHECK(volume->info().epoch == 1000);
    CHECK(content(*volume, "kept").at(3 * kChunk) == 1);
    check_clean(*volume);
    CHECK(volume->close().ok());
  });
  simulate([&] {
    std::unique_ptr<Volume> volume = open(options_for(origin, store));
    CHECK(volume->info().epoch == 1001);
    CHECK(volume->close().ok());
  });
}

// Nothing should let a second server get that far; here nothing keeps it away.
TEST_CASE("terms: a server that finds a newer epoch on its store stops and writes nothing (F3)") {
  for (const bool gated : {false, true}) {
    INFO((gated ? "by looking" : "at a checkpoint"));
    MemoryDevice origin("origin", kOriginBytes), store("store", kStoreBytes);
    REQUIRE(create(store, 256 * 1024).ok());
    simulate([&] {
      Gate gate([] { return int64_t{0}; });
      Code told = Code::OK;
      VolumeOptions options = options_for(origin, store);
      if (gated) options.gate = &gate;
      options.on_event = [&told](const VolumeEvent& event) { told = event.code; };
      std::unique_ptr<Volume> former = open(options);
      CHECK(former->create_snapshot("kept", false, 0, {}).ok());
      fill(*former, 3, 1);
      std::unique_ptr<Volume> newer = open(options_for(origin, store));
      const Bytes before = store.bytes();
      if (gated) {
        CondVar pause;
        Mutex mutex;
        MutexLock lock(mutex);
        for (int waits = 0; waits < 1000 && told == Code::OK; waits++) pause.wait_for(lock, 10);
      } else {
        CHECK(former->checkpoint().code() == Code::FENCED);
      }
      CHECK(told == Code::FENCED);
      Bytes data(kChunk, 9);
      CHECK(io(*former, *former->open_origin(), IoOp::WRITE, 0, kChunk, data.data()).code() ==
            Code::FENCED);
      CHECK(former->close().code() == Code::FENCED);
      // But for the index nodes and pages, which went to places that the newer term had free.
      CHECK(std::equal(before.begin(), before.begin() + format::kJournalOffset,
                       store.bytes().begin()));
      if (gated) CHECK(store.bytes() == before);
    });
  }
}

TEST_CASE("terms: a store that was half made is none") {
  SimHost host(1);
  host.add_disk("origin", kOriginBytes);
  SimDisk& store = host.add_disk("store", kStoreBytes);
  // Something older must not shine through.
  REQUIRE(create(store, 256 * 1024).ok());
  Rng rng(2);
  uint64_t none = 0, whole = 0;
  const auto look = [&](const HostImage& image) {
    SimHost other(3, image);
    Result<std::unique_ptr<format::Superblock>> found = read_superblock(other.disk(1));
    if (!found.ok()) {
      CHECK((found.status().code() == Code::NOT_A_STORE || found.status().code() == Code::CORRUPT));
      none++;
      return;
    }
    SimScheduler inner;
    const auto outcome = inner.run(1, [&] {
      std::unique_ptr<Volume> volume = open(options_for(other.disk(0), other.disk(1)));
      check_clean(*volume);
      CHECK(volume->list_snapshots().value().empty());
    });
    REQUIRE_MESSAGE(outcome.ok(), outcome.report);
    whole++;
  };
  host.set_observer([&](const SimEvent&) {
    look(host.crash_image(CrashLoss::NOTHING, rng));
    look(host.crash_image(CrashLoss::EVERYTHING, rng));
    for (int i = 0; i < 8; i++) look(host.crash_image(CrashLoss::RANDOM, rng));
  });
  simulate([&] { CHECK(create(store, 512 * 1024).ok()); });
  CHECK(none > 0);
  CHECK(whole > 0);
}

}  // namespace csnap
