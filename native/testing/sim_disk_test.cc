// The simulated disk lies exactly as its fault model says (sim_disk.h M1-M8): what must be able to
// happen is seen to happen, what must never happen never does. FaultyDevice and MemoryDevice too.
#include "testing/sim_disk.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <set>

#include "base/sync.h"
#include "testing/faulty_device.h"
#include "testing/scheduler.h"

using namespace csnap;

namespace {

constexpr size_t kSector = 512;
constexpr int kCrashes = 2000;

std::vector<uint8_t> filled(size_t length, uint8_t value) {
  return std::vector<uint8_t>(length, value);
}

void write_filled(Device& disk, uint64_t offset, size_t length, uint8_t value) {
  CHECK(disk.write(offset, filled(length, value).data(), length).ok());
}

// The value each sector is filled with; 0xbad where a sector is not of one value.
std::vector<int> sectors_of(const CowBytes& bytes, uint64_t first, size_t count) {
  std::vector<int> values;
  for (size_t i = 0; i < count; i++) {
    std::array<uint8_t, kSector> sector;
    bytes.read((first + i) * kSector, sector.data(), kSector);
    const bool whole = std::count(sector.begin(), sector.end(), sector[0]) == kSector;
    values.push_back(whole ? sector[0] : 0xbad);
  }
  return values;
}

std::set<std::vector<int>> crash_outcomes(const SimHost& host, CrashLoss loss, size_t count) {
  Rng rng(seed_from_environment(1));
  std::set<std::vector<int>> outcomes;
  for (int i = 0; i < kCrashes; i++)
    outcomes.insert(sectors_of(host.crash_image(loss, rng)[0].durable, 0, count));
  return outcomes;
}

}  // namespace

TEST_CASE("sim disk: an unsynced write can be lost, a synced one never") {
  SimHost host(1);
  SimDisk& disk = host.add_disk("store", 64 * 1024);
  write_filled(disk, 0, kSector, 1);
  CHECK(disk.sync().ok());
  write_filled(disk, kSector, kSector, 2);
  using Outcomes = std::set<std::vector<int>>;
  CHECK(crash_outcomes(host, CrashLoss::NOTHING, 2) == Outcomes{{1, 2}});
  CHECK(crash_outcomes(host, CrashLoss::EVERYTHING, 2) == Outcomes{{1, 0}});
  CHECK(crash_outcomes(host, CrashLoss::RANDOM, 2) == Outcomes{{1, 0}, {1, 2}});
  CHECK(disk.sync().ok());
  CHECK(crash_outcomes(host, CrashLoss::EVERYTHING, 2) == Outcomes{{1, 2}});
  CHECK(disk.unsynced_sector_count() == 0);
}

TEST_CASE("sim disk: a crash leaves a content since the last sync, never an older one") {
  SimHost host(1);
  SimDisk& disk = host.add_disk("store", 64 * 1024);
  write_filled(disk, 0, kSector, 1);
  write_filled(disk, 0, kSector, 2);
  CHECK(disk.sync().ok());
  write_filled(disk, 0, kSector, 3);
  write_filled(disk, 0, kSector, 4);
  CHECK(crash_outcomes(host, CrashLoss::RANDOM, 1) == std::set<std::vector<int>>{{2}, {3}, {4}});
}

TEST_CASE("sim disk: writes tear at sectors, and never inside one") {
  SimHost host(1);
  SimDisk& disk = host.add_disk("store", 64 * 1024);
  write_filled(disk, 0, 4 * kSector, 7);
  const auto outcomes = crash_outcomes(host, CrashLoss::RANDOM, 4);
  CHECK(outcomes.size() == 16);  // every subset of its sectors
  for (const auto& outcome : outcomes) {
    for (const int value : outcome) CHECK((value == 0 || value == 7));
  }
}

TEST_CASE("sim disk: a later write can be kept while an earlier one is lost, across disks too") {
  SimHost host(1);
  SimDisk& store = host.add_disk("store", 64 * 1024);
  SimDisk& origin = host.add_disk("origin", 64 * 1024);
  write_filled(store, 0, 16 * kSector, 1);
  write_filled(store, 16 * kSector, 16 * kSector, 2);
  write_filled(origin, 0, 16 * kSector, 3);
  int later_only = 0;
  int origin_only = 0;
  int all_whole = 0;
  int torn_beside_whole = 0;
  Rng rng(seed_from_environment(1));
  for (int i = 0; i < kCrashes; i++) {
    const HostImage image = host.crash_image(CrashLoss::RANDOM, rng);
    const auto is = [&](size_t disk, uint64_t first, int value) {
      return sectors_of(image[disk].durable, first, 16) == std::vector<int>(16, value);
    };
    later_only += is(0, 0, 0) && is(0, 16, 2);
    origin_only += is(0, 0, 0) && is(0, 16, 0) && is(1, 0, 3);
    torn_beside_whole += !is(0, 0, 0) && !is(0, 0, 1) && is(0, 16, 2) && is(1, 0, 3);
    all_whole += is(0, 0, 1) && is(0, 16, 2) && is(1, 0, 3);
  }
  CHECK(later_only > 20);
  CHECK(origin_only > 20);
  CHECK(all_whole > 20);
  CHECK(torn_beside_whole > 20);
}

TEST_CASE("sim disk: a sync covers what completed before it started, not what was in flight") {
  SimScheduler scheduler;
  int covered = 0;
  int in_flight_at_start = 0;
  for (uint64_t seed = 0; seed < 300; seed++) {
    SimHost host(seed);
    SimDisk& disk = host.add_disk("store", 64 * 1024);
    uint64_t write_done = 0;
    uint64_t write_start = 0;
    uint64_t sync_start = 0;
    uint64_t sync_done = 0;
    host.set_observer([&](const SimEvent& event) {
      if (event.op == DeviceOp::WRITE) (event.completed ? write_done : write_start) = event.step;
      if (event.op == DeviceOp::SYNC) (event.completed ? sync_done : sync_start) = event.step;
    });
    const auto outcome = scheduler.run(seed, [&] {
      Thread writer;
      writer.start("writer", [&] { write_filled(disk, 0, 2 * kSector, 9); });
      CHECK(disk.sync().ok());
      writer.join();
    });
    CHECK(outcome.ok());
    Rng rng(seed);
    const auto left = sectors_of(host.crash_image(CrashLoss::EVERYTHING, rng)[0].durable, 0, 2);
    if (write_done < sync_start) {
      covered++;
      CHECK(left == std::vector<int>{9, 9});
    } else {
      in_flight_at_start += write_start < sync_start && write_done < sync_done;
      CHECK(left == std::vector<int>{0, 0});
    }
  }
  CHECK(covered > 20);
  CHECK(in_flight_at_start > 5);
}

TEST_CASE("sim disk: a write in flight is seen by reads, crashes and kills sector by sector") {
  SimScheduler scheduler;
  std::set<std::vector<int>> seen;
  std::set<std::vector<int>> crashed;
  std::set<std::vector<int>> killed;
  for (uint64_t seed = 0; seed < 500; seed++) {
    SimHost host(seed);
    SimDisk& disk = host.add_disk("store", 64 * 1024);
    Rng rng(seed);
    host.set_observer([&](const SimEvent& event) {
      if (event.op != DeviceOp::WRITE || event.completed) return;
      crashed.insert(sectors_of(host.crash_image(CrashLoss::RANDOM, rng)[0].durable, 0, 2));
      killed.insert(sectors_of(host.kill_image(rng)[0].visible, 0, 2));
    });
    const auto outcome = scheduler.run(seed, [&] {
      Thread writer;
      writer.start("writer", [&] { write_filled(disk, 0, 2 * kSector, 9); });
      for (int i = 0; i < 3; i++) {
        std::array<uint8_t, 2 * kSector> data;
        CHECK(disk.read(0, data.data(), data.size()).ok());
        seen.insert({data[0], data[kSector]});
      }
      writer.join();
    });
    CHECK(outcome.ok());
  }
  const std::set<std::vector<int>> all{{0, 0}, {0, 9}, {9, 0}, {9, 9}};
  CHECK(seen == all);
  CHECK(crashed == all);
  CHECK(killed == all);
}

TEST_CASE("sim disk: a kill keeps what was written, and a later crash may still lose it") {
  SimHost host(1);
  SimDisk& disk = host.add_disk("store", 64 * 1024);
  write_filled(disk, 0, kSector, 1);
  Rng rng(1);
  SimHost next(2, host.kill_image(rng));
  std::array<uint8_t, kSector> data;
  next.disk(0).peek(0, data.data(), kSector);
  CHECK(data[0] == 1);
  const std::set<std::vector<int>> either{{0}, {1}};
  CHECK(crash_outcomes(next, CrashLoss::RANDOM, 1) == either);
  CHECK(crash_outcomes(next, CrashLoss::NOTHING, 1) == std::set<std::vector<int>>{{1}});
  CHECK(next.disk(0).sync().ok());
  CHECK(crash_outcomes(next, CrashLoss::EVERYTHING, 1) == std::set<std::vector<int>>{{1}});
}

TEST_CASE("sim disk: after a failed sync all fail, its data stays readable and may be lost") {
  int lost = 0;
  int kept = 0;
  for (uint64_t seed = 0; seed < 100; seed++) {
    SimHost host(seed);
    SimDisk& disk = host.add_disk("store", 64 * 1024);
    write_filled(disk, 0, kSector, 1);
    disk.faults().add({.op = DeviceOp::SYNC});
    const Status failed = disk.sync();
    CHECK(failed.code() == Code::IO_ERROR);
    CHECK(failed.message().find("store: sync") == 0);
    CHECK(disk.sync().code() == Code::IO_ERROR);  // though no fault is planned any more
    std::array<uint8_t, kSector> data;
    CHECK(disk.read(0, data.data(), kSector).ok());
    CHECK(data[0] == 1);
    // Not even a later life's sync brings it back: the cache believes it clean.
    Rng rng(seed);
    SimHost next(seed, host.kill_image(rng));
    CHECK(next.disk(0).sync().ok());
    const auto left = sectors_of(next.crash_image(CrashLoss::NOTHING, rng)[0].durable, 0, 1);
    lost += left[0] == 0;
    kept += left[0] == 1;
  }
  CHECK(lost > 10);
  CHECK(kept > 10);
  CHECK(lost + kept == 100);
}

TEST_CASE("sim disk: planned faults hit the operation they name") {
  SimHost host(1);
  SimDisk& disk = host.add_disk("origin", 64 * 1024);
  const auto data = filled(8 * kSector, 5);
  disk.faults().add({.op = DeviceOp::WRITE, .effect = Fault::Effect::NO_SPACE, .nth = 2});
  CHECK(disk.write(0, data.data(), data.size()).ok());
  CHECK(disk.write(0, data.data(), data.size()).code() == Code::NO_SPACE);
  CHECK(disk.write(0, data.data(), data.size()).ok());

  disk.faults().add({.op = DeviceOp::READ,
                     .times = Fault::kForever,
                     .begin_offset = 8 * kSector,
                     .end_offset = 9 * kSector});
  std::vector<uint8_t> back(data.size());
  CHECK(disk.read(0, back.data(), back.size()).ok());
  CHECK(back == data);
  for (int i = 0; i < 3; i++)
    CHECK(disk.read(8 * kSector, back.data(), kSector).code() == Code::IO_ERROR);
  CHECK(back[0] == 0xee);
  disk.faults().clear();
  CHECK(disk.read(8 * kSector, back.data(), kSector).ok());
}

TEST_CASE("sim disk: a short write has done a prefix, a failed one any sectors") {
  std::set<std::vector<int>> short_ones;
  std::set<std::vector<int>> failed_ones;
  for (uint64_t seed = 0; seed < 300; seed++) {
    for (const bool is_short : {true, false}) {
      SimHost host(seed);
      SimDisk& disk = host.add_disk("origin", 64 * 1024);
      disk.faults().add({.effect = is_short ? Fault::Effect::SHORT_IO : Fault::Effect::IO_ERROR});
      const auto data = filled(3 * kSector, 6);
      CHECK(disk.write(0, data.data(), data.size()).code() ==
            (is_short ? Code::SHORT_IO : Code::IO_ERROR));
      Rng rng(seed);
      (is_short ? short_ones : failed_ones)
          .insert(sectors_of(host.crash_image(CrashLoss::NOTHING, rng)[0].durable, 0, 3));
    }
  }
  CHECK(short_ones == std::set<std::vector<int>>{{0, 0, 0}, {6, 0, 0}, {6, 6, 0}});
  CHECK(failed_ones.size() == 8);
}

TEST_CASE("sim disk: zeroes read as zeros, discarded sectors keep or lose their content") {
  std::set<std::vector<int>> discarded;
  std::set<std::vector<int>> crashed;
  for (uint64_t seed = 0; seed < 300; seed++) {
    SimHost host(seed);
    SimDisk& disk = host.add_disk("origin", 64 * 1024);
    write_filled(disk, 0, 8 * kSector, 4);
    CHECK(disk.sync().ok());
    CHECK(disk.discard(kSector / 2, 3 * kSector).ok());  // two whole sectors
    std::vector<uint8_t> data(8 * kSector);
    disk.peek(0, data.data(), data.size());
    CHECK(data[0] == 4);
    CHECK(data[3 * kSector] == 4);
    discarded.insert({data[kSector], data[2 * kSector]});
    Rng rng(seed);
    crashed.insert(sectors_of(host.crash_image(CrashLoss::RANDOM, rng)[0].durable, 1, 2));
    // What is read after a sync is what a crash leaves.
    CHECK(disk.sync().ok());
    CHECK(sectors_of(host.crash_image(CrashLoss::EVERYTHING, rng)[0].durable, 1, 2) ==
          std::vector<int>{data[kSector], data[2 * kSector]});

    CHECK(disk.zero(0, 8 * kSector, ZeroMode::ALLOW_HOLE).ok());
    disk.peek(0, data.data(), data.size());
    CHECK(data == filled(8 * kSector, 0));
    CHECK(disk.extent_at(0, 64 * 1024).hole);
    CHECK(disk.extent_at(0, 64 * 1024).length_bytes == 8 * kSector);
  }
  const std::set<std::vector<int>> all{{0, 0}, {0, 4}, {4, 0}, {4, 4}};
  CHECK(discarded == all);
  CHECK(crashed == all);
}

TEST_CASE("sim disk: a full disk fills no holes but overwrites") {
  SimHost host(1);
  SimDisk& disk = host.add_disk("origin", 64 * 1024, false);
  CHECK(disk.extent_at(0, 64 * 1024).hole);
  write_filled(disk, 0, 4096, 1);
  disk.set_full(true);
  write_filled(disk, 0, 4096, 2);
  const auto data = filled(8192, 3);
  CHECK(disk.write(0, data.data(), 8192).code() == Code::NO_SPACE);
  disk.set_full(false);
  CHECK(disk.write(0, data.data(), 8192).ok());
  CHECK_FALSE(disk.extent_at(0, 8192).hole);
}

TEST_CASE("sim disk: partial sectors merge, and one torn away takes nothing along") {
  SimHost host(1);
  SimDisk& disk = host.add_disk("origin", 64 * 1024);
  write_filled(disk, 0, 2 * kSector, 1);
  CHECK(disk.sync().ok());
  write_filled(disk, 100, 500, 2);
  std::vector<uint8_t> expected = filled(2 * kSector, 1);
  std::fill(expected.begin() + 100, expected.begin() + 600, uint8_t{2});
  std::vector<uint8_t> data(2 * kSector);
  disk.peek(0, data.data(), data.size());
  CHECK(data == expected);
  std::set<std::vector<uint8_t>> left;
  Rng rng(1);
  for (int i = 0; i < kCrashes; i++) {
    host.crash_image(CrashLoss::RANDOM, rng)[0].durable.read(0, data.data(), data.size());
    left.insert(data);
  }
  CHECK(left.size() == 4);
  CHECK(left.contains(expected));
  CHECK(left.contains(filled(2 * kSector, 1)));
}

TEST_CASE("sim disk: bit rot is on the medium only") {
  SimHost host(1);
  SimDisk& disk = host.add_disk("store", 64 * 1024);
  write_filled(disk, 0, kSector, 8);
  CHECK_FALSE(disk.flip_bit(3, 0));
  CHECK(disk.sync().ok());
  CHECK(disk.flip_bit(3, 0));
  std::array<uint8_t, 4> data;
  CHECK(disk.read(0, data.data(), 4).ok());
  CHECK(data == std::array<uint8_t, 4>{8, 8, 8, 9});
}

namespace {
// A busy run on two disks; images are taken at every event where `crash`.
uint64_t busy_run(uint64_t seed, bool crash, uint64_t* images) {
  SimScheduler scheduler;
  SimHost host(seed);
  SimDisk& store = host.add_disk("store", 256 * 1024);
  SimDisk& origin = host.add_disk("origin", 256 * 1024);
  Rng crash_rng(seed);
  host.set_observer([&](const SimEvent&) {
    if (!crash) return;
    SimHost next(seed, host.crash_image(CrashLoss::RANDOM, crash_rng));
    SimHost killed(seed, host.kill_image(crash_rng));
    // A recovery of its own, in the middle of the run (scheduler.h I4).
    SimScheduler recovery;
    const auto outcome = recovery.run(seed, [&] {
      write_filled(next.disk(0), 0, kSector, 1);
      CHECK(next.disk(0).sync().ok());
    });
    CHECK(outcome.ok());
    ++*images;
  });
  const auto outcome = scheduler.run(seed, [&] {
    Thread threads[4];
    for (int i = 0; i < 4; i++) {
      threads[i].start("writer", [&, i] {
        Rng rng(seed * 4 + static_cast<uint64_t>(i));
        for (int op = 0; op < 20; op++) {
          SimDisk& disk = rng.coin() ? store : origin;
          const uint64_t offset = rng.below(128) * kSector;
          std::vector<uint8_t> data = filled(rng.between(1, 64) * kSector, 1);
          if (rng.one_in(8))
            CHECK(disk.sync().ok());
          else if (rng.one_in(8))
            CHECK(disk.discard(offset, data.size()).ok());
          else if (rng.one_in(4))
            CHECK(disk.read(offset, data.data(), data.size()).ok());
          else
            CHECK(disk.write(offset, data.data(), data.size()).ok());
        }
      });
    }
    for (Thread& thread : threads) thread.join();
  });
  CHECK(outcome.ok());
  return host.trace() ^ outcome.trace;
}
}  // namespace

TEST_CASE("sim disk: the same seed gives the same run, images taken or not") {
  std::set<uint64_t> traces;
  uint64_t images = 0;
  for (uint64_t seed = 0; seed < 10; seed++) {
    const uint64_t trace = busy_run(seed, false, &images);
    CHECK(images == seed * 160);
    CHECK(trace == busy_run(seed, true, &images));
    traces.insert(trace);
  }
  CHECK(traces.size() == 10);
}

TEST_CASE("faulty device: fails by plan, a failed sync for good") {
  MemoryDevice memory("memory", 64 * 1024);
  FaultyDevice device(memory, 1);
  const auto data = filled(8 * kSector, 5);
  device.add_fault({.op = DeviceOp::WRITE, .effect = Fault::Effect::SHORT_IO, .nth = 2});
  CHECK(device.write(0, data.data(), data.size()).ok());
  CHECK(device.write(16 * kSector, data.data(), data.size()).code() == Code::SHORT_IO);
  CHECK(memory.bytes()[24 * kSector - 1] == 0);  // its last sector was not done
  CHECK(device.hit_count() == 1);
  CHECK(device.sync().ok());
  device.add_fault({.op = DeviceOp::SYNC, .effect = Fault::Effect::NO_SPACE});
  CHECK(device.sync().code() == Code::NO_SPACE);
  device.clear_faults();
  CHECK(device.sync().code() == Code::IO_ERROR);
  std::vector<uint8_t> back(data.size());
  device.add_fault({.op = DeviceOp::READ});
  CHECK_FALSE(device.read_nowait(0, back.data(), back.size()));
  CHECK(device.read(0, back.data(), back.size()).code() == Code::IO_ERROR);
  CHECK(device.read_nowait(0, back.data(), back.size()));
  CHECK(back == data);
}

TEST_CASE("memory device: used by several threads at once") {
  MemoryDevice memory("memory", 64 * 1024);
  Thread threads[4];
  for (int i = 0; i < 4; i++) {
    threads[i].start("user", [&memory, i] {
      std::vector<uint8_t> data(4096);
      for (int round = 0; round < 200; round++) {
        std::fill(data.begin(), data.end(), static_cast<uint8_t>(i + 1));
        CHECK(memory.write(0, data.data(), data.size()).ok());
        CHECK(memory.read(0, data.data(), data.size()).ok());
        CHECK(data == filled(4096, data[0]));
      }
    });
  }
  for (Thread& thread : threads) thread.join();
  CHECK(memory.read(64 * 1024, threads, 1).code() == Code::SHORT_IO);
  CHECK(memory.discard(100, 1024).ok());
  CHECK(memory.bytes()[511] != 0);
  CHECK(memory.bytes()[512] == 0);
  CHECK(memory.bytes()[1024] != 0);
}
