#include "store/index_cache.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>
#include <utility>

namespace csnap {

// ---- Images ------------------------------------------------------------------------------------

void ImagePool::SlabFree::operator()(void* slab) const { std::free(slab); }

ImagePool::Lease ImagePool::take() {
  MutexLock lock(mutex_);
  if (!free_.empty()) {
    BlockImage* image = free_.back();
    free_.pop_back();
    return Lease(image, Return{this});
  }
  if (fresh_ == kSlabImages) {
    const size_t slab_bytes = kSlabImages * sizeof(BlockImage);
    slabs_.emplace_back(std::aligned_alloc(slab_bytes, slab_bytes));
    CSNAP_ASSERT(slabs_.back() != nullptr);
    // Lookups jump about in the images: huge pages save most of their address translations. Where
    // there are none, nothing is lost.
    (void)madvise(slabs_.back().get(), slab_bytes, MADV_HUGEPAGE);
    fresh_ = 0;
  }
  std::byte* slab = static_cast<std::byte*>(slabs_.back().get());
  auto* image = new (slab + sizeof(BlockImage) * fresh_++) BlockImage;
  return Lease(image, Return{this});
}

void ImagePool::put_back(BlockImage* image) {
  MutexLock lock(mutex_);
  free_.push_back(image);
}

// ---- Nodes -------------------------------------------------------------------------------------

std::unique_ptr<Node> NodeCache::make(uint8_t level) {
  auto node = std::make_unique<Node>();
  node->level = level;
  node->image = pool_.take();
  if (level > 0) node->children = std::make_unique<std::atomic<Node*>[]>(format::kInnerEntriesMax);
  return node;
}

void NodeCache::link(std::unique_ptr<Node> node) {
  node->cache_slot = static_cast<uint32_t>(nodes_.size());
  nodes_.push_back(std::move(node));
}

Node* NodeCache::adopt(std::unique_ptr<Node> node, Node* parent, std::atomic<Node*>& place) {
  MutexLock lock(mutex_);
  if (Node* faster = place.load(std::memory_order_acquire)) {
    lock.unlock();
    return faster;
  }
  Node* result = node.get();
  result->parent = parent;
  if (parent) parent->resident_children++;
  link(std::move(node));
  clean_.fetch_add(1, std::memory_order_relaxed);
  place.store(result, std::memory_order_release);
  return result;
}

Node* NodeCache::adopt_dirty(std::unique_ptr<Node> node) {
  Node* result = node.get();
  result->dirty = true;
  dirty_++;
  link(std::move(node));
  return result;
}

void NodeCache::set_dirty(Node& node) {
  CSNAP_ASSERT(!node.dirty);
  if (unwritten(node))
    frozen_--;
  else
    clean_.fetch_sub(1, std::memory_order_relaxed);
  node.dirty = true;
  dirty_++;
}

void NodeCache::begin_freeze() {
  // A second freeze would hide that images of the first one never got to the device.
  CSNAP_ASSERT(written_serial_ == freeze_serial_);
  freeze_serial_++;
}

void NodeCache::set_frozen(Node& node) {
  CSNAP_ASSERT(node.dirty);
  node.dirty = false;
  node.frozen_serial = freeze_serial_;
  dirty_--;
  frozen_++;
}

void NodeCache::frozen_written() {
  written_serial_ = freeze_serial_;
  clean_.fetch_add(frozen_, std::memory_order_relaxed);
  frozen_ = 0;
}

void NodeCache::drop(Node& node) {
  CSNAP_ASSERT(node.resident_children == 0);
  if (node.dirty)
    dirty_--;
  else if (unwritten(node))
    frozen_--;
  else
    clean_.fetch_sub(1, std::memory_order_relaxed);
  const uint32_t slot = node.cache_slot;
  std::swap(nodes_[slot], nodes_.back());
  nodes_[slot]->cache_slot = slot;
  nodes_.pop_back();
}

void NodeCache::evict(const Node* root) {
  // Some more than needed, so that not every miss has to take the exclusive latch.
  const uint64_t target = clean_max_ - clean_max_ / 32 + 1;  // the root stays on top
  // One round takes second chances away, and each further one reaches one level higher (C1).
  uint64_t steps = nodes_.size() * (kIndexLevelsMax + 1);
  while (clean_.load(std::memory_order_relaxed) > target && steps-- > 0 && !nodes_.empty()) {
    if (hand_ >= nodes_.size()) hand_ = 0;
    Node& node = *nodes_[hand_];
    if (unwritten(node) || node.resident_children > 0 || &node == root ||
        node.referenced.exchange(false, std::memory_order_relaxed)) {
      hand_++;
      continue;
    }
    uint32_t slot = 0;
    while (node.parent->child(slot) != &node) slot++;
    node.parent->children[slot].store(nullptr, std::memory_order_relaxed);
    node.parent->resident_children--;
    drop(node);  // the last node takes this place and is looked at next
  }
}

void NodeCache::clear() {
  nodes_.clear();
  hand_ = 0;
  clean_ = 0;
  dirty_ = 0;
  frozen_ = 0;
  written_serial_ = freeze_serial_;
}

uint64_t NodeCache::node_count() const {
  MutexLock lock(mutex_);
  return nodes_.size();
}

}  // namespace csnap
