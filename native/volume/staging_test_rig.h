// A volume whose devices are memory and whose threads are held where a test wants them: by default
// the committer at its first read of the origin, so that what is seen is seen from the journal and
// the staged table; or the copier, which copies a round while the committer records the one before.
// Real threads. Callers: tests of the staged path.
#pragma once

#include <doctest/doctest.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/sync.h"
#include "testing/faulty_device.h"
#include "volume/volume.h"

namespace csnap {

inline constexpr uint64_t kChunk = 16384;
inline constexpr uint64_t kChunks = 16;
inline constexpr uint64_t kBlock = 4096;
inline constexpr uint64_t kNowhere = ~uint64_t{0};
using Bytes = std::vector<uint8_t>;

inline bool is_thread(const char* name) {
  char thread[16];
  pthread_getname_np(pthread_self(), thread, sizeof thread);
  return std::strcmp(thread, name) == 0;
}

// Nobody ends it.
inline void rest(uint64_t ms) {
  Mutex mutex;
  CondVar wake;
  MutexLock lock(mutex);
  wake.wait_for(lock, ms);
}

inline bool copies_out() { return is_thread("csnap-commit") || is_thread("csnap-copy"); }

// Holds the committer or the copier, and nobody else, at its reads; or writes of whole chunks.
class HeldOrigin final : public Device {
 public:
  explicit HeldOrigin(Bytes bytes) : memory_("origin", std::move(bytes)) {}

  uint64_t size_bytes() const override { return memory_.size_bytes(); }
  const std::string& name() const override { return memory_.name(); }
  Status read(uint64_t offset, void* data, size_t length) override {
    if (copies_out()) {
      copying_reads++;
      MutexLock lock(mutex_);
      asked_ += 'r';
      while (is_thread(held_)) changed_.wait(lock);
    }
    return memory_.read(offset, data, length);
  }
  // As if nothing were cached, but for who sets this: it is called first, then all is.
  std::function<void()> before_nowait;
  bool read_nowait(uint64_t offset, void* data, size_t length) override {
    if (copies_out() || !before_nowait) return false;
    before_nowait();
    return memory_.read(offset, data, length).ok();
  }
  void will_read(uint64_t, size_t) override {
    MutexLock lock(mutex_);
    asked_ += 'w';
  }
  Status write(uint64_t offset, const void* data, size_t length) override {
    if (is_thread("csnap-apply")) {
      applier_writes++;
      if (applier_full) return Status(Code::NO_SPACE, "origin: its file system is full");
    } else if (length >= kChunk) {
      MutexLock lock(mutex_);
      if (large_held_) large_waiting = true;
      while (large_held_) changed_.wait(lock);
    }
    return memory_.write(offset, data, length);
  }
  Status sync() override { return memory_.sync(); }
  Status zero(uint64_t offset, uint64_t length, ZeroMode mode) override {
    return memory_.zero(offset, length, mode);
  }
  Status discard(uint64_t offset, uint64_t length) override {
    return memory_.discard(offset, length);
  }

  Status allocate(uint64_t, uint64_t) override {
    allocated++;
    return full ? Status(Code::NO_SPACE, "origin: its file system is full") : Status();
  }
  DeviceExtent extent_at(uint64_t offset, uint64_t length) override {
    const uint64_t end = hole_at > offset ? hole_at.load() : size_bytes();
    return {std::min(length, std::min(end, size_bytes()) - offset), offset == hole_at};
  }
  // No hole but the chunk there.
  std::atomic<uint64_t> hole_at{kNowhere};
  std::atomic<bool> full{false};
  std::atomic<int> allocated{0};
  std::atomic<int> applier_writes{0};
  std::atomic<bool> applier_full{false};
  std::atomic<int> copying_reads{0};
  std::atomic<bool> large_waiting{false};

  void hold(bool held, const char* thread = "csnap-commit") {
    MutexLock lock(mutex_);
    held_ = held ? thread : "";
    changed_.notify_all();
  }
  void hold_large(bool held) {
    MutexLock lock(mutex_);
    large_held_ = held;
    changed_.notify_all();
  }
  const Bytes& bytes() { return memory_.bytes(); }
  // In order: 'w' for what will be read, 'r' for what is read to be copied.
  std::string asked() {
    MutexLock lock(mutex_);
    return asked_;
  }

 private:
  MemoryDevice memory_;
  Mutex mutex_;
  CondVar changed_;
  const char* held_ = "";
  bool large_held_ = false;
  std::string asked_;
};

// What a kill leaves.
struct Image {
  Bytes origin, store;
};

struct Sizes {
  uint64_t chunks = kChunks;
  uint64_t store_bytes = 8 << 20;
  uint64_t journal_bytes = 0;  // 0: chosen by the store's size
};

// A request as a connection submits it that has others under way.
class Submitted {
 public:
  Submitted(Volume& volume, IoOp op, View& view, uint64_t offset, Bytes& data) {
    request_.op = op;
    request_.view = &view;
    request_.offset = offset;
    request_.length = data.size();
    request_.data = data.data();
    request_.owner = this;
    request_.done = [](IoRequest& finished) {
      auto& self = *static_cast<Submitted*>(finished.owner);
      MutexLock lock(self.mutex_);
      self.ended_ = true;
      self.changed_.notify_all();
    };
    was_inline_ = volume.submit(request_, false);
  }
  ~Submitted() { (void)wait(); }
  Submitted(const Submitted&) = delete;

  // Done by the submitting thread itself.
  bool was_inline() const { return was_inline_; }
  bool ended() {
    MutexLock lock(mutex_);
    return was_inline_ || ended_;
  }
  Status wait() {
    MutexLock lock(mutex_);
    while (!was_inline_ && !ended_) changed_.wait(lock);
    return request_.status;
  }

 private:
  IoRequest request_;
  bool was_inline_;
  Mutex mutex_;
  CondVar changed_;
  bool ended_ = false;
};

class Rig {
 public:
  explicit Rig(format::DurabilityMode durability = format::DurabilityMode::FLUSH,
               const Sizes& sizes = {})
      : durability_(durability),
        origin(Bytes(sizes.chunks * kChunk, 1)),
        store("store", sizes.store_bytes) {
    identity_.text = "test";
    CreateOptions create;
    create.volume_name = "vol";
    create.origin = identity_;
    create.origin_bytes = origin.size_bytes();
    create.store_bytes = store.size_bytes();
    create.chunk_bytes = kChunk;
    create.journal_bytes = sizes.journal_bytes;
    create.on_full = format::OnFull::REFUSE_WRITES;
    REQUIRE(create_store(store, create).ok());
    open();
  }
  Rig(const Image& image, format::DurabilityMode durability)
      : durability_(durability), origin(image.origin), store("store", image.store) {
    identity_.text = "test";
    origin.hold(true);
    open();
  }
  // Opens nothing yet.
  struct Closed {};
  Rig(Closed, const Image& image, format::DurabilityMode durability)
      : durability_(durability), origin(image.origin), store("store", image.store) {
    identity_.text = "test";
  }
  ~Rig() {
    if (!volume) return;
    origin.hold(false);
    CHECK(volume->close().ok());
  }

  // As a kill would leave it; nothing may be under way.
  Image image() { return {origin.bytes(), store.bytes()}; }

  Status io(IoOp op, View& view, uint64_t offset, Bytes& data) {
    IoRequest request;
    request.op = op;
    request.view = &view;
    request.offset = offset;
    request.length = data.size();
    request.data = data.data();
    return volume->run(request);
  }
  void write(uint64_t offset, uint64_t length, uint8_t value) {
    Bytes data(length, value);
    CHECK(io(IoOp::WRITE, *volume->open_origin(), offset, data).ok());
  }
  // The values at the starts of `count` blocks, and that each block is all of one.
  Bytes blocks(const std::shared_ptr<View>& view, uint64_t offset, uint64_t count) {
    Bytes data(count * kBlock), values;
    CHECK(io(IoOp::READ, *view, offset, data).ok());
    for (uint64_t i = 0; i < count; i++) {
      const auto* block = data.data() + i * kBlock;
      CHECK(std::memcmp(block, block + 1, kBlock - 1) == 0);
      values.push_back(block[0]);
    }
    return values;
  }
  Bytes now(uint64_t offset, uint64_t count) {
    return blocks(volume->open_origin(), offset, count);
  }
  std::shared_ptr<View> snapshot(const char* name) {
    Result<SnapshotInfo> made = volume->create_snapshot(name, false, 0, {});
    REQUIRE(made.ok());
    return volume->open_snapshot(made.value().uuid).take();
  }
  std::vector<SnapshotInfo> live() {
    std::vector<SnapshotInfo> found = volume->list_snapshots().take();
    std::erase_if(
        found, [](const SnapshotInfo& info) { return info.state != format::SnapshotState::LIVE; });
    return found;
  }
  std::vector<ChunkIndex> diff(const Uuid& a, const Uuid& b) {
    std::vector<ChunkIndex> chunks;
    CHECK(volume
              ->diff(a, b,
                     [&](ChunkIndex first, uint64_t count) {
                       for (uint64_t i = 0; i < count; i++) chunks.push_back(first + i);
                       return true;
                     })
              .ok());
    return chunks;
  }
  void check_clean() {
    Result<CheckReport> report = volume->check(true, nullptr);
    REQUIRE(report.ok());
    CHECK(report.value().clean);
    CHECK(report.value().lost_entries == 0);
  }

  Status try_open() {
    VolumeOptions options;
    options.origin = &origin;
    options.store = &faulty_store;
    options.identity = identity_;
    options.durability = durability_;
    options.on_event = [this](const VolumeEvent& event) {
      full_events += event.kind == VolumeEvent::Kind::STORE_FULL;
      copy_failed_events += event.kind == VolumeEvent::Kind::COPY_FAILED;
      origin_full_events += event.kind == VolumeEvent::Kind::ORIGIN_FULL;
    };
    CSNAP_TRY_ASSIGN(volume, Volume::open(std::move(options)));
    return Status();
  }

 private:
  void open() {
    const Status opened = try_open();
    REQUIRE_MESSAGE(opened.ok(), opened.to_text());
  }

  const format::DurabilityMode durability_;
  OriginIdentity identity_;

 public:
  HeldOrigin origin;
  MemoryDevice store;
  FaultyDevice faulty_store{store, 1};
  std::atomic<int> full_events{0};
  std::atomic<int> copy_failed_events{0};
  std::atomic<int> origin_full_events{0};
  std::unique_ptr<Volume> volume;
};

inline constexpr format::DurabilityMode kModes[] = {format::DurabilityMode::FLUSH,
                                                    format::DurabilityMode::SYNC};

}  // namespace csnap
