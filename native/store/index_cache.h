// The resident part of the exception index: a tree of nodes in RAM that mirrors the top of the tree
// on the device. A parent points straight at its resident children, so a descent needs no look-up
// table. Caller: Index only.
//
// Invariants
//  C1  A resident node's parent is resident; `resident_children` counts the pointers it holds.
//  C2  Under the shared latch nodes are only added (under `mutex_`); they are removed and changed
//      under the exclusive latch only. So a Node* is good for as long as any latch is held.
//  C3  Only clean nodes are evicted: not dirty, not frozen and still unwritten. Ancestors of a
//  dirty
//      node are dirty (X3) and those of a frozen one dirty or frozen, so below a clean node all is
//      clean, and while there are clean nodes besides the root one of them can go.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/sync.h"
#include "store/index_node.h"

namespace csnap {

// Images in slabs. An aligned 4 KiB allocation from the C library would take up twice its size.
class ImagePool {
 public:
  struct Return {
    ImagePool* pool = nullptr;
    void operator()(BlockImage* image) const { pool->put_back(image); }
  };
  using Lease = std::unique_ptr<BlockImage, Return>;

  // Bytes of the image are arbitrary.
  Lease take();

 private:
  static constexpr size_t kSlabImages = 512;
  struct SlabFree {
    void operator()(void* slab) const;
  };
  void put_back(BlockImage* image);

  Mutex mutex_;
  std::vector<std::unique_ptr<void, SlabFree>> slabs_;
  std::vector<BlockImage*> free_;
  size_t fresh_ = kSlabImages;  // images handed out of the last slab, in order
};

struct Node {
  ImagePool::Lease image;
  // Inner nodes: kInnerEntriesMax pointers, parallel to the records; null: not resident.
  std::unique_ptr<std::atomic<Node*>[]> children;
  BlockNumber block = 0;
  Node* parent = nullptr;
  uint64_t frozen_serial = 0;  // of the freeze that sealed it last
  uint32_t cache_slot = 0;
  uint32_t resident_children = 0;
  uint8_t level = 0;
  bool dirty = false;
  std::atomic<bool> referenced{true};  // second chance (CLOCK)

  uint32_t count() const { return node_count(*image); }
  void touch() {
    if (!referenced.load(std::memory_order_relaxed))
      referenced.store(true, std::memory_order_relaxed);
  }
  Node* child(uint32_t slot) const { return children[slot].load(std::memory_order_acquire); }
};

class NodeCache {
 public:
  explicit NodeCache(uint64_t cache_bytes) : clean_max_(cache_bytes / kBlockBytes) {}

  // A node of its own, not resident yet; its image is arbitrary.
  std::unique_ptr<Node> make(uint8_t level);
  // Any latch. Makes a clean `node` resident under `parent` (null: as root) where `place` points at
  // it. If another thread was faster, its node is returned and `node` dropped.
  Node* adopt(std::unique_ptr<Node> node, Node* parent, std::atomic<Node*>& place);

  // The rest needs the exclusive latch.
  // Makes a new, dirty node resident that no parent points at yet.
  Node* adopt_dirty(std::unique_ptr<Node> node);
  void set_dirty(Node& node);
  // The node was sealed.
  void set_frozen(Node& node);
  void begin_freeze();
  void frozen_written();
  // Forgets a node, which no parent points at any more.
  void drop(Node& node);
  // Brings clean nodes below the bound. `root` stays.
  void evict(const Node* root);
  void clear();

  // Any latch or none.
  bool over_limit() const { return clean_.load(std::memory_order_relaxed) > clean_max_ + 1; }
  // Any latch.
  uint64_t node_count() const;
  uint64_t dirty_count() const { return dirty_; }
  bool unwritten(const Node& node) const {
    return node.dirty || node.frozen_serial > written_serial_;
  }

 private:
  void link(std::unique_ptr<Node> node);

  const uint64_t clean_max_;
  ImagePool pool_;  // outlives nodes_
  mutable Mutex mutex_;
  std::vector<std::unique_ptr<Node>> nodes_;
  size_t hand_ = 0;
  std::atomic<uint64_t> clean_{0};
  uint64_t dirty_ = 0;
  uint64_t frozen_ = 0;
  uint64_t freeze_serial_ = 0;
  uint64_t written_serial_ = 0;
};

}  // namespace csnap
