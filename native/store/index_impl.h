// The inside of Index, shared by its files: index.cc (lookups, scan, checkpoint), index_change.cc
// (insert, erase) and index_walk.cc (check). Invariants: index.h, index_cache.h.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <vector>

#include "store/index.h"
#include "store/index_cache.h"
#include "store/index_node.h"
#include "store/lookup_cache.h"

namespace csnap {

// A way from the root down, by level. slots[level]: of an inner node the child taken, of a leaf the
// position found. Filled from `top` (the root's level) down to `bottom`.
struct IndexPath {
  std::array<Node*, kIndexLevelsMax> nodes;
  std::array<uint32_t, kIndexLevelsMax> slots;
  uint32_t top = 0;

  Node& node(uint32_t level) const { return *nodes[level]; }
  uint32_t& slot(uint32_t level) { return slots[level]; }
};

struct IndexImpl {
  IndexImpl(MetadataIo& metadata_io, const IndexOptions& index_options)
      : io(metadata_io),
        options(index_options),
        cache(index_options.cache_bytes),
        answers(index_options.answers_bytes) {}

  MetadataIo& io;
  const IndexOptions options;
  SharedMutex latch;  // X5
  NodeCache cache;
  LookupCache answers;
  // The tree: where it is on the device, and its root node if that is resident. Of a dirty root,
  // root_ref.crc means nothing.
  std::atomic<Node*> root{nullptr};
  BlockRef root_ref;
  uint8_t root_level = 0;
  uint64_t entries = 0;
  uint64_t changes = 0;  // grows with every change of a node, so that walk() notices one

  uint32_t capacity(uint32_t level) const {
    return level == 0 ? options.leaf_capacity : options.inner_capacity;
  }

  // ---- Any latch (index.cc) ----
  // Reads a node that is not resident. `parent` null: the root.
  Status load(Node* parent, uint32_t slot, Node*& out);
  Status get_root(Node*& out);
  Status get_child(Node& parent, uint32_t slot, Node*& out);
  KeyBounds bounds_of(const Node* parent, uint32_t slot) const;
  // Goes down to the leaf where `key` belongs; the tree is not empty. `stop_at_miss`: don't read,
  // but set `missed` instead.
  Status descend(const Key& key, IndexPath& path, bool stop_at_miss, bool& missed);
  Status descend(const Key& key, IndexPath& path);
  // Moves the path to the next or former leaf; `moved` false: there is none.
  Status step(IndexPath& path, bool forward, bool& moved);
  Status scan_locked(const Key& from, const std::function<bool(Generation, Generation)>& wanted,
                     size_t max_entries, size_t max_nodes, std::vector<Entry>& out, Key& next);
  // Of the path's position: the smallest generation from which on its entry answers a question that
  // led there, as far as this leaf tells. Before step().
  Generation answers_from(const IndexPath& path, const Key& key) const;
  bool empty() const { return root_ref.block == 0; }

  // After a call that may have loaded nodes; takes the latch, so none may be held.
  void trim();

  // ---- Exclusive latch (index_change.cc) ----
  // `missed` set: nothing was done because a node is not resident.
  Status insert_locked(const Entry& entry, bool stop_at_miss, bool& missed);
  Status erase_locked(const Key& key, bool& erased, bool stop_at_miss, bool& missed);
  // Shared latch: makes resident what a change of `key` needs.
  Status warm(const Key& key, bool for_erase);

  // ---- Exclusive latch (index.cc) ----
  void seal_node(Node& node, Node* parent, uint32_t slot, std::vector<SealedBlock>& out);
};

}  // namespace csnap
