// A volume whose grant ends (F2): at whatever moment the deadline passes, nothing more is written,
// by background work and by close() neither, nothing more is acknowledged, and what stands on the
// disks is what a server that was killed then would have left.
#include "base/gate.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <cstring>

#include "store/superblock.h"
#include "testing/faulty_device.h"
#include "testing/lapsing_device.h"
#include "testing/scheduler.h"
#include "testing/sim_disk.h"
#include "testing/workload.h"

namespace csnap {
namespace {

constexpr uint64_t kChunk = 4096;
constexpr uint64_t kChunkSectors = kChunk / kSectorBytes;
constexpr uint64_t kSectors = 24 * kChunkSectors;

bool sanitized() { return std::getenv("CSNAP_SANITIZED") != nullptr; }
bool full_tier() {
  const char* tier = std::getenv("CSNAP_TIER");
  return tier && std::strcmp(tier, "full") == 0;
}

OriginIdentity identity() {
  OriginIdentity identity;
  identity.text = "origin";
  return identity;
}

Status make_store(Device& store, uint64_t origin_bytes) {
  CreateOptions create;
  create.volume_name = "gate";
  create.origin = identity();
  create.origin_bytes = origin_bytes;
  create.store_bytes = store.size_bytes();
  create.chunk_bytes = kChunk;
  create.journal_bytes = 65536;
  return create_store(store, create);
}

VolumeOptions options_for(Device& origin, Device& store, Gate* gate) {
  VolumeOptions options;
  options.origin = &origin;
  options.store = &store;
  options.identity = identity();
  options.io_threads = 2;
  options.group_chunks_max = 4;
  options.index.leaf_capacity = 4;
  options.index.inner_capacity = 4;
  options.gate = gate;
  return options;
}

bool marked(Device& store, uint8_t mark) {
  Result<std::unique_ptr<format::Superblock>> found = read_superblock(store);
  REQUIRE_MESSAGE(found.ok(), found.status().to_text());
  return (found.value()->state & mark) != 0;
}

// ---- One volume on memory, real threads --------------------------------------------------------

struct Rig {
  Rig() {
    REQUIRE(make_store(store, origin.size_bytes()).ok());
    gate.extend(Lapse::kDeadlineNs);
  }
  void open(format::DurabilityMode mode = format::DurabilityMode::FLUSH) {
    VolumeOptions options = options_for(lapsing_origin, lapsing_store, &gate);
    options.durability = mode;
    options.on_event = [this](const VolumeEvent& event) {
      if (event.kind != VolumeEvent::Kind::FAILED) return;
      MutexLock lock(mutex);
      stops.push_back(event.code);
    };
    Result<std::unique_ptr<Volume>> opened = Volume::open(std::move(options));
    REQUIRE_MESSAGE(opened.ok(), opened.status().to_text());
    volume = opened.take();
  }
  Status io(IoOp op, uint64_t offset, uint64_t length, uint8_t value = 0) {
    std::vector<uint8_t> data(length, value);
    const std::shared_ptr<View> view = volume->open_origin();
    IoRequest request;
    request.op = op;
    request.view = view.get();
    request.offset = offset;
    request.length = length;
    request.data = data.data();
    return volume->run(request);
  }
  void check_stopped() {
    CHECK(volume->info().failed);
    CHECK(volume->info().fenced);
    CHECK(volume->info().gate_refusals > 0);
    MutexLock lock(mutex);
    REQUIRE(stops.size() == 1);
    CHECK(stops[0] == Code::FENCED);
  }

  Lapse lapse;
  Gate gate{lapse.clock()};
  MemoryDevice origin{"origin", kSectors*kSectorBytes}, store{"store", 1536 * 1024};
  FaultyDevice faulty_store{store, 1};
  LapsingDevice lapsing_origin{origin, lapse}, lapsing_store{faulty_store, lapse};
  Mutex mutex;
  std::vector<Code> stops;
  std::unique_ptr<Volume> volume;
};

TEST_CASE("gate: a volume whose grant ended quietly is closed without a write") {
  Rig rig;
  rig.open();
  CHECK(rig.io(IoOp::WRITE, 0, 4096, 1).ok());
  REQUIRE(rig.volume->create_snapshot("s", false, 0, {}).ok());
  CHECK(rig.io(IoOp::WRITE, 0, 4096, 2).ok());
  rig.lapse.lapse();
  const std::vector<uint8_t> origin = rig.origin.bytes(), store = rig.store.bytes();
  const Status closed = rig.volume->close();
  CHECK(closed.code() == Code::FENCED);
  CHECK(closed.message().find("grant") != std::string::npos);
  rig.check_stopped();
  CHECK(rig.lapse.late == 0);
  CHECK(rig.origin.bytes() == origin);
  CHECK(rig.store.bytes() == store);
  CHECK(!marked(rig.store, format::kStateClean));
  CHECK(!marked(rig.store, format::kStateSyncFailed));
}

TEST_CASE(
    "gate: a fenced volume stays stopped when the grant comes back, and close() writes nothing") {
  Rig rig;
  rig.open();
  CHECK(rig.io(IoOp::WRITE, 0, 4096, 1).ok());
  rig.lapse.lapse();
  CHECK(rig.io(IoOp::WRITE, 0, 4096, 2).code() == Code::FENCED);
  rig.check_stopped();
  rig.gate.extend(2 * Lapse::kDeadlineNs);
  const std::vector<uint8_t> origin = rig.origin.bytes(), store = rig.store.bytes();
  for (const IoOp op : {IoOp::READ, IoOp::WRITE, IoOp::TRIM, IoOp::WRITE_ZEROES})
    CHECK(rig.io(op, 0, 4096, 3).code() == Code::FENCED);
  CHECK(rig.io(IoOp::FLUSH, 0, 0).code() == Code::FENCED);
  CHECK(rig.volume->create_snapshot("s", false, 0, {}).status().code() == Code::FENCED);
  CHECK(rig.volume->checkpoint().code() == Code::FENCED);
  CHECK(rig.volume->close().code() == Code::FENCED);
  CHECK(rig.origin.bytes() == origin);
  CHECK(rig.store.bytes() == store);
  CHECK(origin[0] == 1);
}

TEST_CASE("gate: the deadline passes at every change of a close: no later one is issued") {
  uint64_t cases = 0;
  for (uint64_t nth = 1;; nth++) {
    CAPTURE(nth);
    Rig rig;
    rig.open();
    REQUIRE(rig.volume->create_snapshot("s", false, 0, {}).ok());
    CHECK(rig.io(IoOp::WRITE, 0, 4096, 1).ok());
    rig.lapse.at_change = rig.lapse.changes + nth;
    const Status closed = rig.volume->close();
    CHECK(rig.lapse.late == 0);
    if (!rig.lapse.lapsed()) {
      CHECK(closed.ok());
      CHECK(marked(rig.store, format::kStateClean));
      break;
    }
    CHECK(closed.code() == Code::FENCED);
    CHECK(!marked(rig.store, format::kStateSyncFailed));
    rig.check_stopped();
    cases++;
  }
  CHECK(cases > 3);
}

// The mark of W9 would cost the next server its durability id for nothing.
TEST_CASE("gate: a grant that ends during a sync leaves no mark of a failed sync") {
  Rig rig;
  std::atomic<bool> late{false};
  // Closed for one look only: the gate does not keep the mark off.
  Gate gate([&late] { return late.exchange(false) ? Lapse::kDeadlineNs : 0; });
  gate.extend(Lapse::kDeadlineNs);
  class LateSync final : public Device {
   public:
    LateSync(Device& below, std::atomic<bool>& late) : below_(below), late_(late) {}
    uint64_t size_bytes() const override { return below_.size_bytes(); }
    const std::string& name() const override { return below_.name(); }
    Status read(uint64_t offset, void* data, size_t length) override {
      return below_.read(offset, data, length);
    }
    Status write(uint64_t offset, const void* data, size_t length) override {
      return below_.write(offset, data, length);
    }
    Status sync() override {
      late_ = true;
      return below_.sync();
    }
    Status zero(uint64_t offset, uint64_t length, ZeroMode mode) override {
      return below_.zero(offset, length, mode);
    }
    Status discard(uint64_t offset, uint64_t length) override {
      return below_.discard(offset, length);
    }

   private:
    Device& below_;
    std::atomic<bool>& late_;
  } store(rig.store, late);
  const std::vector<uint8_t> before = rig.store.bytes();
  const Status opened = Volume::open(options_for(rig.origin, store, &gate)).status();
  CHECK(opened.code() == Code::FENCED);
  CHECK(rig.store.bytes() == before);
  CHECK(!marked(rig.store, format::kStateSyncFailed));
}

TEST_CASE("gate: a sync that fails past the deadline is a failed disk's (W9)") {
  Rig rig;
  rig.open();
  CHECK(rig.io(IoOp::WRITE, 0, 4096, 1).ok());
  REQUIRE(rig.volume->create_snapshot("s", false, 0, {}).ok());
  rig.faulty_store.add_fault({DeviceOp::SYNC, Fault::Effect::IO_ERROR});
  // The overwrite's copy-out is a write of data and one of its record, then the sync.
  rig.lapse.at_change = rig.lapse.changes + 3;
  CHECK(rig.io(IoOp::WRITE, 0, 4096, 2).code() == Code::FAILED);
  CHECK(rig.lapse.lapsed());
  CHECK(rig.lapse.changes == rig.lapse.at_change);  // the mark is one change too late
  CHECK(!marked(rig.store, format::kStateSyncFailed));
  CHECK(rig.volume->close().code() == Code::FAILED);
  CHECK(!rig.volume->info().fenced);
  CHECK(rig.lapse.late == 0);
}

TEST_CASE("gate: an open past the deadline stamps nothing") {
  Rig rig;
  rig.lapse.lapse();
  const std::vector<uint8_t> store = rig.store.bytes();
  const Status opened =
      Volume::open(options_for(rig.lapsing_origin, rig.lapsing_store, &rig.gate)).status();
  CHECK(opened.code() == Code::FENCED);
  CHECK(rig.store.bytes() == store);
}

TEST_CASE("gate: a look past the deadline works: it changes nothing") {
  Rig rig;
  rig.lapse.lapse();
  VolumeOptions options = options_for(rig.lapsing_origin, rig.lapsing_store, &rig.gate);
  options.look_only = true;
  Result<std::unique_ptr<Volume>> opened = Volume::open(std::move(options));
  REQUIRE_MESSAGE(opened.ok(), opened.status().to_text());
  rig.volume = opened.take();
  CHECK(rig.io(IoOp::READ, 0, 4096).ok());
  CHECK(rig.volume->close().ok());
}

// ---- Every moment of a life, single-stepped ----------------------------------------------------

class Life {
 public:
  explicit Life(uint64_t seed) : rng_(seed), host_(rng_.next()), history_(Tokens(kSectors, 0)) {
    host_.add_disk("origin", kSectors * kSectorBytes);
    host_.add_disk("store", 1536 * 1024);
    const Status status = make_store(host_.disk(1), host_.disk(0).size_bytes());
    if (!status.ok()) failure = status.to_text();
  }

  std::string failure;

  // The deadline passes in the `nth` change; false: there are not so many.
  bool run(uint64_t nth) {
    lapse_.at_change = nth;
    gate_.extend(Lapse::kDeadlineNs);
    const auto outcome = scheduler_.run(rng_.next(), [this] { live(); });
    if (!outcome.ok() && failure.empty()) failure = outcome.report;
    if (failure.empty() && lapse_.late > 0)
      failure = std::to_string(lapse_.late) + " changes were issued past the deadline\n" +
                host_.log_to_text();
    if (failure.empty()) look_at_what_is_left();
    return lapse_.lapsed();
  }

 private:
  [[noreturn]] void wrong(const std::string& what) {
    if (failure.empty()) failure = what + "\n" + host_.log_to_text();
    scheduler_.stop(what);
  }

  void live() {
    LapsingDevice origin(host_.disk(0), lapse_), store(host_.disk(1), lapse_);
    VolumeOptions options = options_for(origin, store, &gate_);
    bool stopped = false;
    options.on_event = [&](const VolumeEvent& event) {
      if (event.kind == VolumeEvent::Kind::SNAPSHOT_DROPPED) history_.was_dropped(event.name);
      if (event.kind != VolumeEvent::Kind::FAILED) return;
      if (event.code != Code::FENCED) wrong("stopped for another reason: " + event.message);
      stopped = true;
      history_.stopped();
    };
    Result<std::unique_ptr<Volume>> opened = Volume::open(std::move(options));
    if (!opened.ok()) {
      if (!lapse_.lapsed() || opened.status().code() != Code::FENCED)
        wrong("open: " + opened.status().to_text());
      return;
    }
    std::unique_ptr<Volume> volume = opened.take();
    WorkloadOptions work;
    work.ops = 50;
    work.chunk_sectors = kChunkSectors;
    work.may_fail = true;
    Workload(*volume, history_, work, rng_.next(), [this](const std::string& what) {
      wrong(what);
    }).run();
    if (!history_.acknowledged_after_stop().empty())
      wrong(history_.acknowledged_after_stop() + " was acknowledged after the grant had ended");
    stopped_before_close_ = stopped;
    const Status closed = volume->close();
    if (lapse_.lapsed() && (closed.code() != Code::FENCED || !stopped || !volume->info().fenced))
      wrong("closed past the grant: " + closed.to_text());
    if (!lapse_.lapsed() && !closed.ok()) wrong("close: " + closed.to_text());
  }

  // The next server, on the same host's caches.
  void look_at_what_is_left() {
    SimHost host(rng_.next(), host_.kill_image(rng_));
    const auto outcome = scheduler_.run(rng_.next(), [&] {
      Result<std::unique_ptr<Volume>> opened =
          Volume::open(options_for(host.disk(0), host.disk(1), nullptr));
      if (!opened.ok()) wrong("the next server's open: " + opened.status().to_text());
      Volume& volume = *opened.value();
      if (!lapse_.lapsed() && !volume.info().clean) wrong("not marked clean");
      if (stopped_before_close_ && volume.info().clean) wrong("marked clean past the grant");
      Tokens origin;
      const std::shared_ptr<View> view = volume.open_origin();
      if (!Workload::read(volume, *view, 0, kSectors, origin).ok()) wrong("read of the origin");
      const std::string judged = history_.judge_origin(origin, Loss::NONE);
      if (!judged.empty()) wrong(judged);
      Result<CheckReport> report = volume.check(true, nullptr);
      // It gives way to staged writes that need the space it holds back.
      for (int tries = 0; tries < 100 && report.status().code() == Code::BUSY; tries++) {
        (void)volume.wait_reclaimed();
        report = volume.check(true, nullptr);
      }
      if (!report.ok()) wrong("check: " + report.status().to_text());
      if (!report.value().clean) wrong("check: " + report.value().problems.at(0));
    });
    if (!outcome.ok() && failure.empty()) failure = outcome.report;
  }

  Rng rng_;
  SimHost host_;
  History history_;
  SimScheduler scheduler_;
  Lapse lapse_;
  Gate gate_{lapse_.clock()};
  bool stopped_before_close_ = false;
};

TEST_CASE("gate: the deadline passes at every change of a volume's life (F2)") {
  const uint64_t seed = seed_from_environment(0xf2);
  const uint64_t rounds = sanitized() ? 1 : full_tier() ? 40 : 6;
  uint64_t cases = 0;
  for (uint64_t round = 0; round < rounds; round++) {
    uint64_t missed = 0;  // in a row: each run takes its own way
    for (uint64_t nth = 1; missed < 4; nth += sanitized() ? 5 : 1) {
      auto life = std::make_unique<Life>(mix64(seed + round * 1000 + nth));
      const bool lapsed = life->run(nth);
      if (!life->failure.empty()) {
        FAIL_CHECK("CSNAP_SEED=" << seed << ", round " << round << ", change " << nth << ": "
                                 << life->failure);
        // A run that was stopped leaves frames behind that refer to it.
        (void)life.release();
        return;
      }
      missed = lapsed ? 0 : missed + 1;
      cases += lapsed;
    }
  }
  MESSAGE("CSNAP_SEED=" << seed << ": " << cases << " cases");
  CHECK(cases > 20);
}

}  // namespace
}  // namespace csnap
