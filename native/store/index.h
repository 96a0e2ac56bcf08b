// The exception index: a copy-on-write btree of Entry by Key in a bounded cache of 4 KiB nodes.
// Callers: Store (transactions, checkpoint), the volume's lookups, the reclaimer, the checker.
//
// Changing a node gives it a new block number at once (shadowing), so the tree of the last
// checkpoint stays whole on the device. Dirty nodes stay in RAM until a checkpoint freezes them.
//
// Invariants
//  X1  Keys are strictly ascending over the whole tree; an inner entry's key is <= its child's first
//      key and > every key before it.
//  X2  An inner entry's generation_min/max cover every generation below it
//      (counter volumes left out); erase may leave a range too wide until
//      the node is next rewritten by a freeze, which tightens them.
//  X3  A node that is dirty is reachable from the root through dirty nodes only.
//  X4  No node but the root is empty; an inner root has at least two children.
//  X5  Lookups and scans hold the latch shared, changes and freeze exclusively; no latch is held by
//      a caller between calls.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "base/sync.h"
#include "store/entry.h"
#include "store/metadata_io.h"

namespace csnap {

struct IndexOptions {
  // Bounds of entries in a node; tests use 4 so that small trees grow high.
  uint32_t leaf_capacity = format::kLeafEntriesMax;
  uint32_t inner_capacity = format::kInnerEntriesMax;
  // Clean nodes kept in RAM. Dirty ones come on top, bounded by the store's checkpoints.
  uint64_t cache_bytes = uint64_t{64} << 20;
};

struct IndexRoot {
  BlockRef ref;       // block 0: empty tree
  uint8_t level = 0;  // 0: the root is a leaf
};

struct IndexStats {
  uint64_t entries;       // without counters, since open() plus what it was told
  uint64_t dirty_nodes;
  uint64_t cached_nodes;
  uint8_t height;         // levels, 0 when empty
};

// What a walk shows of each node; see Index::walk.
struct NodeView {
  BlockNumber block;
  uint8_t kind;   // format::BlockKind
  uint8_t level;
  uint32_t count;
};

class Index {
 public:
  // `io` outlives the index.
  Index(MetadataIo& io, IndexOptions options);
  ~Index();

  // Takes over a tree on the device (or an empty one). `entry_count`: entries without counters as the
  // superblock knows them; the index keeps the number up to date from there. Reads nothing.
  void open(IndexRoot root, uint64_t entry_count);

  // The smallest entry with key >= `key`, of any chunk or volume. Errors: CORRUPT, IO_ERROR.
  Result<std::optional<Entry>> at_or_after(const Key& key);
  // The largest entry with key < `key`.
  Result<std::optional<Entry>> before(const Key& key);
  // The entry with exactly this key.
  Result<std::optional<Entry>> find(const Key& key);

  // Collects entries with key >= `from` in order into `out`, at most `max_entries`, and sets `next`
  // to where to go on (kKeyEnd: finished). Subtrees for which wanted(generation_min, generation_max)
  // is false are skipped (leaves are never skipped in part). Counters are included when reached.
  // Visits at most `max_nodes` nodes so that the latch is not held for long.
  Status scan(const Key& from, const std::function<bool(Generation, Generation)>& wanted,
              size_t max_entries, size_t max_nodes, std::vector<Entry>& out, Key& next);

  // Inserts, or replaces the entry with the same key. On an error (a node can't be read) nothing has
  // changed.
  Status insert(const Entry& entry);
  // Removes the entry with this key; `erased` tells whether there was one.
  Status erase(const Key& key, bool& erased);

  // An upper bound of the blocks that `changes` inserts or erases can allocate.
  uint64_t blocks_needed(uint64_t changes);
  IndexStats stats();

  // Checkpoint, first step: seals all dirty nodes (children before parents), tightens generation
  // ranges, and hands out their images. From here on they are clean but stay in the cache until
  // frozen_written(); a change shadows them again. Returns the root to record.
  IndexRoot freeze(std::vector<SealedBlock>& out);
  // Checkpoint, second step: all images are on the device.
  void frozen_written();

  // Visits every node, parents first, checking each against its parent (X1, X2, X4, header, CRC where
  // the node is on the device). `entry` sees every leaf entry in key order. Problems are reported
  // through `problem` and the walk goes on with what can be trusted. Stops early, without an error,
  // when a callback returns false. For a tree that does not change meanwhile.
  Status walk(const std::function<bool(const NodeView&)>& node,
              const std::function<bool(const Entry&)>& entry,
              const std::function<bool(const std::string&)>& problem);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace csnap
