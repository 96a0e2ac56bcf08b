// SimHost and SimDisk: a machine with disks in memory that lie on purpose. Callers: simulation
// tests, which run a volume on them under SimScheduler and take images of the disks at every
// operation.
//
// The fault model
//  M1  A write is visible to reads sector by sector, somewhere between its start and its
//  completion. A
//      sector (512 bytes) is never torn; a write that covers part of one reads, merges and writes
//      it.
//  M2  A successful sync makes durable what was completed before the sync started. Writes in flight
//  at
//      its start, and later ones, are not covered.
//  M3  At a crash every sector holds its content of the last covering sync or any content it got
//      since, in flight included: writes are lost, kept or torn at sectors, in any order.
//  M4  kill -9 loses nothing that was written; what was in flight happened or not, sector by
//  sector.
//      What no sync covered can still be lost in a later crash, so the image keeps both.
//  M5  A failed sync makes every later sync of this life fail (D3). What it covered stays readable
//  but
//      no later sync of any life writes it: each sector may be lost for good. After a kill, syncs
//      succeed again, as with a new fd on Linux. drop_cache() shows what is lost.
//  M6  A failed write (also zero, discard) has changed any of its sectors (D2); a short one a
//  prefix. M7  A discarded sector keeps its content or becomes zeros, and at a crash may do the
//  other until a
//      later sync.
//  M8  flip_bit() is bit rot on the medium: reads return it without an error.
//
// Every operation yields before it starts and, in flight, before it completes. Both points get a
// step number of the host, so that operations of all disks form one order, and both call the
// observer.
//
// Invariants
//  I1  crash_image() and kill_image() change nothing and draw only from the caller's generator: a
//  run
//      goes the same way however many images are taken.
//  I2  The observer must not touch this host's disks nor yield; it may run a whole other
//  simulation.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "io/device.h"
#include "testing/cow_bytes.h"
#include "testing/fault_plan.h"
#include "testing/rng.h"

namespace csnap {

class SimDisk;
class SimHost;

// What becomes of the writes that no sync covers.
enum class CrashLoss { NOTHING, EVERYTHING, RANDOM };

struct SimEvent {
  uint64_t step;
  const SimDisk* disk;
  DeviceOp op;
  bool completed;  // false: the operation starts
  bool failed;
  uint64_t offset;
  uint64_t length;
};

// A write, zero or discard from its start on.
struct SimWrite {
  DeviceOp op;
  uint64_t offset;
  uint64_t length;
  uint64_t start_step = 0;
  uint64_t completed_step = 0;                        // 0: in flight
  std::shared_ptr<const std::vector<uint8_t>> bytes;  // null: zeros
  enum class Sector : uint8_t { TO_DO, DONE, SKIPPED };
  std::vector<Sector> sectors;  // SKIPPED: a failed write never gets there
  std::vector<bool> kept;       // discard: content stays (M7)
};

// One content of one sector since the last sync that covered it.
struct SectorVersion {
  std::shared_ptr<const std::vector<uint8_t>> bytes;  // null: zeros
  uint64_t bytes_offset;
  std::shared_ptr<const SimWrite> write;  // null: completed in an earlier life
};

// All there is to know about a disk's content. Also what an image consists of.
struct DiskContent {
  std::string name;
  CowBytes visible;
  CowBytes durable;
  std::map<uint64_t, std::vector<SectorVersion>> pending;  // by sector; oldest first, never empty
};
using HostImage = std::vector<DiskContent>;

class SimDisk final : public Device {
 public:
  SimDisk(SimHost& host, DiskContent content) : host_(host), content_(std::move(content)) {}

  uint64_t size_bytes() const override { return content_.visible.size_bytes(); }
  const std::string& name() const override { return content_.name; }
  Status read(uint64_t offset, void* data, size_t length) override;
  bool read_nowait(uint64_t offset, void* data, size_t length) override;
  Status write(uint64_t offset, const void* data, size_t length) override;
  Status sync() override;
  Status zero(uint64_t offset, uint64_t length, ZeroMode mode) override;
  Status discard(uint64_t offset, uint64_t length) override;
  Status allocate(uint64_t offset, uint64_t length) override;
  DeviceExtent extent_at(uint64_t offset, uint64_t length) override;
  void drop_cache() override;

  FaultPlan& faults() { return faults_; }
  // While full, a write into a hole fails with NO_SPACE.
  void set_full(bool full) { full_ = full; }
  // The next zero() and discard() answer NOT_SUPPORTED.
  void set_zero_supported(bool supported) { zero_supported_ = supported; }
  // M8. False where the sector has content that no sync covers: nothing to rot on the medium yet.
  bool flip_bit(uint64_t offset, unsigned bit);

  // Without a step, for a test's own eyes: what reads see, and what every crash leaves.
  void peek(uint64_t offset, void* data, size_t length) const;
  void peek_durable(uint64_t offset, void* data, size_t length) const;
  size_t unsynced_sector_count() const { return content_.pending.size(); }
  bool sync_failed() const { return sync_failed_; }
  uint64_t op_count(DeviceOp op) const { return op_counts_[static_cast<size_t>(op)]; }

 private:
  friend class SimHost;
  Status change(DeviceOp op, uint64_t offset, const void* data, uint64_t length);
  void plan_sectors(SimWrite& write, std::optional<Fault::Effect> fault);
  void apply_some(const std::shared_ptr<SimWrite>& write);
  bool would_fill_hole(uint64_t offset, uint64_t length) const;
  void linger();
  uint64_t event(DeviceOp op, bool completed, bool failed, uint64_t offset, uint64_t length);
  void settle(uint64_t sync_start_step, bool failed);

  DiskContent crash_content(CrashLoss loss, Rng& rng) const;
  DiskContent kill_content(Rng& rng) const;

  SimHost& host_;
  DiskContent content_;
  std::vector<std::shared_ptr<SimWrite>> in_flight_;  // by start
  FaultPlan faults_;
  bool sync_failed_ = false;
  bool full_ = false;
  bool zero_supported_ = true;
  std::array<uint64_t, kDeviceOpCount> op_counts_{};
};

class SimHost {
 public:
  explicit SimHost(uint64_t seed) : rng_(seed) {}
  // A host that comes up with the disks of an image.
  SimHost(uint64_t seed, const HostImage& image);
  SimHost(const SimHost&) = delete;
  SimHost& operator=(const SimHost&) = delete;

  // All zeros and, unless `allocated`, one hole.
  SimDisk& add_disk(std::string name, uint64_t size_bytes, bool allocated = true);
  size_t disk_count() const { return disks_.size(); }
  SimDisk& disk(size_t index) { return *disks_[index]; }

  // Called at every start and completion of an operation (I2).
  void set_observer(std::function<void(const SimEvent&)> observer) {
    observer_ = std::move(observer);
  }
  // The disks as a power loss at this moment leaves them.
  HostImage crash_image(CrashLoss loss, Rng& rng) const;
  // The disks, page cache included, as kill -9 of their only user leaves them.
  HostImage kill_image(Rng& rng) const;

  uint64_t step() const { return step_; }
  uint64_t trace() const { return trace_; }  // a hash of all events
  // The last operations, a line each.
  std::string log_to_text() const;

 private:
  friend class SimDisk;
  uint64_t event(SimEvent event);

  Rng rng_;
  std::vector<std::unique_ptr<SimDisk>> disks_;
  std::function<void(const SimEvent&)> observer_;
  bool observing_ = false;
  uint64_t step_ = 0;
  uint64_t trace_ = 0;
  std::deque<SimEvent> log_;
};

}  // namespace csnap
