// Several clients at once on one volume, under SimScheduler: random writes, zeroes, trims, flushes,
// reads, snapshots, deletions, holds and checkpoints, all written down in a History and judged at
// once. Callers: crash_explorer.h, fault tests.
//
// Invariants
//  I1  A client submits its next request when the last was answered, so its own order is known;
//  what
//      different clients do overlaps.
//  I2  The first thing that is wrong ends the run through `wrong`, which does not return.
#pragma once

#include <functional>

#include "testing/history.h"
#include "testing/rng.h"

namespace csnap {

struct WorkloadOptions {
  uint32_t clients = 3;
  uint32_t ops = 200;  // of all clients together
  uint32_t snapshots_max = 5;
  uint64_t chunk_sectors = 8;
  bool sync_mode = false;   // every acknowledged write is durable (W8)
  bool may_drop = true;     // the store-full policy may take snapshots
  bool may_refuse = false;  // NO_SPACE is no fault
  bool may_fail = false;    // nor are other errors: devices are made to fail
};

class Workload {
 public:
  Workload(Volume& volume, History& history, const WorkloadOptions& options, uint64_t seed,
           std::function<void(const std::string&)> wrong);

  // Runs all clients to their end. Inside an actor.
  void run();

  // One whole look at a snapshot. Null: it is gone, or could not be read.
  static std::shared_ptr<Tokens> read_snapshot(Volume& volume, const Uuid& uuid, uint64_t sectors,
                                               Status& status);
  // The host that takes a hold for this attachment.
  static std::string host_of(const Uuid& attachment);
  static Status read(Volume& volume, View& view, uint64_t first_sector, uint64_t count,
                     Tokens& out);

 private:
  void client(uint64_t seed);
  void step(Rng& rng);
  void write(Rng& rng, IoOp op);
  void write_together(Rng& rng);
  void flush();
  void read_origin(Rng& rng);
  void read_some_snapshot(Rng& rng);
  void create(Rng& rng);
  void remove(Rng& rng);
  void change(Rng& rng);
  void hold(Rng& rng);
  Status perform(Rng& rng, IoRequest& request, const std::function<void(const Status&)>& replied);
  // Whether an error is one that the options allow.
  void judge_error(const Status& status, const std::string& what);
  bool gone(size_t index, const Status& status);
  std::optional<size_t> any_live(Rng& rng);

  Volume& volume_;
  History& history_;
  const WorkloadOptions options_;
  Rng rng_;
  const std::function<void(const std::string&)> wrong_;
  std::shared_ptr<View> origin_;
  uint32_t ops_left_;
  uint64_t hot_first_ = 0, hot_count_ = 0;  // sectors where half of the writes go
};

}  // namespace csnap
