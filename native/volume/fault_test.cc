// Devices that fail, rot, fill up and shrink (W1, W9, W10): the volume stops loudly or answers an
// error, and never gives wrong data.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>

#include "base/crc32c.h"
#include "store/checker.h"
#include "store/superblock.h"
#include "testing/faulty_device.h"
#include "testing/scheduler.h"
#include "testing/sim_disk.h"
#include "testing/workload.h"

namespace csnap {
namespace {

constexpr uint64_t kChunk = 4096;
constexpr uint64_t kChunkSectors = kChunk / kSectorBytes;
constexpr uint64_t kSectors = 24 * kChunkSectors + 3;

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

Status make_store(Device& store, uint64_t origin_bytes,
                  format::OnFull on_full = format::OnFull::DROP_SNAPSHOTS) {
  CreateOptions create;
  create.volume_name = "fault";
  create.origin = identity();
  create.origin_bytes = origin_bytes;
  create.store_bytes = store.size_bytes();
  create.chunk_bytes = kChunk;
  create.journal_bytes = 65536;
  create.on_full = on_full;
  return create_store(store, create);
}

VolumeOptions options_for(Device& origin, Device& store, uint64_t boot) {
  VolumeOptions options;
  options.origin = &origin;
  options.store = &store;
  options.identity = identity();
  std::memcpy(options.boot_id.bytes, &boot, sizeof boot);
  options.io_threads = 2;
  options.group_chunks_max = 4;
  options.index.leaf_capacity = 4;
  options.index.inner_capacity = 4;
  return options;
}

// ---- Operations that fail ----------------------------------------------------------------------

struct FaultCase {
  size_t disk;  // 0: origin, 1: store
  DeviceOp op;
  Fault::Effect effect;
  uint64_t nth;
};

class FaultRun {
 public:
  FaultRun(const FaultCase& fault, uint64_t seed)
      : fault_(fault), rng_(seed), history_(Tokens(kSectors, 0)), host_(rng_.next()) {
    SimDisk& origin = host_.add_disk("origin", kSectors * kSectorBytes);
    SimDisk& store = host_.add_disk("store", 1536 * 1024);
    const Status status = make_store(store, origin.size_bytes());
    if (!status.ok()) failure = status.to_text();
  }

  bool hit = false, stopped = false, refused_next_open = false;
  std::string failure;

  void run() {
    bool sync_failed = false;
    Uuid id;
    const auto outcome = scheduler_.run(rng_.next(), [&] {
      VolumeOptions options = options_for(host_.disk(0), host_.disk(1), 1);
      options.on_event = [this](const VolumeEvent& event) { take_event(event); };
      Result<std::unique_ptr<Volume>> opened = Volume::open(std::move(options));
      if (!opened.ok()) wrong("open: " + opened.status().to_text());
      std::unique_ptr<Volume> volume = opened.take();
      id = volume->info().durability_id;
      host_.disk(fault_.disk).faults().add({fault_.op, fault_.effect, fault_.nth});
      WorkloadOptions work;
      work.ops = 70;
      work.chunk_sectors = kChunkSectors;
      work.may_fail = true;
      Workload workload(*volume, history_, work, rng_.next(),
                        [this](const std::string& what) { wrong(what); });
      workload.run();
      hit = host_.disk(fault_.disk).faults().hit_count() > 0;
      sync_failed = host_.disk(0).sync_failed() || host_.disk(1).sync_failed();
      // The event follows the failure, by whatever thread found it out.
      Mutex mutex;
      CondVar pause;
      MutexLock lock(mutex);
      bool agree = false;
      for (int tries = 0; tries < 1000 && !(agree && (stopped || !sync_failed)); tries++) {
        if (tries > 0) pause.wait_for(lock, 1);
        agree = volume->info().failed == stopped;
      }
      if (!agree) wrong("stopped without an event, or the reverse");
      if (sync_failed && !stopped) wrong("a sync failed and the volume goes on (W9)");
      if (!history_.acknowledged_after_stop().empty())
        wrong(history_.acknowledged_after_stop() + " was acknowledged after the stop (W9)");
      if (stopped) look_at_stopped(*volume);
    });
    if (!outcome.ok()) failure = outcome.report;
    // The volume's threads may meet the fault after the last look, while it ends.
    hit = host_.disk(fault_.disk).faults().hit_count() > 0;
    sync_failed = host_.disk(0).sync_failed() || host_.disk(1).sync_failed();
    if (failure.empty() && sync_failed && !stopped) failure = "a sync failed in silence (W9)";
    if (!failure.empty() || !hit) return;
    Rng images(rng_.next());
    // The mark is in the page cache at least; on the medium if the store can still be synced.
    reopen(host_.kill_image(images), 1, Loss::NONE, sync_failed, sync_failed, id);
    if (!failure.empty()) return;
    reopen(host_.crash_image(CrashLoss::EVERYTHING, images), 2, Loss::POWER,
           sync_failed && !host_.disk(1).sync_failed(), sync_failed, id);
    if (!failure.empty()) return;
    reopen(host_.crash_image(CrashLoss::RANDOM, images), 2, Loss::POWER,
           sync_failed && !host_.disk(1).sync_failed(), sync_failed, id);
  }

 private:
  [[noreturn]] void wrong(const std::string& what) {
    if (failure.empty()) failure = what + "\n" + host_.log_to_text();
    scheduler_.stop(what);
  }

  void take_event(const VolumeEvent& event) {
    if (event.kind == VolumeEvent::Kind::FAILED) {
      stopped = true;
      history_.stopped();
    } else if (event.kind == VolumeEvent::Kind::SNAPSHOT_DROPPED) {
      history_.was_dropped(event.name);
    }
  }

  void look_at_stopped(Volume& volume) {
    const std::shared_ptr<View> view = volume.open_origin();
    uint8_t data[kSectorBytes] = {};
    for (const IoOp op : {IoOp::READ, IoOp::WRITE, IoOp::FLUSH, IoOp::TRIM, IoOp::WRITE_ZEROES}) {
      IoRequest request;
      request.op = op;
      request.view = view.get();
      request.length = op == IoOp::FLUSH ? 0 : sizeof data;
      request.data = data;
      if (volume.run(request).code() != Code::FAILED) wrong("a stopped volume answers (W9)");
    }
    if (volume.create_snapshot("late", false, 0, {}).ok() || volume.checkpoint().ok() ||
        volume.close().ok())
      wrong("a stopped volume still works (W9)");
    if (volume.info().failure.empty()) wrong("no word about the failure");
  }

  void reopen(const HostImage& image, uint64_t boot, Loss loss, bool marked, bool sync_failed,
              const Uuid& former_id) {
    SimHost host(rng_.next(), image);
    History history = history_;
    const auto outcome = scheduler_.run(rng_.next(), [&] {
      Result<std::unique_ptr<Volume>> opened =
          Volume::open(options_for(host.disk(0), host.disk(1), boot));
      if (marked && opened.status().code() != Code::NEEDS_ACCEPT_LOSS)
        wrong("opened after a failed sync without --accept-loss (W9): " +
              opened.status().to_text());
      bool accepted = false;
      if (opened.status().code() == Code::NEEDS_ACCEPT_LOSS) {
        if (!sync_failed) wrong("NEEDS_ACCEPT_LOSS, but no sync failed");
        refused_next_open = accepted = true;
        VolumeOptions options = options_for(host.disk(0), host.disk(1), boot);
        options.accept_loss = true;
        opened = Volume::open(std::move(options));
      }
      if (!opened.ok()) wrong("open: " + opened.status().to_text());
      const Loss lost = accepted ? Loss::POWER : loss;  // what was not synced is given up
      judge(*opened.value(), history, lost);
      const VolumeInfo info = opened.value()->info();
      const bool same = info.durability_id == former_id;
      if (accepted && same) wrong("--accept-loss keeps the durability id (W9)");
      if (!accepted && boot == 1 && !same) wrong("the durability id changed without a reason");
      live_on(*opened.value(), history, loss);
    });
    if (!outcome.ok() && failure.empty()) failure = outcome.report;
    if (!failure.empty()) return;
    // What the failed term left behind in a cache must not pass for data that is safe.
    Rng images(rng_.next());
    for (const CrashLoss lost : {CrashLoss::EVERYTHING, CrashLoss::RANDOM}) {
      SimHost last(rng_.next(), host.crash_image(lost, images));
      History then = history;
      const auto looked = scheduler_.run(rng_.next(), [&] {
        Result<std::unique_ptr<Volume>> opened =
            Volume::open(options_for(last.disk(0), last.disk(1), 7));
        if (!opened.ok()) wrong("open after a second crash: " + opened.status().to_text());
        judge(*opened.value(), then, Loss::POWER);
      });
      if (!looked.ok() && failure.empty()) failure = looked.report;
      if (!failure.empty()) return;
    }
  }

  void live_on(Volume& volume, History& history, Loss loss) {
    Tokens origin;
    const std::shared_ptr<View> view = volume.open_origin();
    if (!Workload::read(volume, *view, 0, kSectors, origin).ok()) wrong("read of the origin");
    history.recovered(origin, volume.hold().attachment, loss);
    std::map<std::string, SnapshotInfo> live;
    for (const SnapshotInfo& info : volume.list_snapshots().take())
      if (info.state == format::SnapshotState::LIVE) live[info.name] = info;
    for (SnapshotNote& note : history.snapshots()) {
      if (!live.contains(note.name)) {
        note.dropped = true;
        continue;
      }
      if (note.returned == 0) note.returned = history.tick();
      note.uuid = live[note.name].uuid;
      note.failed = false;
      note.delete_called = 0;
    }
    WorkloadOptions work;
    work.ops = 30;
    work.chunk_sectors = kChunkSectors;
    work.may_refuse = true;
    Workload(volume, history, work, rng_.next(), [this](const std::string& what) {
      wrong(what);
    }).run();
  }

  void judge(Volume& volume, History& history, Loss loss) {
    Tokens origin;
    const std::shared_ptr<View> view = volume.open_origin();
    if (!Workload::read(volume, *view, 0, kSectors, origin).ok()) wrong("read of the origin");
    const std::string judged = history.judge_origin(origin, loss);
    if (!judged.empty()) wrong(judged);
    const std::string hold = history.judge_hold(volume.hold().attachment);
    if (!hold.empty()) wrong(hold);
    std::map<std::string, SnapshotInfo> live;
    Result<std::vector<SnapshotInfo>> listed = volume.list_snapshots();
    if (!listed.ok()) wrong("list");
    for (const SnapshotInfo& info : listed.value())
      if (info.state == format::SnapshotState::LIVE) live[info.name] = info;
    for (SnapshotNote& note : history.snapshots()) {
      const auto at = live.find(note.name);
      if (at == live.end()) {
        if (note.must_exist()) wrong("snapshot " + note.name + " is gone (W6)");
        continue;
      }
      Status status;
      const std::shared_ptr<Tokens> content =
          Workload::read_snapshot(volume, at->second.uuid, kSectors, status);
      if (!content) wrong("snapshot " + note.name + ": " + status.to_text());
      const std::string wrongs = history.judge_snapshot(note, *content);
      if (!wrongs.empty()) wrong(wrongs);
    }
    Result<CheckReport> report = volume.check(true, nullptr);
    // It gives way to staged writes that need the space it holds back.
    for (int tries = 0; tries < 100 && report.status().code() == Code::BUSY; tries++) {
      (void)volume.wait_reclaimed();
      report = volume.check(true, nullptr);
    }
    if (!report.ok()) wrong("check: " + report.status().to_text());
    if (!report.value().clean) wrong("check: " + report.value().problems.at(0));
  }

  const FaultCase fault_;
  Rng rng_;
  History history_;
  SimHost host_;
  SimScheduler scheduler_;
};

// Every n-th operation, until the workload has no more of them; under a sanitizer ever fewer.
void fail_each(size_t disk, DeviceOp op, Fault::Effect effect, bool stops) {
  const uint64_t seed = seed_from_environment(0xfa17);
  // Many runs have none of these.
  const bool rare = op == DeviceOp::ZERO || op == DeviceOp::DISCARD;
  const uint64_t rounds = full_tier() ? 20 : rare ? 8 : sanitized() ? 1 : 4;
  uint64_t cases = 0, stopped = 0, refused = 0;
  for (uint64_t round = 0; round < rounds; round++) {
    uint64_t missed = 0;  // in a row: each run takes its own way
    for (uint64_t nth = 1; missed < 6; nth += sanitized() ? 1 + nth / 4 : 1) {
      auto run = std::make_unique<FaultRun>(FaultCase{disk, op, effect, nth},
                                            mix64(seed + round * 1000 + nth));
      run->run();
      if (!run->failure.empty()) {
        FAIL_CHECK("CSNAP_SEED=" << seed << ", round " << round << ": " << nth << ". "
                                 << std::string(device_op_name(op)) << " of the "
                                 << std::string(disk == 0 ? "origin" : "store")
                                 << " fails: " << run->failure);
        run.release();
        return;
      }
      missed = run->hit ? 0 : missed + 1;
      if (!run->hit) continue;
      cases++;
      stopped += run->stopped;
      refused += run->refused_next_open;
    }
  }
  MESSAGE("CSNAP_SEED=" << seed << ": " << cases << " cases, " << stopped << " stops, " << refused
                        << " stores that needed --accept-loss");
  CHECK(cases > 0);
  if (stops) CHECK(stopped == cases);
}

TEST_CASE("faults: every failed sync stops the volume (W9)") {
  fail_each(0, DeviceOp::SYNC, Fault::Effect::IO_ERROR, true);
  fail_each(1, DeviceOp::SYNC, Fault::Effect::IO_ERROR, true);
}

TEST_CASE("faults: every failed or short write of the store") {
  fail_each(1, DeviceOp::WRITE, Fault::Effect::IO_ERROR, false);
  fail_each(1, DeviceOp::WRITE, Fault::Effect::SHORT_IO, false);
}

TEST_CASE("faults: every failed or short write, zero and trim of the origin") {
  fail_each(0, DeviceOp::WRITE, Fault::Effect::IO_ERROR, false);
  fail_each(0, DeviceOp::WRITE, Fault::Effect::SHORT_IO, false);
  fail_each(0, DeviceOp::WRITE, Fault::Effect::NO_SPACE, false);
  fail_each(0, DeviceOp::ZERO, Fault::Effect::IO_ERROR, false);
  fail_each(0, DeviceOp::DISCARD, Fault::Effect::IO_ERROR, false);
}

TEST_CASE("faults: every failed read") {
  fail_each(0, DeviceOp::READ, Fault::Effect::IO_ERROR, false);
  fail_each(1, DeviceOp::READ, Fault::Effect::IO_ERROR, false);
}

// A killed server's page cache is all that holds what it acknowledged: an open whose sync fails
// leaves the mark, too.
TEST_CASE("faults: a sync that fails during an open is not forgotten (W9)") {
  uint64_t cases = 0;
  for (const auto mode : {format::DurabilityMode::FLUSH, format::DurabilityMode::SYNC}) {
    for (size_t disk = 0; disk < 2; disk++) {
      for (uint64_t nth = 1; nth < 20; nth++) {
        SimScheduler scheduler;
        SimHost host(nth);
        SimDisk& origin = host.add_disk("origin", kSectors * kSectorBytes);
        SimDisk& store = host.add_disk("store", 1536 * 1024);
        REQUIRE(make_store(store, origin.size_bytes()).ok());
        Uuid id;
        const auto first = scheduler.run(nth, [&] {
          std::unique_ptr<Volume> volume = Volume::open(options_for(origin, store, 1)).take();
          id = volume->info().durability_id;
          History history(Tokens(kSectors, 0));
          WorkloadOptions work;
          work.ops = 40;
          work.chunk_sectors = kChunkSectors;
          Workload(*volume, history, work, nth, [&](const std::string& what) {
            scheduler.stop(what);
          }).run();
        });
        REQUIRE_MESSAGE(first.ok(), first.report);
        Rng rng(nth);
        SimHost second(nth, host.kill_image(rng));
        bool failed = false;
        const auto reopened = scheduler.run(nth, [&] {
          second.disk(disk).faults().add({DeviceOp::SYNC, Fault::Effect::IO_ERROR, nth});
          VolumeOptions options = options_for(second.disk(0), second.disk(1), 1);
          options.durability = mode;
          failed = !Volume::open(std::move(options)).ok();
        });
        REQUIRE_MESSAGE(reopened.ok(), reopened.report);
        if (!failed) break;
        cases++;
        SimHost third(nth, second.kill_image(rng));
        const auto last = scheduler.run(nth, [&] {
          VolumeOptions options = options_for(third.disk(0), third.disk(1), 1);
          CHECK(Volume::open(options).status().code() == Code::NEEDS_ACCEPT_LOSS);
          options.accept_loss = true;
          Result<std::unique_ptr<Volume>> opened = Volume::open(options);
          CHECK_MESSAGE(opened.ok(), opened.status().to_text());
          if (opened.ok()) CHECK_FALSE(opened.value()->info().durability_id == id);
        });
        REQUIRE_MESSAGE(last.ok(), last.report);
      }
    }
  }
  CHECK(cases >= 4);
}

}  // namespace
}  // namespace csnap
