// The checker: proves that a store's metadata is whole, and (with data) every stored chunk. It only
// reads, and reports what is wrong instead of stopping at it. Callers: volume/care.cc, tests.
//
// What it proves: every block in use is referred to exactly once, and nothing else is marked in
// use; index order, ranges and checksums; every location lies inside the data area; the space
// counters equal a recount; snapshots have unique names, uuids and generations below the current
// one.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "store/store.h"

namespace csnap {

struct StoreState {
  const format::Superblock& superblock;
  Index& index;
  SpaceMap& space_map;
  const SnapshotTable& snapshots;
  const SpaceCounters& counters;
};

struct StoreFindings {
  uint64_t problem_count = 0;
  std::vector<std::string> problems;  // the first kProblemsMax
  uint64_t index_nodes = 0, entries = 0, chunks_verified = 0, lost_entries = 0, blocks_used = 0;
  static constexpr size_t kProblemsMax = 100;
};

class Checker {
 public:
  // `device` is read for chunk data only. `progress`: entries done, entries in all; may be empty.
  // `stop`: asked at every node and entry; true ends the check early with BUSY.
  Checker(Device& device, StoreState state, std::function<void(uint64_t, uint64_t)> progress,
          std::function<bool()> stop)
      : device_(device), state_(state), progress_(std::move(progress)), stop_(std::move(stop)) {}
  // Errors: IO_ERROR where a device can't be read at all; everything else is a finding.
  Result<StoreFindings> run(bool data);

 private:
  void problem(const std::string& text);
  void claim(BlockNumber first, uint64_t count, const char* what);
  void check_entry(const Entry& entry, bool data);
  void verify_chunk(const Entry& entry);
  void check_tables();
  void check_space();
  void check_counters();

  Device& device_;
  StoreState state_;
  std::function<void(uint64_t, uint64_t)> progress_;
  std::function<bool()> stop_;
  StoreFindings findings_;
  std::vector<bool> seen_;
  std::map<Holders, uint64_t> recount_;
  std::optional<Entry> former_;
  std::vector<std::byte> chunk_;
};

// The state of a superblock's checkpoint, read from the device with objects of its own: what an
// online check looks at while the store is pinned.
class CheckpointState final : public MetadataIo {
 public:
  CheckpointState(Device& device, const format::Superblock& superblock);
  Status load();
  StoreState state() { return {superblock_, index_, space_map_, snapshots_, counters_}; }

  BlockNumber allocate() override;
  void release(BlockNumber block) override;
  Status read(BlockRef ref, format::BlockKind kind, uint8_t level, BlockImage& image) override;
  uint32_t seal(BlockNumber block, BlockImage& image) override;

 private:
  Device& device_;
  const format::Superblock superblock_;
  SpaceMap space_map_;
  SnapshotTable snapshots_;
  SpaceCounters counters_;
  Index index_;
};

}  // namespace csnap
