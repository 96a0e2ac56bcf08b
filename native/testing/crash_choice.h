// What of a disk's unsynced content a crash leaves, and the step of a write that both the running
// disk and its images take. Caller: sim_disk.cc.
#pragma once

#include <cstddef>
#include <memory>

#include "testing/sim_disk.h"

namespace csnap {

// Makes sector number `index` of the write visible, once; nothing where it is done or skipped.
void apply_sector(DiskContent& content, const std::shared_ptr<SimWrite>& write, size_t index);

// Says for each sector of each write whether it reached the medium. A pure function of what was
// drawn at construction, so equal questions get equal answers.
//
// A coin for every sector would keep a write of 32 sectors whole once in 2^32 crashes, so the fate
// of whole writes is drawn first, and few of them tear.
class CrashChoice {
 public:
  // `last_step`: of the host, now.
  CrashChoice(Rng& rng, uint64_t last_step);
  // `version`: which of the sector's versions the write made.
  bool reached(const SimWrite* write, uint64_t sector, size_t version) const;
  // M7, for a discarded sector that kept its content.
  bool shows_zeros(uint64_t sector) const { return mix64(salt_ + sector) % 2 == 0; }

 private:
  enum class Style {
    EACH,        // every write by itself
    OLDER_ONLY,  // those started before the cut: the disk writes in order
    NEWER_ONLY,  // those started after the cut: later kept while earlier lost
    SECTORS,     // every sector by itself
  };
  Style style_;
  uint64_t salt_;
  uint64_t keep_of_8_;  // 0..8: how many of 8 writes, or sectors, are kept
  uint64_t tear_of_8_;  // how many of 8 writes are torn
  uint64_t cut_step_;
};

}  // namespace csnap
