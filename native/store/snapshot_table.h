// The snapshot table: one slot per snapshot, in RAM and in a page array, and the order of the live
// ones. Callers: Store, under its transaction lock.
//
// Invariants
//  T1  live(v) holds exactly the generations of v's slots in state CREATING or LIVE, ascending.
//  T2  Names of CREATING and LIVE slots are unique within a volume; uuids are unique.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "store/entry.h"
#include "store/page_array.h"

namespace csnap {

// What a slot holds, in RAM form.
struct Snapshot {
  format::SnapshotState state = format::SnapshotState::FREE;
  uint8_t flags = 0;
  uint8_t priority = 0;
  VolumeId volume = kOriginVolume;
  Generation generation = 0;
  uint64_t serial = 0;
  uint64_t delete_serial = 0;
  uint64_t created_ns = 0;
  uint64_t size_bytes = 0;
  std::array<uint8_t, 16> uuid{};
  std::array<uint8_t, 16> base_uuid{};
  std::string name;
  std::vector<std::pair<std::string, std::string>> labels;

  bool live() const {
    return state == format::SnapshotState::CREATING || state == format::SnapshotState::LIVE;
  }
  bool deleted() const {
    return state == format::SnapshotState::DELETED || state == format::SnapshotState::DROPPED;
  }
  bool pinned() const { return flags & format::kSnapshotPinned; }

  // Bytes of the labels in their disk form; at most format::kLabelBytesMax.
  static size_t label_bytes(const std::vector<std::pair<std::string, std::string>>& labels);
  format::SnapshotSlot to_disk() const;
  // Nullopt: the slot holds what no slot may hold.
  static std::optional<Snapshot> from_disk(const format::SnapshotSlot& slot);
};

using UuidBytes = std::array<uint8_t, 16>;

class SnapshotTable {
 public:
  explicit SnapshotTable(MetadataIo& io) : pages_(io, format::BlockKind::SNAPSHOT_PAGE) {}

  Status load(const format::TreeRoot& root, uint64_t slots);

  // Inserts, or replaces the slot with the same uuid.
  void put(const Snapshot& snapshot);
  // Forgets a slot.
  void erase(const UuidBytes& uuid);

  const Snapshot* find(const UuidBytes& uuid) const;
  // Among CREATING and LIVE ones.
  const Snapshot* find_name(VolumeId volume, const std::string& name) const;
  // Ascending generations of the live ones.
  const std::vector<Generation>& live(VolumeId volume) const;
  // The live snapshot of this generation; null: none.
  const Snapshot* at_generation(VolumeId volume, Generation generation) const;
  // Of all volumes.
  size_t live_count() const;
  size_t deleted_count() const { return deleted_count_; }
  // All, in slot order.
  std::vector<const Snapshot*> all() const;

  uint64_t slots() const { return snapshots_.size(); }
  PageArray& pages() { return pages_; }
  const PageArray& pages() const { return pages_; }
  // Upper bound of new pages if one snapshot more is put.
  uint64_t pages_for_one_more() const;

 private:
  void index_slot(size_t slot, bool add);
  void write_slot(size_t slot);

  PageArray pages_;
  std::vector<Snapshot> snapshots_;
  std::vector<size_t> free_slots_;
  std::map<UuidBytes, size_t> by_uuid_;
  std::map<std::pair<VolumeId, std::string>, size_t> by_name_;
  std::map<std::pair<VolumeId, Generation>, size_t> by_generation_;
  std::map<VolumeId, std::vector<Generation>> live_;
  size_t deleted_count_ = 0;
};

// The smallest live generation > `after`; 0: none.
Generation next_live(const std::vector<Generation>& live, Generation after);
// The largest live generation <= `upto`; 0: none.
Generation last_live(const std::vector<Generation>& live, Generation upto);

}  // namespace csnap
