// Single races, tried under very many schedules: what random histories come by too seldom.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "base/sync.h"
#include "testing/rng.h"
#include "testing/scheduler.h"
#include "testing/sim_disk.h"
#include "volume/volume.h"

namespace csnap {
namespace {

constexpr uint64_t kChunk = 4096;

Status io(Volume& volume, View& view, IoOp op, void* data, uint64_t offset = 0,
          uint64_t length = kChunk) {
  IoRequest request;
  request.op = op;
  request.view = &view;
  request.offset = offset;
  request.length = op == IoOp::FLUSH ? 0 : length;
  request.data = data;
  return volume.run(request);
}

uint64_t schedules() {
  if (const char* given = std::getenv("CSNAP_SCHEDULES")) return std::strtoull(given, nullptr, 0);
  if (std::getenv("CSNAP_SANITIZED")) return 200;
  const char* tier = std::getenv("CSNAP_TIER");
  return tier && std::strcmp(tier, "full") == 0 ? 40'000 : 5'000;
}

// A host with an empty volume on an origin of two chunks.
struct Host {
  explicit Host(uint64_t seed) : host(seed) {
    host.add_disk("origin", 2 * kChunk);
    host.add_disk("store", 1536 * 1024);
    CreateOptions create;
    create.volume_name = "race";
    create.origin.text = "origin";
    create.origin_bytes = host.disk(0).size_bytes();
    create.store_bytes = host.disk(1).size_bytes();
    create.chunk_bytes = kChunk;
    create.journal_bytes = 65536;
    REQUIRE(create_store(host.disk(1), create).ok());
  }
  SimHost host;
};

Result<std::unique_ptr<Volume>> open(
    SimHost& host, uint8_t boot = 1,
    format::DurabilityMode durability = format::DurabilityMode::FLUSH, bool one_by_one = false) {
  VolumeOptions options;
  if (one_by_one) options.group_chunks_max = 1;
  options.origin = &host.disk(0);
  options.store = &host.disk(1);
  options.identity.text = "origin";
  options.durability = durability;
  options.io_threads = 1;
  options.boot_id.bytes[0] = boot;
  return Volume::open(std::move(options));
}

// Of a request that nobody waits for in run().
class End {
 public:
  void reached() {
    MutexLock lock(mutex_);
    reached_ = true;
    changed_.notify_all();
  }
  void wait() {
    MutexLock lock(mutex_);
    while (!reached_) changed_.wait(lock);
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool reached_ = false;
};

}  // namespace

TEST_CASE("races: a snapshot that is being deleted gives its own content or none (W6)") {
  const uint64_t seed = seed_from_environment(0x4ace);
  SimScheduler scheduler;
  uint64_t read = 0, gone = 0;
  for (uint64_t number = 0; number < schedules(); number++) {
    Host made(mix64(seed + number));
    const auto outcome = scheduler.run(mix64(seed + number), [&] {
      std::unique_ptr<Volume> volume = open(made.host).take();
      std::vector<uint8_t> before(kChunk, 1), after(kChunk, 2);
      const std::shared_ptr<View> live = volume->open_origin();
      if (!io(*volume, *live, IoOp::WRITE, before.data()).ok()) scheduler.stop("write");
      const SnapshotInfo snapshot = volume->create_snapshot("s", false, 0, {}).take();
      const std::shared_ptr<View> view = volume->open_snapshot(snapshot.uuid).take();
      Thread reader, writer, deleter;
      reader.start("reader", [&] {
        for (int i = 0; i < 4; i++) {
          std::vector<uint8_t> data(kChunk);
          const Status status = io(*volume, *view, IoOp::READ, data.data());
          if (status.code() == Code::SNAPSHOT_DELETED) {
            gone++;
            return;
          }
          if (!status.ok()) scheduler.stop(status.to_text());
          if (data != before) scheduler.stop("the snapshot gave what was written after it");
          read++;
        }
      });
      writer.start("writer", [&] {
        for (int i = 0; i < 2; i++)
          if (!io(*volume, *live, IoOp::WRITE, after.data()).ok()) scheduler.stop("write");
      });
      deleter.start("deleter", [&] {
        if (!volume->delete_snapshot(snapshot.uuid).ok()) scheduler.stop("delete");
      });
      reader.join();
      writer.join();
      deleter.join();
    });
    REQUIRE_MESSAGE(outcome.ok(),
                    "CSNAP_SEED=" << seed << " (schedule " << number << "): " << outcome.report);
  }
  CHECK(read > 0);
  CHECK(gone > 0);
}

// A write goes in place as soon as the only snapshot that its chunk was owed to is deleted, while
// the copy that was made for it may not be on the medium yet.
TEST_CASE("races: a crash while snapshots come and go loses nothing that counts (W1)") {
  const uint64_t seed = seed_from_environment(0x4ad0);
  SimScheduler scheduler, inner;
  uint64_t crashes = 0, dropped = 0;
  for (uint64_t number = 0; number < schedules() / 5; number++) {
    Host made(mix64(seed + number));
    Rng rng(mix64(seed + number));
    const auto outcome = scheduler.run(rng.next(), [&] {
      std::unique_ptr<Volume> volume = open(made.host).take();
      const std::shared_ptr<View> live = volume->open_origin();
      std::vector<uint8_t> before(kChunk, 1);
      if (!io(*volume, *live, IoOp::WRITE, before.data()).ok()) scheduler.stop("write");
      const Uuid first = volume->create_snapshot("first", false, 0, {}).take().uuid;
      made.host.set_observer([&](const SimEvent&) {
        SimHost second(rng.next(), made.host.crash_image(CrashLoss::RANDOM, rng));
        const auto opened = inner.run(rng.next(), [&] {
          Result<std::unique_ptr<Volume>> again = open(second, 2);
          if (!again.ok()) inner.stop(again.status().to_text());
          const VolumeInfo info = again.value()->info();
          if (info.lost_entries > 0) inner.stop("a plain crash lost snapshot data");
          if (!again.value()->check(true, nullptr).take().clean) inner.stop("check");
          dropped += info.dropped_entries;
        });
        REQUIRE_MESSAGE(opened.ok(),
                        "CSNAP_SEED=" << seed << " (schedule " << number << "): " << opened.report);
        crashes++;
      });
      Thread writer;
      writer.start("writer", [&] {
        for (uint8_t i = 2; i < 5; i++) {
          std::vector<uint8_t> data(kChunk, i);
          if (!io(*volume, *live, IoOp::WRITE, data.data()).ok()) scheduler.stop("write");
        }
      });
      if (!volume->delete_snapshot(first).ok()) scheduler.stop("delete");
      if (!volume->create_snapshot("second", false, 0, {}).ok()) scheduler.stop("create");
      writer.join();
      made.host.set_observer(nullptr);
    });
    REQUIRE_MESSAGE(outcome.ok(), outcome.report);
  }
  CHECK(crashes > 1000);
  CHECK(dropped > 0);
}

TEST_CASE("races: what a snapshot holds is durable when its creation returns (W6)") {
  const uint64_t seed = seed_from_environment(0x4acf);
  SimScheduler scheduler;
  uint64_t differ = 0;
  for (uint64_t number = 0; number < schedules() / 2; number++) {
    Host made(mix64(seed + number));
    std::vector<uint8_t> content(kChunk);
    HostImage image;
    Rng rng(number);
    const auto before = scheduler.run(mix64(seed + number), [&] {
      std::unique_ptr<Volume> volume = open(made.host).take();
      const std::shared_ptr<View> live = volume->open_origin();
      Thread writer;
      writer.start("writer", [&] {
        for (uint8_t i = 1; i < 8; i++) {
          std::vector<uint8_t> data(kChunk, i);
          if (!io(*volume, *live, IoOp::WRITE, data.data()).ok()) scheduler.stop("write");
        }
      });
      const SnapshotInfo snapshot = volume->create_snapshot("s", false, 0, {}).take();
      image = made.host.crash_image(CrashLoss::EVERYTHING, rng);
      const std::shared_ptr<View> view = volume->open_snapshot(snapshot.uuid).take();
      if (!io(*volume, *view, IoOp::READ, content.data()).ok()) scheduler.stop("read");
      writer.join();
    });
    REQUIRE_MESSAGE(before.ok(), before.report);
    SimHost second(number, image);
    const auto after = scheduler.run(number, [&] {
      std::unique_ptr<Volume> volume = open(second, 2).take();
      const SnapshotInfo snapshot = volume->list_snapshots().take().at(0);
      std::vector<uint8_t> data(kChunk), live(kChunk);
      const std::shared_ptr<View> view = volume->open_snapshot(snapshot.uuid).take();
      if (!io(*volume, *view, IoOp::READ, data.data()).ok()) scheduler.stop("read");
      if (data != content)
        scheduler.stop("the snapshot held " + std::to_string(content[0]) + " before the crash, " +
                       std::to_string(data[0]) + " after it");
      differ += data[0] != 0;
    });
    REQUIRE_MESSAGE(after.ok(),
                    "CSNAP_SEED=" << seed << " (schedule " << number << "): " << after.report);
  }
  CHECK(differ > 0);
}

// Large writes park or go in place, small ones are staged, and snapshots of the same two chunks
// come and go: what a snapshot gave once it gives for ever, whoever copied it out or applied it
// since.
TEST_CASE("races: what a snapshot holds stays while its chunks are staged and applied (W6, W7)") {
  const uint64_t seed = seed_from_environment(0x4ad1);
  SimScheduler scheduler;
  uint64_t staged = 0, parked = 0, applied = 0;
  for (uint64_t number = 0; number < schedules(); number++) {
    Host made(mix64(seed + number));
    const auto outcome = scheduler.run(mix64(seed + number), [&] {
      const auto mode =
          number % 2 == 0 ? format::DurabilityMode::FLUSH : format::DurabilityMode::SYNC;
      std::unique_ptr<Volume> volume = open(made.host, 1, mode).take();
      const std::shared_ptr<View> live = volume->open_origin();
      const auto access = [&](View& view, IoOp op, uint64_t offset, std::vector<uint8_t>& data) {
        IoRequest request;
        request.op = op;
        request.view = &view;
        request.offset = offset;
        request.length = data.size();
        request.data = data.data();
        if (!volume->run(request).ok()) scheduler.stop("a request failed");
      };
      const auto write = [&](uint64_t offset, uint64_t length, uint8_t value) {
        std::vector<uint8_t> data(length, value);
        access(*live, IoOp::WRITE, offset, data);
      };
      const auto content = [&](View& view) {
        std::vector<uint8_t> data(2 * kChunk);
        access(view, IoOp::READ, 0, data);
        return data;
      };
      write(0, 2 * kChunk, 1);
      const Uuid first = volume->create_snapshot("first", false, 0, {}).take().uuid;
      Thread large, small;
      large.start("large", [&] {
        for (uint8_t i = 0; i < 3; i++) write(0, 2 * kChunk, static_cast<uint8_t>(10 + i));
      });
      small.start("small", [&] {
        for (uint8_t i = 0; i < 6; i++)
          write(kChunk + kSectorBytes * (i % 2), kSectorBytes, static_cast<uint8_t>(20 + i));
      });
      if (number % 3 != 0 && !volume->delete_snapshot(first).ok()) scheduler.stop("delete");
      std::vector<std::pair<std::shared_ptr<View>, std::vector<uint8_t>>> kept;
      const auto check = [&] {
        for (const auto& [view, before] : kept)
          if (content(*view) != before) scheduler.stop("a snapshot has changed");
      };
      for (const char* name : {"second", "third"}) {
        const Uuid uuid = volume->create_snapshot(name, false, 0, {}).take().uuid;
        const std::shared_ptr<View> view = volume->open_snapshot(uuid).take();
        kept.emplace_back(view, content(*view));
        check();
      }
      large.join();
      small.join();
      check();
      const std::vector<uint8_t> now = content(*live);
      const VolumeInfo info = volume->info();
      if (!volume->checkpoint().ok()) scheduler.stop("checkpoint");
      if (content(*live) != now) scheduler.stop("the origin has changed while it was applied");
      check();
      staged += info.staged;
      parked += info.parked;
      applied += volume->info().applied;
    });
    REQUIRE_MESSAGE(outcome.ok(),
                    "CSNAP_SEED=" << seed << " (schedule " << number << "): " << outcome.report);
  }
  CHECK(staged > 0);
  CHECK(parked > 0);
  CHECK(applied > 0);
}

// The committer goes to work for a parked write, a chunk at a time, the second ahead; before that
// one is looked at, the snapshot that it was owed to is gone, a younger one there, and a write of
// after it staged.
TEST_CASE("races: a chunk is staged for a snapshot that the committer has not heard of (W7)") {
  const uint64_t seed = seed_from_environment(0x4ad2);
  SimScheduler scheduler;
  uint64_t staged = 0;
  for (uint64_t number = 0; number < schedules() / 5; number++) {
    Host made(mix64(seed + number));
    const auto outcome = scheduler.run(mix64(seed + number), [&] {
      std::unique_ptr<Volume> volume =
          open(made.host, 1, format::DurabilityMode::FLUSH, true).take();
      const std::shared_ptr<View> live = volume->open_origin();
      std::vector<uint8_t> before(kChunk, 1), parked(2 * kChunk, 2), small(kSectorBytes, 3);
      if (!io(*volume, *live, IoOp::WRITE, before.data()).ok()) scheduler.stop("write");
      const Uuid first = volume->create_snapshot("first", false, 0, {}).take().uuid;
      End end;
      IoRequest large;
      large.op = IoOp::WRITE;
      large.view = live.get();
      large.length = parked.size();
      large.data = parked.data();
      large.owner = &end;
      large.done = [](IoRequest& request) { static_cast<End*>(request.owner)->reached(); };
      if (volume->submit(large, true)) end.reached();
      if (!volume->delete_snapshot(first).ok()) scheduler.stop("delete");
      const Uuid second = volume->create_snapshot("second", false, 0, {}).take().uuid;
      IoRequest late;
      late.op = IoOp::WRITE;
      late.view = live.get();
      late.offset = kChunk;
      late.length = small.size();
      late.data = small.data();
      if (!volume->run(late).ok()) scheduler.stop("write");
      end.wait();
      staged += volume->info().staged;
      const std::shared_ptr<View> view = volume->open_snapshot(second).take();
      for (const bool applied : {false, true}) {
        if (applied && !volume->checkpoint().ok()) scheduler.stop("checkpoint");
        std::vector<uint8_t> data(2 * kChunk);
        IoRequest read;
        read.view = view.get();
        read.length = data.size();
        read.data = data.data();
        if (!volume->run(read).ok()) scheduler.stop("read");
        if (std::count(data.begin(), data.end(), 3) > 0)
          scheduler.stop("the snapshot holds what was written after it");
      }
    });
    REQUIRE_MESSAGE(outcome.ok(),
                    "CSNAP_SEED=" << seed << " (schedule " << number << "): " << outcome.report);
  }
  CHECK(staged > 0);
}

// Each is given up when its own tries are over, whatever the other one is at by then.
TEST_CASE(
    "races: two chunks that can't be read are lost to the snapshot, one after the other (W1)") {
  const uint64_t seed = seed_from_environment(0x4ad4);
  SimScheduler scheduler;
  for (uint64_t number = 0; number < 20; number++) {
    Host made(mix64(seed + number));
    const auto outcome = scheduler.run(mix64(seed + number), [&] {
      std::unique_ptr<Volume> volume = open(made.host).take();
      const std::shared_ptr<View> live = volume->open_origin();
      std::vector<uint8_t> data(2 * kChunk, 1);
      IoRequest request;
      request.op = IoOp::WRITE;
      request.view = live.get();
      request.length = data.size();
      request.data = data.data();
      if (!volume->run(request).ok()) scheduler.stop("write");
      if (!volume->create_snapshot("s", false, 0, {}).ok()) scheduler.stop("create");
      Mutex mutex;
      CondVar pause;
      MutexLock lock(mutex);
      for (const uint64_t chunk : {0, 1}) {
        Fault fault;
        fault.op = DeviceOp::READ;
        fault.times = Fault::kForever;
        fault.begin_offset = chunk * kChunk;
        fault.end_offset = (chunk + 1) * kChunk;
        made.host.disk(0).faults().add(fault);
        request.offset = chunk * kChunk;
        request.length = kSectorBytes;
        if (!volume->run(request).ok()) scheduler.stop("first write");
        if (chunk == 0) pause.wait_for(lock, 5300);
      }
      for (int seconds = 0; seconds < 60 && volume->info().staged_bytes > 0; seconds++)
        pause.wait_for(lock, 1000);
      if (volume->info().staged_bytes > 0) scheduler.stop("what is staged stays for ever");
      made.host.disk(0).faults().clear();
    });
    REQUIRE_MESSAGE(outcome.ok(),
                    "CSNAP_SEED=" << seed << " (schedule " << number << "): " << outcome.report);
  }
}

TEST_CASE("races: what was flushed, staged or in place, survives the loss of the host (W3)") {
  const uint64_t seed = seed_from_environment(0x4ad3);
  SimScheduler scheduler;
  uint64_t staged = 0, in_place = 0;
  for (uint64_t number = 0; number < schedules() / 10; number++) {
    Host made(mix64(seed + number));
    HostImage image;
    Rng rng(number);
    uint8_t flushed = 0;
    const auto read = [&](Volume& volume) {
      std::vector<uint8_t> data(kChunk);
      const std::shared_ptr<View> live = volume.open_origin();
      if (!io(volume, *live, IoOp::READ, data.data()).ok()) scheduler.stop("read");
      return data[0];
    };
    const auto before = scheduler.run(mix64(seed + number), [&] {
      std::unique_ptr<Volume> volume = open(made.host).take();
      const std::shared_ptr<View> live = volume->open_origin();
      std::vector<uint8_t> old(kChunk, 100);
      if (!io(*volume, *live, IoOp::WRITE, old.data()).ok()) scheduler.stop("write");
      if (number % 2 == 0 && !volume->create_snapshot("s", false, 0, {}).ok())
        scheduler.stop("create");
      Thread writer;
      std::atomic<uint8_t> done{0};
      writer.start("writer", [&] {
        for (uint8_t i = 1; i < 5; i++) {
          std::vector<uint8_t> data(kSectorBytes, i);
          if (!io(*volume, *live, IoOp::WRITE, data.data(), 0, data.size()).ok())
            scheduler.stop("write");
          done = i;
        }
      });
      while (done == 0) yield_point();
      flushed = done;
      if (!io(*volume, *live, IoOp::FLUSH, nullptr).ok()) scheduler.stop("flush");
      image = made.host.crash_image(CrashLoss::EVERYTHING, rng);
      const VolumeInfo info = volume->info();
      (info.staged > 0 ? staged : in_place)++;
      writer.join();
    });
    REQUIRE_MESSAGE(before.ok(),
                    "CSNAP_SEED=" << seed << " (schedule " << number << "): " << before.report);
    SimHost second(number, image);
    const auto after = scheduler.run(number, [&] {
      std::unique_ptr<Volume> volume = open(second, 2).take();
      const uint8_t found = read(*volume);
      if (found < flushed || found >= 100)
        scheduler.stop("found " + std::to_string(found) + ", flushed was " +
                       std::to_string(flushed));
    });
    REQUIRE_MESSAGE(after.ok(),
                    "CSNAP_SEED=" << seed << " (schedule " << number << "): " << after.report);
  }
  CHECK(staged > 0);
  CHECK(in_place > 0);
}

// What is staged above a chunk's older content has an older record than much of what is applied
// beside that content. No record may say of it that it is applied, too.
TEST_CASE("races: two generations of a chunk are staged and the server is lost (W6, W8)") {
  const uint64_t seed = seed_from_environment(0x4ad5);
  SimScheduler scheduler;
  uint64_t staged = 0;
  for (uint64_t number = 0; number < schedules() / 10; number++) {
    Host made(mix64(seed + number));
    HostImage image;
    Rng rng(number);
    std::vector<Uuid> snapshots;
    const auto write = [&](Volume& volume, View& view, ChunkIndex chunk, uint8_t fill) {
      std::vector<uint8_t> data(kSectorBytes, fill);
      if (!io(volume, view, IoOp::WRITE, data.data(), chunk * kChunk, data.size()).ok())
        scheduler.stop("write");
    };
    const auto snapshot = [&](Volume& volume, const char* name) {
      Result<SnapshotInfo> info = volume.create_snapshot(name, false, 0, {});
      if (!info.ok()) scheduler.stop("create");
      snapshots.push_back(info.value().uuid);
    };
    const auto before = scheduler.run(mix64(seed + number), [&] {
      std::unique_ptr<Volume> volume = open(made.host).take();
      const std::shared_ptr<View> live = volume->open_origin();
      for (const ChunkIndex chunk : {0, 1}) write(*volume, *live, chunk, 1);
      snapshot(*volume, "a");
      write(*volume, *live, 0, 2);
      snapshot(*volume, "b");
      write(*volume, *live, 0, 3);
      write(*volume, *live, 1, 4);
      if (!io(*volume, *live, IoOp::FLUSH, nullptr).ok()) scheduler.stop("flush");
      Thread drainer;
      drainer.start("drainer", [&] { (void)volume->checkpoint(); });
      for (uint64_t left = rng.below(600); left > 0; left--) yield_point();
      image =
          made.host.crash_image(number % 2 == 0 ? CrashLoss::EVERYTHING : CrashLoss::NOTHING, rng);
      if (volume->info().staged_bytes > 0) staged++;
      drainer.join();
    });
    REQUIRE_MESSAGE(before.ok(),
                    "CSNAP_SEED=" << seed << " (schedule " << number << "): " << before.report);
    SimHost second(number, image);
    const auto after = scheduler.run(number, [&] {
      std::unique_ptr<Volume> volume = open(second, 2).take();
      const auto content = [&](View& view) {
        std::vector<uint8_t> data(2 * kChunk);
        if (!io(*volume, view, IoOp::READ, data.data(), 0, data.size()).ok())
          scheduler.stop("read");
        return std::vector<uint8_t>{data[0], data[kChunk]};
      };
      const auto check = [&] {
        if (content(*volume->open_origin()) != std::vector<uint8_t>{3, 4})
          scheduler.stop("the origin has lost writes");
        if (content(*volume->open_snapshot(snapshots[0]).take()) != std::vector<uint8_t>{1, 1})
          scheduler.stop("the first snapshot has changed");
        if (content(*volume->open_snapshot(snapshots[1]).take()) != std::vector<uint8_t>{2, 1})
          scheduler.stop("the second snapshot has changed");
      };
      check();
      if (!volume->checkpoint().ok()) scheduler.stop("checkpoint");
      check();
    });
    REQUIRE_MESSAGE(after.ok(),
                    "CSNAP_SEED=" << seed << " (schedule " << number << "): " << after.report);
  }
  CHECK(staged > 0);
}

// Too large to be staged, to a chunk of which two layers are: committer and applier have to go
// first, one at the other's heels, for either. Neither may leave it to the other's timer.
TEST_CASE("races: a write that waits for a staged chunk waits for no time-out") {
  constexpr uint64_t kWaitMaxMs = 100;
  const uint64_t seed = seed_from_environment(0x4ad4);
  SimScheduler::Options options;
  options.early_timeout_one_in = 0;  // time passes where nobody can get on
  SimScheduler scheduler(options);
  uint64_t parked = 0, longest_ms = 0;
  for (uint64_t number = 0; number < schedules() / 10; number++) {
    Host made(mix64(seed + number));
    const auto outcome = scheduler.run(mix64(seed + number), [&] {
      std::unique_ptr<Volume> volume = open(made.host).take();
      const std::shared_ptr<View> live = volume->open_origin();
      std::vector<uint8_t> large(kChunk, 1);
      if (!io(*volume, *live, IoOp::WRITE, large.data()).ok()) scheduler.stop("write");
      for (const char* name : {"first", "second", "third"}) {
        if (!volume->create_snapshot(name, false, 0, {}).ok()) scheduler.stop("create");
        IoRequest request;
        request.op = IoOp::WRITE;
        request.view = live.get();
        request.length = std::strcmp(name, "third") == 0 ? kChunk : kSectorBytes;
        request.data = large.data();
        const uint64_t start = monotonic_ms();
        if (!volume->run(request).ok()) scheduler.stop("write");
        longest_ms = std::max(longest_ms, monotonic_ms() - start);
      }
      parked += volume->info().parked;
    });
    REQUIRE_MESSAGE(outcome.ok(),
                    "CSNAP_SEED=" << seed << " (schedule " << number << "): " << outcome.report);
  }
  CHECK(parked > 0);
  CHECK_MESSAGE(longest_ms < kWaitMaxMs, "CSNAP_SEED=" << seed);
}

}  // namespace csnap
