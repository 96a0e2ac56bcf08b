// How much space each set of snapshots holds, kept running so that `list` needs no scan. Entries of
// one chunk are held by a contiguous run of live snapshots; so one counter per (first, last) live
// holder says everything: what a snapshot holds alone, with others, and what a delete would free.
// Callers: Store, under its transaction lock.
//
// Invariants
//  C1  Every entry whose location is DATA is counted in exactly one bucket: that of its first and
//  last
//      live holder, or in bucket (0, 0) when no live snapshot holds it and reclaim has not freed
//      it.
//  C2  At most kBucketsMax buckets exist. Beyond, entries are counted in a neighbouring bucket, and
//      estimated() is true from then on.
#pragma once

#include <map>
#include <set>
#include <vector>

#include "store/entry.h"
#include "store/page_array.h"

namespace csnap {

struct Holders {
  VolumeId volume = kOriginVolume;
  Generation first = 0;  // 0 and 0: none
  Generation last = 0;
  auto operator<=>(const Holders&) const = default;
};

class SpaceCounters {
 public:
  // 1,000 snapshots have 500,500 pairs.
  static constexpr size_t kBucketsMax = 524288;

  explicit SpaceCounters(MetadataIo& io) : pages_(io, format::BlockKind::COUNTER_PAGE) {}

  Status load(const format::TreeRoot& root, uint64_t slots, bool estimated);

  void add(const Holders& holders, int64_t chunks);
  // A snapshot is gone; `before` and `after` are its live neighbours (0: none).
  void snapshot_deleted(VolumeId volume, Generation generation, Generation before,
                        Generation after);

  struct Usage {
    uint64_t unique = 0;  // chunks held by this snapshot alone
    uint64_t total = 0;   // chunks held by it
  };
  // Of each live generation, in the order given (ascending, all live ones of the volume).
  std::vector<Usage> usage(VolumeId volume, const std::vector<Generation>& live) const;
  // Chunks that come free if exactly the generations of `gone` (ascending subset of `live`) go.
  uint64_t freed_by(VolumeId volume, const std::vector<Generation>& live,
                    const std::vector<Generation>& gone) const;
  // Chunks waiting for reclaim.
  uint64_t dead(VolumeId volume) const;

  bool estimated() const { return estimated_ || inconsistent_; }
  // A bucket would have fallen below zero: the counters on disk did not match the index. No data is
  // at risk, so the volume goes on with estimates, and the checker says so.
  bool inconsistent() const { return inconsistent_; }
  uint64_t slots() const { return slots_; }
  PageArray& pages() { return pages_; }
  const PageArray& pages() const { return pages_; }
  const std::map<Holders, uint64_t> buckets() const;

 private:
  struct Bucket {
    uint64_t count;
    uint64_t slot;
  };
  void change(const Holders& holders, int64_t chunks);
  void write_slot(uint64_t slot, const Holders& holders, uint64_t count);

  PageArray pages_;
  std::map<Holders, Bucket> buckets_;
  std::set<std::tuple<VolumeId, Generation, Generation>> by_last_;  // volume, last, first
  std::vector<uint64_t> free_slots_;
  uint64_t slots_ = 0;
  bool estimated_ = false;
  bool inconsistent_ = false;
};

}  // namespace csnap
