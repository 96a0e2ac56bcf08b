// The plain in-memory model of a volume: what the origin and every snapshot hold, which exceptions
// there must be, and what list, diff and the space counters must say. Callers: model_test.cc.
//
// Invariants
//  I1  It knows nothing of chunks in the store, journal or index nodes: contents are copied whole,
//      everything else is worked out from them by brute force.
//  I2  The exceptions are those that stay when reclaim has nothing left to do; compare after
//      wait_reclaimed().
#pragma once

#include <map>
#include <string>
#include <vector>

#include "volume/volume.h"

namespace csnap {

class VolumeModel {
 public:
  struct Snapshot {
    Uuid uuid;
    std::string name;
    Generation generation;
    uint8_t priority;
    bool pinned;
    std::map<std::string, std::string> labels;
    std::vector<uint8_t> content;
  };

  VolumeModel(uint64_t origin_bytes, uint64_t chunk_bytes);

  uint64_t chunk_count() const { return written_in_.size(); }
  const std::vector<uint8_t>& origin() const { return origin_; }
  // Oldest first.
  const std::vector<Snapshot>& snapshots() const { return snapshots_; }
  Snapshot* find(const Uuid& uuid);
  Generation generation() const { return generation_; }

  // `data` null: zeros.
  void write(uint64_t offset, const void* data, uint64_t length);
  // A trim as it turned out: `now` is what reads show of the range. Empty text, or what is wrong.
  std::string trimmed(uint64_t offset, const std::vector<uint8_t>& now);
  // The write was refused for want of space: some of its chunks may have been copied nevertheless.
  void write_refused() { exact_ = false; }

  void create(const SnapshotInfo& info);
  void remove(const Uuid& uuid);
  // Whom the store-full policy has to take next: null if there is nobody.
  const Snapshot* victim(const Uuid& but_not = Uuid()) const;

  // False once exceptions may exist that the model does not know of.
  bool exact() const { return exact_; }
  uint64_t exception_count() const;
  uint64_t data_chunk_count() const;
  struct Usage {
    uint64_t unique = 0, shared = 0;  // chunks
  };
  Usage usage(const Snapshot& snapshot) const;
  uint64_t freed_by(const std::vector<Uuid>& uuids) const;  // chunks
  // Chunks written between snapshot a and b (null: now).
  std::vector<ChunkIndex> diff(const Snapshot& a, const Snapshot* b) const;

 private:
  struct Exception {
    Generation generation;
    bool zero;
  };
  void before_overwrite(ChunkIndex chunk);
  bool owed(ChunkIndex chunk) const;
  // Calls visit(zero, first and last live holder's index) for every exception that stays.
  template <typename Visit>
  void each_exception(Visit visit) const;

  const uint64_t chunk_bytes_;
  std::vector<uint8_t> origin_;
  std::vector<Snapshot> snapshots_;
  Generation generation_ = 1;
  std::vector<std::vector<Exception>> exceptions_;   // by chunk, ascending
  std::vector<std::vector<Generation>> written_in_;  // by chunk: generations it was written in
  bool exact_ = true;
};

}  // namespace csnap
