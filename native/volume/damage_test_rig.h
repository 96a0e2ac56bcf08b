// A small volume in simulated time, a store with a history, and whether what its snapshots answer
// is right or honestly refused. Callers: tests of damaged and of full stores.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "testing/faulty_device.h"
#include "testing/rng.h"
#include "testing/scheduler.h"
#include "volume/volume.h"

namespace csnap::damage_rig {

inline constexpr uint64_t kChunk = 4096;
inline constexpr uint64_t kChunks = 40;
inline constexpr uint64_t kOriginBytes = kChunks * kChunk - 1024;  // the last chunk is not whole
inline constexpr uint64_t kStoreBytes = 1792 * 1024;
inline constexpr uint64_t kJournalBytes = 262144;

using Bytes = std::vector<uint8_t>;

inline OriginIdentity identity() {
  OriginIdentity identity;
  identity.text = "origin";
  return identity;
}

inline VolumeOptions options_for(Device& origin, Device& store) {
  VolumeOptions options;
  options.origin = &origin;
  options.store = &store;
  options.identity = identity();
  options.io_threads = 1;
  options.index.leaf_capacity = 4;
  options.index.inner_capacity = 4;
  return options;
}

inline Status create(Device& store, format::OnFull on_full = format::OnFull::DROP_SNAPSHOTS) {
  CreateOptions create;
  create.volume_name = "damage";
  create.origin = identity();
  create.origin_bytes = kOriginBytes;
  create.store_bytes = store.size_bytes();
  create.chunk_bytes = kChunk;
  create.journal_bytes = kJournalBytes;
  create.on_full = on_full;
  return create_store(store, create);
}

// Runs `body` single-stepped; fails the test where it does not come to its end.
inline void simulate(const std::function<void()>& body, uint64_t seed = 1) {
  SimScheduler scheduler;
  const auto outcome = scheduler.run(seed, body);
  REQUIRE_MESSAGE(outcome.ok(), outcome.report);
}

inline std::unique_ptr<Volume> open(VolumeOptions options) {
  Result<std::unique_ptr<Volume>> opened = Volume::open(std::move(options));
  CHECK_MESSAGE(opened.ok(), opened.status().to_text());
  return opened.ok() ? opened.take() : nullptr;
}

inline Status io(Volume& volume, View& view, IoOp op, uint64_t offset, uint64_t length,
                 void* data) {
  IoRequest request;
  request.op = op;
  request.view = &view;
  request.offset = offset;
  request.length = length;
  request.data = data;
  return volume.run(request);
}

// Of the origin as clients see it: the device lacks what is staged.
inline Bytes content(Volume& volume) {
  Bytes data(kOriginBytes);
  CHECK(io(volume, *volume.open_origin(), IoOp::READ, 0, data.size(), data.data()).ok());
  return data;
}

inline Status fill(Volume& volume, ChunkIndex chunk, uint8_t value) {
  const uint64_t offset = chunk * kChunk;
  Bytes data(std::min(kChunk, kOriginBytes - offset));
  // No two chunks alike, so that one in another's place is noticed.
  for (size_t i = 0; i < data.size(); i++)
    data[i] = static_cast<uint8_t>(value + chunk * 7 + i / 512);
  return io(volume, *volume.open_origin(), IoOp::WRITE, offset, data.size(), data.data());
}

// A store with several snapshots, index levels and deleted chunks, and what it must say.
struct Sample {
  Bytes origin, store;
  struct Snapshot {
    Uuid uuid;
    std::string name;
    Bytes content;
  };
  std::vector<Snapshot> snapshots;
};

inline Sample make_sample(bool closed) {
  Sample sample;
  MemoryDevice origin("origin", kOriginBytes), store("store", kStoreBytes);
  // What use() writes later must not make the policy drop what is compared.
  REQUIRE(create(store, format::OnFull::REFUSE_WRITES).ok());
  simulate([&] {
    VolumeOptions options = options_for(origin, store);
    // Large nodes are few dirty ones, so that no checkpoint takes the journal's records.
    if (!closed) options.index = IndexOptions();
    std::unique_ptr<Volume> volume = open(std::move(options));
    Rng rng(7);
    for (ChunkIndex chunk = 0; chunk < kChunks; chunk++)
      if (chunk % 5 != 4) CHECK(fill(*volume, chunk, 1).ok());
    for (int round = 0; round < 5; round++) {
      const std::string name = "s" + std::to_string(round);
      Result<SnapshotInfo> made = volume->create_snapshot(name, false, 0, {{"round", name}});
      CHECK(made.ok());
      sample.snapshots.push_back({made.value().uuid, name, origin.bytes()});
      for (int i = 0; i < 12; i++)
        CHECK(fill(*volume, rng.below(kChunks), static_cast<uint8_t>(round + 2)).ok());
      // What follows the last round stays in the journal of a killed server.
      if (round < 3) CHECK(volume->checkpoint().ok());
    }
    CHECK(volume->delete_snapshot(sample.snapshots[1].uuid).ok());
    sample.snapshots.erase(sample.snapshots.begin() + 1);
    CHECK(volume->wait_reclaimed().ok());
    if (closed) CHECK(volume->close().ok());
  });
  sample.origin = origin.bytes();
  sample.store = store.bytes();
  return sample;
}

struct Verdict {
  Status opened;
  bool all_read = true;     // every chunk of every snapshot, and right
  bool check_clean = true;  // and no error
  uint64_t failed_chunks = 0;
  std::string wrong;  // what may never be
};

inline bool honest(const Status& status) {
  switch (status.code()) {
    case Code::CORRUPT:
    case Code::IO_ERROR:
    case Code::FAILED:
    case Code::NOT_A_STORE:
    case Code::NEWER_FORMAT:
    case Code::TRUNCATED:
    case Code::NO_SPACE:
      return !status.message().empty();
    default:
      return false;
  }
}

inline void read_snapshots(Volume& volume, const Sample& sample, Verdict& verdict) {
  for (const Sample::Snapshot& snapshot : sample.snapshots) {
    Result<std::shared_ptr<View>> view = volume.open_snapshot(snapshot.uuid);
    if (!view.ok()) {
      verdict.all_read = false;
      if (!honest(view.status()))
        verdict.wrong = "snapshot " + snapshot.name + ": " + view.status().to_text();
      continue;
    }
    for (ChunkIndex chunk = 0; chunk < kChunks; chunk++) {
      const uint64_t offset = chunk * kChunk;
      Bytes data(std::min(kChunk, kOriginBytes - offset));
      const Status status = io(volume, *view.value(), IoOp::READ, offset, data.size(), data.data());
      if (!status.ok()) {
        verdict.all_read = false;
        verdict.failed_chunks++;
        if (!honest(status)) verdict.wrong = "read: " + status.to_text();
      } else if (std::memcmp(data.data(), snapshot.content.data() + offset, data.size()) != 0) {
        verdict.wrong =
            "chunk " + std::to_string(chunk) + " of snapshot " + snapshot.name + " is wrong";
      }
    }
  }
}

}  // namespace csnap::damage_rig
