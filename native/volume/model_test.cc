// Random operations on a volume against the plain model, whole lives of it: a million in the quick
// tier. Single-stepped under SimScheduler on devices in memory, so that a seed is a whole run.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "io/file_device.h"
#include "io/test_directory.h"
#include "io/test_loop.h"
#include "testing/faulty_device.h"
#include "testing/rng.h"
#include "testing/scheduler.h"
#include "testing/volume_model.h"
#include "volume/volume.h"

namespace csnap {
namespace {

struct Shape {
  uint64_t chunk_bytes;
  uint64_t origin_bytes;
  uint64_t store_bytes;
  uint64_t journal_bytes;
  uint32_t node_capacity;  // 0: real nodes
  format::OnFull on_full = format::OnFull::DROP_SNAPSHOTS;
  format::DurabilityMode durability = format::DurabilityMode::FLUSH;
};

class Run {
 public:
  // Origin and store of the shape's sizes, the origin zeros.
  struct Devices {
    std::unique_ptr<Device> origin, store;
  };

  Run(const Shape& shape, uint64_t seed, uint64_t op_count)
      : Run(shape, seed, op_count,
            {std::make_unique<MemoryDevice>("origin", shape.origin_bytes),
             std::make_unique<MemoryDevice>("store", shape.store_bytes)}) {}
  Run(const Shape& shape, uint64_t seed, uint64_t op_count, Devices devices)
      : shape_(shape),
        rng_(seed),
        op_count_(op_count),
        devices_(std::move(devices)),
        model_(round_down(shape.origin_bytes, kSectorBytes), shape.chunk_bytes),
        scheduler_({.step_limit = ~uint64_t{0}}) {
    identity_.text = "model";
    CreateOptions create;
    create.volume_name = "model";
    create.origin = identity_;
    create.origin_bytes = shape.origin_bytes;
    create.store_bytes = shape.store_bytes;
    create.chunk_bytes = shape.chunk_bytes;
    create.journal_bytes = shape.journal_bytes;
    create.on_full = shape.on_full;
    const Status status = create_store(*devices_.store, create);
    REQUIRE_MESSAGE(status.ok(), status.to_text());
    for (const Uuid boot = make_uuid(); boot_id_.is_nil();) boot_id_ = boot;
  }

  // Empty, or what went wrong.
  std::string go() {
    const SimScheduler::Outcome outcome = scheduler_.run(rng_.next(), [this] { live(); });
    return outcome.ok() ? "" : outcome.report;
  }

  uint64_t ops_done = 0, reopens = 0, drops = 0, refusals = 0, compared = 0, figures = 0;

 private:
  [[noreturn]] void wrong(const std::string& what) {
    scheduler_.stop("operation " + std::to_string(ops_done) + " (" + op_ + "): " + what);
  }
  void expect(bool right, const std::string& what) {
    if (!right) wrong(what);
  }
  void expect(const Status& status, const std::string& what) {
    if (!status.ok()) wrong(what + ": " + status.to_text());
  }

  // For what is asked of several snapshots at once, or of one by its uuid: a checkpoint may need
  // room at any time, and then the policy drops one in the middle of it. Only that is an excuse.
  struct Dropped {};
  void expect_unless_dropped(bool right, const std::string& what) {
    if (right) return;
    expect(volume_->wait_reclaimed(), "wait_reclaimed");
    if (drops != drops_before_) throw Dropped();
    wrong(what);
  }
  void expect_unless_dropped(const Status& status, const std::string& what) {
    expect_unless_dropped(status.ok(), status.ok() ? what : what + ": " + status.to_text());
  }
  template <typename Body>
  void while_none_drops(Body body) {
    expect(volume_->wait_reclaimed(), "wait_reclaimed");
    drops_before_ = drops;
    try {
      body();
    } catch (const Dropped&) {
    }
  }

  Uuid make_uuid() {
    Uuid uuid;
    for (uint8_t& byte : uuid.bytes) byte = static_cast<uint8_t>(rng_.next());
    return uuid;
  }

  void open(bool was_closed) {
    VolumeOptions options;
    options.origin = devices_.origin.get();
    options.store = devices_.store.get();
    options.identity = identity_;
    options.durability = shape_.durability;
    options.boot_id = boot_id_;
    options.io_threads = 2;
    options.group_chunks_max = static_cast<uint32_t>(1 + rng_.below(16));
    if (shape_.node_capacity != 0) {
      options.index.leaf_capacity = shape_.node_capacity;
      options.index.inner_capacity = shape_.node_capacity;
    }
    if (rng_.coin()) options.index.cache_bytes = 32 * 4096;
    options.clock_ns = [this] { return clock_ += 1000; };
    options.make_uuid = [this] { return make_uuid(); };
    options.on_event = [this](const VolumeEvent& event) { take_event(event); };
    Result<std::unique_ptr<Volume>> opened = Volume::open(std::move(options));
    expect(opened.status(), "open");
    volume_ = opened.take();
    origin_view_ = volume_->open_origin();
    const VolumeInfo info = volume_->info();
    expect(info.epoch == ++epoch_, "the epoch must grow by one with each open");
    expect(info.clean == was_closed, "info.clean");
    expect(info.lost_entries == 0 && info.dropped_entries == 0, "recovery dropped something");
    expect(durability_id_.is_nil() || info.durability_id == durability_id_,
           "the durability id changed without a reason");
    durability_id_ = info.durability_id;
  }

  void take_event(const VolumeEvent& event) {
    if (event.kind == VolumeEvent::Kind::SNAPSHOT_DROPPED) {
      const VolumeModel::Snapshot* victim = model_.victim();
      drops++;
      if (making_ && event.name == making_->name) {
        // It lives before its creation returns.
        expect(!making_->pinned && (!victim || victim->priority > making_->priority),
               "the snapshot in the making was dropped instead of another");
        making_->dropped = true;
        return;
      }
      // What is being deleted is deleted before its deletion returns.
      if (victim && victim->uuid == deleting_ && event.snapshot != deleting_)
        victim = model_.victim(deleting_);
      expect(victim && victim->uuid == event.snapshot, "the wrong snapshot was dropped");
      model_.remove(event.snapshot);
      views_.erase(event.name);
    } else if (event.kind == VolumeEvent::Kind::FAILED ||
               event.kind == VolumeEvent::Kind::CHECKSUM_ERROR) {
      wrong(event.message);
    }
  }

  Status io(IoOp op, View& view, uint64_t offset, uint64_t length, void* data, bool fua = false) {
    IoRequest request;
    request.op = op;
    request.view = &view;
    request.offset = offset;
    request.length = length;
    request.data = data;
    request.fua = fua;
    if (op == IoOp::WRITE_ZEROES) request.no_hole = rng_.coin();
    return volume_->run(request);
  }

  // Any range; mostly short ones that start and end anywhere.
  void pick_range(uint64_t& offset, uint64_t& length) {
    const uint64_t size = model_.origin().size();
    const uint64_t longest =
        rng_.one_in(20) ? size : std::min(size, shape_.chunk_bytes * (1 + rng_.below(3)));
    length = 1 + rng_.below(longest);
    offset = rng_.below(size - length + 1);
    if (rng_.coin()) {
      offset = round_down(offset, kSectorBytes);
      length = std::min(round_up(length, kSectorBytes), size - offset);
    }
  }

  void write(IoOp op) {
    uint64_t offset, length;
    pick_range(offset, length);
    if (op == IoOp::WRITE) {
      data_.resize(length);
      // Few different contents, zeros among them: equal chunks must not matter.
      const uint64_t kind = rng_.below(8);
      if (kind == 0)
        std::memset(data_.data(), 0, length);
      else if (kind == 1)
        std::memset(data_.data(), static_cast<int>(1 + rng_.below(3)), length);
      else
        for (uint64_t i = 0, word = rng_.next(); i < length; i++)
          data_[i] = static_cast<uint8_t>(word >> (i % 8 * 8)) ^ static_cast<uint8_t>(i >> 5);
    }
    const Status status = io(op, *origin_view_, offset, length, data_.data(), rng_.one_in(20));
    if (status.ok()) {
      model_.write(offset, op == IoOp::WRITE ? data_.data() : nullptr, length);
      return;
    }
    // W10.
    expect(status.code() == Code::NO_SPACE, status.to_text());
    expect(shape_.on_full == format::OnFull::REFUSE_WRITES || !model_.victim(),
           "a write was refused though a snapshot could have been dropped (W10)");
    refusals++;
    model_.write_refused();
    compare_origin(offset, length);
  }

  void trim() {
    uint64_t offset, length;
    pick_range(offset, length);
    expect(io(IoOp::TRIM, *origin_view_, offset, length, nullptr), "trim");
    std::vector<uint8_t> now(length);
    expect(io(IoOp::READ, *origin_view_, offset, length, now.data()), "read");
    const std::string wrongs = model_.trimmed(offset, now);
    expect(wrongs.empty(), wrongs);
  }

  void compare_origin(uint64_t offset, uint64_t length) {
    data_.resize(length);
    expect(io(IoOp::READ, *origin_view_, offset, length, data_.data()), "read of the origin");
    expect(std::memcmp(data_.data(), model_.origin().data() + offset, length) == 0,
           "the origin differs from the model");
    compared++;
  }

  // By uuid, as it may be dropped meanwhile.
  void compare_snapshot(const Uuid uuid, uint64_t offset, uint64_t length) {
    VolumeModel::Snapshot* snapshot = model_.find(uuid);
    std::shared_ptr<View>& kept = views_[snapshot->name];
    if (!kept) {
      Result<std::shared_ptr<View>> opened = volume_->open_snapshot(uuid);
      if (!opened.ok()) expect(volume_->wait_reclaimed(), "wait_reclaimed");
      if (!opened.ok() && !model_.find(uuid)) return;
      expect(opened.status(), "open_snapshot");
      kept = opened.take();
    }
    const std::shared_ptr<View> view = kept;
    data_.resize(length);
    const Status status = io(IoOp::READ, *view, offset, length, data_.data());
    snapshot = model_.find(uuid);
    if (!snapshot) {
      expect(status.ok() || status.code() == Code::SNAPSHOT_DELETED, "read of a dropped snapshot");
      return;
    }
    // Marked before the event says so: the reader may know first.
    if (status.code() == Code::SNAPSHOT_DELETED && drop_may_be_under_way()) return;
    expect(status, "read of " + snapshot->name);
    expect(std::memcmp(data_.data(), snapshot->content.data() + offset, length) == 0,
           "snapshot " + snapshot->name + " differs from the model (W6)");
    compared++;
  }
  bool drop_may_be_under_way() { return shape_.on_full == format::OnFull::DROP_SNAPSHOTS; }

  const VolumeModel::Snapshot* any_snapshot() {
    if (model_.snapshots().empty()) return nullptr;
    return &model_.snapshots()[rng_.below(model_.snapshots().size())];
  }

  void create() {
    const std::string name = "s" + std::to_string(++name_count_);
    const bool pinned = rng_.one_in(16);
    const auto priority = static_cast<uint8_t>(rng_.below(4));
    Making making = {name, pinned, priority, false};
    making_ = &making;
    Result<SnapshotInfo> made = volume_->create_snapshot(name, pinned, priority, {{"n", name}});
    making_ = nullptr;
    if (made.status().code() == Code::NO_SPACE) return;
    expect(made.status(), "create");
    expect(made.value().generation == model_.generation(), "generation (W5)");
    model_.create(made.value());
    if (making.dropped) model_.remove(made.value().uuid);
  }

  void remove() {
    const VolumeModel::Snapshot* snapshot = any_snapshot();
    if (!snapshot) return;
    const Uuid uuid = snapshot->uuid;
    const std::string name = snapshot->name;
    std::shared_ptr<View> view = views_[name];
    deleting_ = uuid;
    const Status status = volume_->delete_snapshot(uuid);
    deleting_ = Uuid();
    if (!status.ok()) expect(volume_->wait_reclaimed(), "wait_reclaimed");
    if (!model_.find(uuid)) return;  // dropped meanwhile
    expect(status, "delete");
    model_.remove(uuid);
    views_.erase(name);
    if (!view) return;
    uint8_t byte;
    expect(io(IoOp::READ, *view, 0, 1, &byte).code() == Code::SNAPSHOT_DELETED,
           "a deleted snapshot can still be read");
  }

  void change_properties() {
    const VolumeModel::Snapshot* snapshot = any_snapshot();
    if (!snapshot) return;
    const Uuid uuid = snapshot->uuid;
    Volume::SnapshotChanges changes;
    if (rng_.coin()) changes.pinned = rng_.one_in(4) ? 1 : 0;
    if (rng_.coin()) changes.priority = static_cast<int>(rng_.below(4));
    if (rng_.coin()) changes.set_labels = {{"k", rng_.coin() ? "v" : ""}};
    Result<SnapshotInfo> now = volume_->update_snapshot(uuid, changes);
    expect_unless_dropped(now.status(), "update");
    VolumeModel::Snapshot* changed = model_.find(uuid);
    if (!changed) return;
    if (changes.pinned >= 0) changed->pinned = changes.pinned;
    if (changes.priority >= 0) changed->priority = static_cast<uint8_t>(changes.priority);
    for (const auto& [key, value] : changes.set_labels) {
      if (value.empty())
        changed->labels.erase(key);
      else
        changed->labels[key] = value;
    }
  }

  void compare_list() {
    if (rng_.coin()) expect(volume_->checkpoint(), "checkpoint");
    // The exceptions that staged writes owe come when they are copied out.
    const bool exact = model_.exact() && volume_->info().staged_bytes == 0;
    Result<std::vector<SnapshotInfo>> listed = volume_->list_snapshots();
    expect_unless_dropped(listed.status(), "list");
    const auto& expected = model_.snapshots();
    expect_unless_dropped(listed.value().size() == expected.size(), "list has another length");
    for (size_t i = 0; i < expected.size(); i++) {
      const SnapshotInfo& info = listed.value()[i];
      const VolumeModel::Snapshot& snapshot = expected[i];
      std::map<std::string, std::string> labels(info.labels.begin(), info.labels.end());
      expect_unless_dropped(info.uuid == snapshot.uuid && info.name == snapshot.name &&
                                info.state == format::SnapshotState::LIVE &&
                                info.generation == snapshot.generation &&
                                info.priority == snapshot.priority &&
                                info.pinned == snapshot.pinned && labels == snapshot.labels &&
                                !info.suspect && info.size_bytes == model_.origin().size(),
                            "list shows other properties of " + snapshot.name);
      if (!exact) continue;
      const VolumeModel::Usage usage = model_.usage(snapshot);
      expect_unless_dropped(!info.estimated &&
                                info.unique_bytes == usage.unique * shape_.chunk_bytes &&
                                info.shared_bytes == usage.shared * shape_.chunk_bytes,
                            "list shows other figures of " + snapshot.name + ": unique " +
                                std::to_string(info.unique_bytes / shape_.chunk_bytes) +
                                " instead of " + std::to_string(usage.unique) + ", shared " +
                                std::to_string(info.shared_bytes / shape_.chunk_bytes) +
                                " instead of " + std::to_string(usage.shared));
    }
    if (!exact) return;
    figures++;
    const VolumeInfo info = volume_->info();
    expect_unless_dropped(info.exceptions == model_.exception_count(),
                          "there are " + std::to_string(info.exceptions) +
                              " exceptions instead of " + std::to_string(model_.exception_count()));
    expect_unless_dropped(
        info.blocks_data == model_.data_chunk_count() * (shape_.chunk_bytes / kBlockBytes),
        "info.blocks_data");
    std::vector<Uuid> some;
    for (const VolumeModel::Snapshot& snapshot : expected)
      if (rng_.coin()) some.push_back(snapshot.uuid);
    Result<uint64_t> freed = volume_->freed_if_deleted(some);
    expect_unless_dropped(freed.status(), "freed_if_deleted");
    expect_unless_dropped(freed.value() == model_.freed_by(some) * shape_.chunk_bytes,
                          "freed_if_deleted");
  }

  void compare_diff() {
    const VolumeModel::Snapshot* a = any_snapshot();
    if (!a) return;
    const VolumeModel::Snapshot* b = any_snapshot();
    if (rng_.one_in(3)) b = nullptr;
    std::vector<ChunkIndex> chunks;
    const Status status =
        volume_->diff(a->uuid, b ? b->uuid : Uuid(), [&](ChunkIndex first, uint64_t count) {
          for (uint64_t i = 0; i < count; i++) chunks.push_back(first + i);
          return true;
        });
    if (drops != drops_before_) return;
    if (b && b->generation < a->generation) {
      expect_unless_dropped(status.code() == Code::INVALID_ARGUMENT, "diff backwards");
      return;
    }
    expect_unless_dropped(status, "diff");
    const std::vector<ChunkIndex> expected = model_.diff(*a, b);
    if (model_.exact())
      expect_unless_dropped(chunks == expected, "diff differs from the model");
    else
      expect_unless_dropped(
          std::includes(chunks.begin(), chunks.end(), expected.begin(), expected.end()),
          "diff misses chunks");
  }

  void compare_block_status() {
    const VolumeModel::Snapshot* snapshot = rng_.one_in(4) ? nullptr : any_snapshot();
    std::shared_ptr<View> view = origin_view_;
    if (snapshot) {
      Result<std::shared_ptr<View>> opened = volume_->open_snapshot(snapshot->uuid);
      expect_unless_dropped(opened.status(), "open_snapshot");
      view = opened.take();
    }
    const std::vector<uint8_t>& content = snapshot ? snapshot->content : model_.origin();
    uint64_t offset, length;
    pick_range(offset, length);
    std::vector<BlockStatusExtent> extents;
    expect_unless_dropped(
        volume_->block_status(*view, offset, length, 1 + rng_.below(100), extents), "block_status");
    if (drops != drops_before_) return;
    expect(!extents.empty(), "block_status says nothing");
    for (const BlockStatusExtent& extent : extents) {
      expect(extent.length > 0 && offset + extent.length <= content.size(), "an extent too long");
      if (extent.zero || extent.hole)
        for (uint64_t i = 0; i < extent.length; i++)
          expect(content[offset + i] == 0, "block_status calls data zero");
      offset += extent.length;
    }
  }

  void compare_everything() {
    compare_origin(0, model_.origin().size());
    std::vector<Uuid> uuids;
    for (const auto& snapshot : model_.snapshots()) uuids.push_back(snapshot.uuid);
    for (const Uuid& uuid : uuids)
      if (model_.find(uuid)) compare_snapshot(uuid, 0, model_.origin().size());
  }

  void check() {
    Result<CheckReport> report = volume_->check(true, nullptr);
    expect(report.status(), "check");
    if (!report.value().clean)
      wrong("check: " + (report.value().problems.empty() ? "?" : report.value().problems[0]));
    expect(report.value().lost_entries == 0, "check found lost entries");
  }

  // A kill leaves what the devices hold: requests are done, but threads, bitmaps and caches go.
  void reopen(bool kill) {
    if (!kill) {
      views_.clear();
      expect(volume_->close(), "close");
    }
    views_.clear();
    origin_view_.reset();
    volume_.reset();
    open(!kill);
    reopens++;
  }

  void step() {
    const uint64_t draw = rng_.below(10000);
    if (draw < 5600) {
      op_ = "write";
      write(IoOp::WRITE);
    } else if (draw < 6200) {
      op_ = "write zeroes";
      write(IoOp::WRITE_ZEROES);
    } else if (draw < 6700) {
      op_ = "trim";
      trim();
    } else if (draw < 7500) {
      op_ = "read";
      uint64_t offset, length;
      pick_range(offset, length);
      compare_origin(offset, length);
    } else if (draw < 8900) {
      op_ = "read snapshot";
      uint64_t offset, length;
      pick_range(offset, length);
      if (const auto* snapshot = any_snapshot()) compare_snapshot(snapshot->uuid, offset, length);
    } else if (draw < 9250) {
      op_ = "flush";
      expect(io(IoOp::FLUSH, *origin_view_, 0, 0, nullptr), "flush");
    } else if (draw < 9450) {
      op_ = "create";
      if (model_.snapshots().size() < 12) create();
    } else if (draw < 9650) {
      op_ = "delete";
      remove();
    } else if (draw < 9730) {
      op_ = "set properties";
      while_none_drops([this] { change_properties(); });
    } else if (draw < 9770) {
      op_ = "checkpoint";
      expect(volume_->checkpoint(), "checkpoint");
    } else if (draw < 9820) {
      op_ = "list";
      while_none_drops([this] { compare_list(); });
    } else if (draw < 9900) {
      op_ = "diff";
      while_none_drops([this] { compare_diff(); });
    } else if (draw < 9970) {
      op_ = "block status";
      while_none_drops([this] { compare_block_status(); });
    } else if (draw < 9985) {
      op_ = "compare everything";
      compare_everything();
    } else if (draw < 9990) {
      op_ = "check";
      check();
    } else if (draw < 9995) {
      op_ = "close and open";
      reopen(false);
    } else {
      op_ = "kill and open";
      reopen(true);
    }
  }

  void live() {
    op_ = "first open";
    open(true);
    for (; ops_done < op_count_; ops_done++) step();
    op_ = "the end";
    compare_everything();
    while_none_drops([this] { compare_list(); });
    check();
    reopen(false);
    compare_everything();
    while_none_drops([this] { compare_list(); });
    views_.clear();
    origin_view_.reset();
    expect(volume_->close(), "close");
    volume_.reset();
  }

  const Shape shape_;
  Rng rng_;
  const uint64_t op_count_;
  Devices devices_;
  VolumeModel model_;
  SimScheduler scheduler_;
  OriginIdentity identity_;
  Uuid boot_id_, durability_id_;
  std::unique_ptr<Volume> volume_;
  std::shared_ptr<View> origin_view_;
  std::map<std::string, std::shared_ptr<View>> views_;
  std::vector<uint8_t> data_;
  const char* op_ = "";
  uint64_t clock_ = 0, name_count_ = 0;
  struct Making {
    std::string name;
    bool pinned;
    uint8_t priority;
    bool dropped;
  };
  uint64_t drops_before_ = 0;
  Uuid deleting_;
  Making* making_ = nullptr;  // the snapshot that create() waits for
  Epoch epoch_ = 0;
};

constexpr uint64_t kKiB = 1024;
// Origins end inside a chunk, some inside a block.
const Shape kShapes[] = {
    {4096, 64 * 4096 + 1536, 4096 * kKiB, 0, 4},
    {4096, 100 * 4096 + 512, 1700 * kKiB, 64 * kKiB, 4},  // fills: drops
    {8192, 20 * 8192 + 5120, 2048 * kKiB, 128 * kKiB, 0},
    {16384, 15 * 16384 + 8704, 3072 * kKiB, 64 * kKiB, 4},  // fills: drops
    {4096, 90 * 4096 + 700, 1600 * kKiB, 64 * kKiB, 5, format::OnFull::REFUSE_WRITES},
    {65536, 5 * 65536 + 512, 8192 * kKiB, 0, 0},
    {4096, 40 * 4096 + 2048, 2048 * kKiB, 64 * kKiB, 4, format::OnFull::DROP_SNAPSHOTS,
     format::DurabilityMode::SYNC},
    {16384, 1024, 2048 * kKiB, 0, 4},  // a single chunk, not whole
};

uint64_t op_total() {
  const char* tier = std::getenv("CSNAP_TIER");
  uint64_t total = tier && std::strcmp(tier, "full") == 0 ? 5'000'000 : 1'000'000;
  if (std::getenv("CSNAP_SANITIZED")) total /= 20;
  return total;
}

}  // namespace

TEST_CASE("volume model: random operations agree with a plain model in memory") {
  const uint64_t seed = seed_from_environment(0xc5a9);
  const uint64_t total = op_total();
  const uint64_t per_run = std::min<uint64_t>(total / std::size(kShapes), 31250);
  uint64_t done = 0, reopens = 0, drops = 0, refusals = 0, compared = 0, round = 0;
  while (done < total) {
    const Shape& shape = kShapes[round % std::size(kShapes)];
    const uint64_t run_seed = mix64(seed + round);
    auto run = std::make_unique<Run>(shape, run_seed, per_run);
    const std::string wrong = run->go();
    if (!wrong.empty()) {
      run.release();  // its volume was abandoned in the middle of things
      FAIL_CHECK("CSNAP_SEED=" << seed << ", round " << round << ", " << shape.chunk_bytes
                               << " byte chunks, nodes of " << shape.node_capacity << ": "
                               << wrong);
      return;
    }
    done += run->ops_done;
    reopens += run->reopens;
    drops += run->drops;
    refusals += run->refusals;
    compared += run->compared;
    round++;
  }
  MESSAGE("CSNAP_SEED=" << seed << ": " << done << " operations, " << compared
                        << " comparisons of content, " << reopens << " reopens, " << drops
                        << " snapshots dropped, " << refusals << " writes refused");
  CHECK(reopens > 0);
  CHECK(drops > 0);
  CHECK(refusals > 0);
}

// The origin's and the store's edges, and the memory of their requests, lie anywhere: what direct
// I/O makes of them must be what memory makes of them.
TEST_CASE("volume model: over files and block devices opened direct") {
  const uint64_t seed = seed_from_environment(0xd12);
  MESSAGE("CSNAP_SEED=" << seed);
  const uint64_t op_count = std::getenv("CSNAP_SANITIZED") ? 1000 : 3000;
  const Shape shape = {4096,
                       100 * 4096,
                       1700 * kKiB,
                       64 * kKiB,
                       4,
                       format::OnFull::DROP_SNAPSHOTS,
                       format::DurabilityMode::SYNC};
  const TestDirectory directory;
  const auto open = [](const std::string& path) {
    FileDeviceOptions options;
    options.direct = true;
    return FileDevice::open(path, options);
  };
  for (const unsigned long block_bytes : {0, 4096}) {
    const std::string name = directory.file(std::to_string(block_bytes));
    const std::string paths[] = {name + "-origin", name + "-store"};
    const uint64_t sizes[] = {shape.origin_bytes, shape.store_bytes};
    std::unique_ptr<TestLoop> loops[2];
    Run::Devices devices;
    Status refusal;
    for (int i = 0; i < 2; i++) {
      bool created = false;
      REQUIRE(allocate_in_full(paths[i], sizes[i], nullptr, created).ok());
      std::string path = paths[i];
      if (block_bytes != 0) {
        loops[i] = std::make_unique<TestLoop>(path, block_bytes, true);
        path = loops[i]->path();
      }
      auto opened = open(path);
      if (!opened.ok()) refusal = opened.status();
      if (opened.ok()) (i == 0 ? devices.origin : devices.store) = opened.take();
    }
    if (!devices.origin || !devices.store) {
      MESSAGE("skipped, blocks of " << block_bytes << ": " << refusal.message());
      continue;
    }
    auto run = std::make_unique<Run>(shape, seed, op_count, std::move(devices));
    const std::string wrong = run->go();
    if (!wrong.empty()) {
      run.release();
      FAIL("blocks of " << block_bytes << ": " << wrong);
    }
    CHECK(run->reopens > 0);
  }
}

}  // namespace csnap
