// The exception index: a copy-on-write btree of Entry by Key in a bounded cache of 4 KiB nodes.
// Callers: Store (transactions, checkpoint), the volume's lookups, the reclaimer, the checker.
//
// Changing a node gives it a new block number at once (shadowing), so the tree of the last
// checkpoint stays whole on the device. Dirty nodes stay in RAM until a checkpoint freezes them.
//
// Invariants
//  X1  Keys are strictly ascending over the whole tree; an inner entry's key is <= its child's
//      first key and > every key before it.
//  X2  An inner entry's generation_min/max cover every generation below it; a change may leave a
//      range too wide until the next freeze, which tightens those of all nodes it seals.
//  X3  A node that is dirty is reachable from the root through dirty nodes only.
//  X4  No node but the root is empty; an inner root has at least two children.
//  X5  Lookups and scans hold the latch shared, changes and freeze exclusively; no latch is held by
//      a caller between calls. covering() holds none where its answer is remembered:
//      lookup_cache.h.
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
  // Answers of covering() kept in RAM.
  uint64_t answers_bytes = uint64_t{16} << 20;

  // For a server: a 64th of this machine's memory for each of the two, at most 512 MiB and at least
  // what a fresh IndexOptions has. They fill with use.
  static IndexOptions for_this_machine();
};

struct IndexRoot {
  BlockRef ref;       // block 0: empty tree
  uint8_t level = 0;  // 0: the root is a leaf
};

struct IndexStats {
  uint64_t entries;  // open()'s number, kept up to date
  uint64_t dirty_nodes;
  uint64_t cached_nodes;
  uint8_t height;  // levels, 0 when empty
};

// What a walk shows of each node; see Index::walk.
struct NodeView {
  BlockNumber block;
  uint8_t kind;  // format::BlockKind
  uint8_t level;
  uint32_t count;
};

struct IndexImpl;

class Index {
 public:
  // `io` outlives the index.
  Index(MetadataIo& io, IndexOptions options);
  ~Index();

  // Takes over a tree on the device (or an empty one). `entry_count`: its entries as the
  // superblock knows them; the index keeps the number up to date from there. Reads nothing. Nobody
  // else may be in a call.
  void open(IndexRoot root, uint64_t entry_count);

  // The smallest entry with key >= `key`, of any chunk or volume. Errors: CORRUPT, IO_ERROR.
  Result<std::optional<Entry>> at_or_after(const Key& key);
  // The entry of the key's chunk with the smallest generation >= the key's: where a snapshot of
  // that generation finds the chunk; none: nobody has copied it out since. Answers are remembered,
  // so that the next time neither tree nor latch is touched. Errors: as at_or_after().
  Result<std::optional<Entry>> covering(const Key& key);
  // The same where the answer is remembered, without waiting for anything; false: ask covering().
  bool covering_nowait(const Key& key, std::optional<Entry>& entry) const;
  // The largest entry with key < `key`.
  Result<std::optional<Entry>> before(const Key& key);
  // The entry with exactly this key.
  Result<std::optional<Entry>> find(const Key& key);

  // Appends entries with key >= `from` in order to `out`, at most `max_entries` (> 0), and sets
  // `next` to where to go on (kKeyEnd: finished); every call gets on. Subtrees for which
  // wanted(generation_min, generation_max) is false are skipped (leaves are never skipped in part;
  // a range is never empty). Visits at most about `max_nodes` nodes so that the latch is not held
  // for long. `wanted` must not call the index. On an error `out` may have grown.
  Status scan(const Key& from, const std::function<bool(Generation, Generation)>& wanted,
              size_t max_entries, size_t max_nodes, std::vector<Entry>& out, Key& next);

  // Inserts, or replaces the entry with the same key. The entry's location must be DATA, ZERO,
  // INHERIT or LOST, its key below kKeyEnd. On an error (a node can't be read) nothing has changed.
  Status insert(const Entry& entry);
  // Removes the entry with this key; `erased` tells whether there was one.
  Status erase(const Key& key, bool& erased);

  // An upper bound of the blocks that `changes` inserts or erases from now on, with no freeze in
  // between, can allocate.
  uint64_t blocks_needed(uint64_t changes);
  IndexStats stats();

  // Checkpoint, first step: seals all dirty nodes (children before parents), tightens generation
  // ranges, and hands out their images. From here on they are clean but stay in the cache until
  // frozen_written(); a change shadows them again. Returns the root to record.
  IndexRoot freeze(std::vector<SealedBlock>& out);
  // Checkpoint, second step: all images are on the device.
  void frozen_written();

  // Visits every node, parents first, checking each against its parent (X1, X2, X4, header, CRC);
  // nodes that are on the device are read from there, past the cache. `entry` sees every leaf entry
  // in key order. Problems are reported through `problem` and the walk goes on with what can be
  // trusted. Stops early, without an error, when a callback returns false. For a tree that does not
  // change meanwhile; lookups may go on. Errors: BUSY if it changed all the same.
  Status walk(const std::function<bool(const NodeView&)>& node,
              const std::function<bool(const Entry&)>& entry,
              const std::function<bool(const std::string&)>& problem);

 private:
  std::unique_ptr<IndexImpl> impl_;
};

}  // namespace csnap
