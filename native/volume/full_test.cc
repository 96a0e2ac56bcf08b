// Stores, and origins, that have no room (W10).
#include "testing/sim_disk.h"
#include "volume/damage_test_rig.h"

namespace csnap {

using namespace damage_rig;

TEST_CASE("full: drop-snapshots takes the right ones and refuses nothing (W10)") {
  MemoryDevice origin("origin", kOriginBytes), store("store", 2 * 1024 * 1024);
  REQUIRE(create(store).ok());
  simulate([&] {
    std::vector<std::string> dropped;
    VolumeOptions options = options_for(origin, store);
    options.on_event = [&](const VolumeEvent& event) {
      if (event.kind == VolumeEvent::Kind::SNAPSHOT_DROPPED) dropped.push_back(event.name);
    };
    std::unique_ptr<Volume> volume = open(std::move(options));
    for (ChunkIndex chunk = 0; chunk < kChunks; chunk++) CHECK(fill(*volume, chunk, 1).ok());
    // The pinned one is kept, then the lower priority goes first, then the older.
    const auto snapshot = [&](const char* name, bool pinned, uint8_t priority) {
      Result<SnapshotInfo> made = volume->create_snapshot(name, pinned, priority, {});
      CHECK(made.ok());
      for (ChunkIndex chunk = 0; chunk < kChunks; chunk++) {
        const Status status = fill(*volume, chunk, name[0]);
        CHECK_MESSAGE(status.ok(), status.to_text());
      }
    };
    snapshot("pinned", true, 0);
    snapshot("high", false, 9);
    snapshot("low1", false, 1);
    snapshot("low2", false, 1);
    for (int i = 0; i < 9; i++) {
      snapshot(("x" + std::to_string(i)).c_str(), false, 5);
      CHECK(volume->wait_reclaimed().ok());
    }
    REQUIRE(dropped.size() >= 3);
    CHECK(dropped[0] == "low1");
    CHECK(dropped[1] == "low2");
    CHECK(dropped[2] == "x0");
    CHECK(std::find(dropped.begin(), dropped.end(), "pinned") == dropped.end());
    CHECK(std::find(dropped.begin(), dropped.end(), "high") == dropped.end());
    CHECK(volume->close().ok());
  });
}

TEST_CASE("full: refuse-writes refuses the write and keeps the snapshots") {
  MemoryDevice origin("origin", kOriginBytes), store("store", 1024 * 1024 + 400 * 1024);
  REQUIRE(create(store, format::OnFull::REFUSE_WRITES).ok());
  simulate([&] {
    uint64_t full_events = 0;
    VolumeOptions options = options_for(origin, store);
    options.on_event = [&](const VolumeEvent& event) {
      CHECK(event.kind != VolumeEvent::Kind::SNAPSHOT_DROPPED);
      full_events += event.kind == VolumeEvent::Kind::STORE_FULL;
    };
    std::unique_ptr<Volume> volume = open(std::move(options));
    for (ChunkIndex chunk = 0; chunk < kChunks; chunk++) CHECK(fill(*volume, chunk, 1).ok());
    Sample sample;
    uint64_t refused = 0;
    for (int round = 0; round < 12; round++) {
      Result<SnapshotInfo> made =
          volume->create_snapshot("s" + std::to_string(round), false, 0, {});
      if (made.ok())
        sample.snapshots.push_back({made.value().uuid, made.value().name, content(*volume)});
      for (ChunkIndex chunk = 0; chunk < kChunks; chunk++) {
        const Bytes before = content(*volume);
        const Status status = fill(*volume, chunk, static_cast<uint8_t>(round + 2));
        if (status.ok()) continue;
        CHECK(status.code() == Code::NO_SPACE);
        CHECK(content(*volume) == before);
        refused++;
      }
    }
    CHECK(refused > 0);
    CHECK(full_events > 0);
    Verdict verdict;
    read_snapshots(*volume, sample, verdict);
    CHECK_MESSAGE(verdict.wrong.empty(), verdict.wrong);
    CHECK(verdict.all_read);
    // Space that comes free is used: deleting makes room again.
    for (const Sample::Snapshot& snapshot : sample.snapshots)
      CHECK(volume->delete_snapshot(snapshot.uuid).ok());
    CHECK(volume->wait_reclaimed().ok());
    CHECK(volume->create_snapshot("after", false, 0, {}).ok());
    CHECK(fill(*volume, 0, 77).ok());
    CHECK(volume->close().ok());
  });
}

TEST_CASE(
    "full: a hole of the origin that can't be filled is the client's error and nobody else's") {
  SimHost host(3);
  SimDisk& origin = host.add_disk("origin", kChunks * kChunk, false);
  SimDisk& store = host.add_disk("store", kStoreBytes);
  CreateOptions create;
  create.volume_name = "hole";
  create.origin = identity();
  create.origin_bytes = origin.size_bytes();
  create.store_bytes = kStoreBytes;
  create.chunk_bytes = kChunk;
  REQUIRE(create_store(store, create).ok());
  simulate([&] {
    std::unique_ptr<Volume> volume = open(options_for(origin, store));
    CHECK(fill(*volume, 1, 1).ok());
    Result<SnapshotInfo> made = volume->create_snapshot("s", false, 0, {});
    CHECK(made.ok());
    origin.set_full(true);
    CHECK(fill(*volume, 5, 2).code() == Code::NO_SPACE);  // a hole, owed to the snapshot
    CHECK(fill(*volume, 1, 3).ok());                      // allocated
    // A small one would be staged: it is refused now, and not found to have no room later.
    Bytes small(kSectorBytes, 9);
    const std::shared_ptr<View> live = volume->open_origin();
    CHECK(io(*volume, *live, IoOp::WRITE, 6 * kChunk, small.size(), small.data()).code() ==
          Code::NO_SPACE);
    CHECK(io(*volume, *live, IoOp::WRITE, kChunk, small.size(), small.data()).ok());
    CHECK(volume->checkpoint().ok());
    CHECK(volume->info().staged_bytes == 0);
    CHECK(io(*volume, *volume->open_origin(), IoOp::FLUSH, 0, 0, nullptr).ok());
    CHECK_FALSE(volume->info().failed);
    const std::shared_ptr<View> view = volume->open_snapshot(made.value().uuid).take();
    Bytes data(kChunk);
    CHECK(io(*volume, *view, IoOp::READ, 5 * kChunk, kChunk, data.data()).ok());
    CHECK(data == Bytes(kChunk, 0));
    CHECK(io(*volume, *view, IoOp::READ, kChunk, kChunk, data.data()).ok());
    CHECK(data[0] == 1 + 7);
    origin.set_full(false);
    CHECK(fill(*volume, 5, 2).ok());
    CHECK(volume->close().ok());
  });
}

}  // namespace csnap
