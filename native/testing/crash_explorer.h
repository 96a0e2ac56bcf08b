// Crash exploration: runs a history of concurrent clients on simulated disks and, at every device
// operation, looks at what a power loss or a kill at that moment would leave: opens a volume on the
// image and has the History judge it; crashes again during that recovery; now and then lives on
// from there and crashes again. Caller: volume/crash_test.cc.
//
// Invariants
//  I1  A seed is a whole exploration.
//  I2  The first thing that is wrong ends it; failure() then tells the way there, crash by crash.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "testing/history.h"
#include "testing/scheduler.h"
#include "testing/sim_disk.h"
#include "testing/workload.h"

namespace csnap {

// One exploration's volume and clients.
struct CrashShape {
  uint64_t chunk_bytes = 4096;
  uint64_t origin_sectors = 0;
  uint64_t store_bytes = 0;
  uint64_t journal_bytes = 65536;
  uint32_t node_capacity = 4;
  uint32_t group_chunks_max = 4;
  uint32_t io_threads = 2;
  format::OnFull on_full = format::OnFull::DROP_SNAPSHOTS;
  format::DurabilityMode durability = format::DurabilityMode::FLUSH;
  WorkloadOptions work;

  static CrashShape random(Rng& rng);
};

struct CrashBudget {
  // Images are taken at one in so many of the history's device operations; 0: none, only the
  // history is run.
  uint32_t image_one_in = 1;
  // One in so many images is crashed again while it recovers; of those again, further down.
  uint32_t recover_one_in = 60;
  // One in so many recovered volumes lives on.
  uint32_t live_on_one_in = 250;
  uint32_t depth_max = 3;  // crashes in a row
};

class CrashExplorer {
 public:
  CrashExplorer(uint64_t seed, const CrashShape& shape, const CrashBudget& budget);

  // False: see failure().
  bool run();

  const std::string& failure() const { return failure_; }
  // How often what was met: crashes by place, paths of recovery.
  const std::map<std::string, uint64_t>& met() const { return met_; }
  uint64_t crash_points() const { return crash_points_; }  // device operations crashed at
  uint64_t images() const { return images_; }              // volumes opened after a crash

 private:
  enum class CrashKind { POWER_NOTHING, POWER_EVERYTHING, POWER_RANDOM, KILL };
  // All that is known of the volume from outside, handed down from life to life.
  struct World {
    History history;
    // Of the last term that served.
    Epoch epoch = 0;
    Uuid durability_id;
    enum { SERVED, CLOSING, CLOSED } ended = CLOSED;
    // Since then.
    bool power_lost = false;
    bool opens_unfinished = false;
    uint64_t boot = 1;
    explicit World(History begun) : history(std::move(begun)) {}
    Loss loss() const { return power_lost ? Loss::POWER : Loss::NONE; }
  };
  // One life of a host with a volume on its disks.
  struct Life {
    SimHost& host;
    World& world;
    const HostImage* image;  // what it came up with; null: a new volume
    uint32_t depth;
    uint32_t image_one_in;  // of the steps
    bool opening = true;    // until the volume serves
    uint64_t changes = 0, syncs = 0;
    // When images were last taken.
    uint64_t promises_then = ~uint64_t{0}, changes_then = 0, syncs_then = 0;
  };

  void observe(Life& life, const SimEvent& event);
  void crash(Life& life, const SimEvent& event, CrashKind kind);
  void recover(const HostImage& image, World world, CrashKind kind, uint32_t depth);
  std::unique_ptr<Volume> open(Life& life);
  void judge_identity(const VolumeInfo& info, const World& world);
  Tokens judge(Volume& volume, Life& life);
  void judge_snapshots(Volume& volume, Life& life);
  void judge_hold(Volume& volume, const Life& life);
  void check(Volume& volume);
  bool was_dropped_before(const Life& life, const std::string& name);
  void live_on(std::unique_ptr<Volume> volume, Life& life, const Tokens& origin);
  void work(Volume& volume, Life& life, uint32_t ops);
  void close_and_look(std::unique_ptr<Volume> volume, Life& life);
  VolumeOptions volume_options(Life& life);
  SimScheduler& scheduler(uint32_t depth);
  [[noreturn]] void wrong(const std::string& what);
  void met(const std::string& what) { met_[what]++; }

  const CrashShape shape_;
  const CrashBudget budget_;
  Rng rng_;
  std::vector<std::unique_ptr<SimScheduler>> schedulers_;
  std::vector<std::string> trail_;  // by depth
  uint32_t depth_ = 0;              // of the life that runs now
  std::string failure_;
  std::map<std::string, uint64_t> met_;
  uint64_t crash_points_ = 0, images_ = 0, clock_ = 0, boots_ = 1;
};

}  // namespace csnap
