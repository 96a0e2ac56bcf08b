#include "store/index.h"

#include <unistd.h>

#include <algorithm>
#include <bit>

#include "store/index_impl.h"

namespace csnap {

// ---- Descent -----------------------------------------------------------------------------------

KeyBounds IndexImpl::bounds_of(const Node* parent, uint32_t slot) const {
  KeyBounds bounds;
  bool has_lower = false;
  while (parent) {
    const format::IndexChild* children = inner_children(*parent->image);
    if (!has_lower && slot > 0) {
      bounds.lower = key_of(children[slot]);
      has_lower = true;
    }
    if (!bounds.has_upper && slot + 1 < parent->count()) {
      bounds.upper = key_of(children[slot + 1]);
      bounds.has_upper = true;
    }
    if (has_lower && bounds.has_upper) break;
    const Node* grandparent = parent->parent;
    if (grandparent) {
      slot = 0;
      while (grandparent->child(slot) != parent) slot++;
    }
    parent = grandparent;
  }
  return bounds;
}

Status IndexImpl::load(Node* parent, uint32_t slot, Node*& out) {
  BlockRef ref = root_ref;
  uint8_t level = root_level;
  if (parent) {
    const format::IndexChild& child = inner_children(*parent->image)[slot];
    ref = {child.block, child.crc};
    level = static_cast<uint8_t>(parent->level - 1);
  } else if (level >= kIndexLevelsMax) {
    return corrupt_node(ref.block, "the superblock says level " + std::to_string(level));
  }
  std::unique_ptr<Node> node = cache.make(level);
  node->block = ref.block;
  CSNAP_TRY(io.read(ref, node_kind(level), level, *node->image));
  CSNAP_TRY(validate_node(*node->image, level, ref.block));
  CSNAP_TRY(validate_bounds(*node->image, level, ref.block, bounds_of(parent, slot)));
  out = cache.adopt(std::move(node), parent, parent ? parent->children[slot] : root);
  return Status();
}

Status IndexImpl::get_root(Node*& out) {
  out = root.load(std::memory_order_acquire);
  return out ? Status() : load(nullptr, 0, out);
}

Status IndexImpl::get_child(Node& parent, uint32_t slot, Node*& out) {
  out = parent.child(slot);
  return out ? Status() : load(&parent, slot, out);
}

Status IndexImpl::descend(const Key& key, IndexPath& path, bool stop_at_miss, bool& missed) {
  Node* node = root.load(std::memory_order_acquire);
  missed = !node && stop_at_miss;
  if (missed) return Status();
  if (!node) CSNAP_TRY(load(nullptr, 0, node));
  path.top = node->level;
  uint32_t guess = kNoGuess;
  for (;;) {
    node->touch();
    path.nodes[node->level] = node;
    if (node->level == 0) break;
    const uint32_t slot = inner_slot(*node->image, key);
    path.slots[node->level] = slot;
    Node* child = node->child(slot);
    missed = !child && stop_at_miss;
    if (missed) return Status();
    if (!child) CSNAP_TRY(load(node, slot, child));
    if (child->level == 0) {
      guess = guess_in_leaf(*node->image, slot, key);
      prefetch_leaf(*child->image, guess);
    }
    node = child;
  }
  path.slots[0] = leaf_lower_bound(*node->image, key, guess);
  return Status();
}

Status IndexImpl::descend(const Key& key, IndexPath& path) {
  bool missed = false;
  return descend(key, path, false, missed);
}

Status IndexImpl::step(IndexPath& path, bool forward, bool& moved) {
  uint32_t level = 1;
  while (level <= path.top && path.slots[level] == (forward ? path.node(level).count() - 1 : 0))
    level++;
  moved = level <= path.top;
  if (!moved) return Status();
  path.slots[level] += forward ? 1 : -1;
  for (; level > 0; level--) {
    Node* child = nullptr;
    CSNAP_TRY(get_child(path.node(level), path.slots[level], child));
    child->touch();
    path.nodes[level - 1] = child;
    path.slots[level - 1] = forward ? 0 : child->count() - 1;
  }
  return Status();
}

void IndexImpl::trim() {
  const bool answers_full = answers.full();
  if (!cache.over_limit() && !answers_full) return;
  ExclusiveLock lock(latch);
  if (answers_full) answers.grow();
  if (cache.over_limit()) cache.evict(root);
}

Generation IndexImpl::answers_from(const IndexPath& path, const Key& key) const {
  if (path.slots[0] == 0) return key.generation;
  const Key former = key_of(leaf_entries(*path.node(0).image)[path.slots[0] - 1]);
  return former.same_chunk(key) ? former.generation + 1 : 0;
}

// ---- Lookups -----------------------------------------------------------------------------------

IndexOptions IndexOptions::for_this_machine() {
  constexpr uint64_t kMost = uint64_t{512} << 20;
  const uint64_t memory =
      static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  IndexOptions options;
  options.cache_bytes = std::clamp(memory / 64, options.cache_bytes, kMost);
  options.answers_bytes = std::clamp(memory / 64, options.answers_bytes, kMost);
  return options;
}

Index::Index(MetadataIo& io, IndexOptions options)
    : impl_(std::make_unique<IndexImpl>(io, options)) {
  CSNAP_ASSERT(options.leaf_capacity >= 4);
  CSNAP_ASSERT(options.leaf_capacity <= format::kLeafEntriesMax);
  CSNAP_ASSERT(options.inner_capacity >= 4);
  CSNAP_ASSERT(options.inner_capacity <= format::kInnerEntriesMax);
}

Index::~Index() = default;

void Index::open(IndexRoot root, uint64_t entry_count) {
  ExclusiveLock lock(impl_->latch);
  impl_->root = nullptr;
  impl_->cache.clear();
  impl_->answers.clear();
  impl_->root_ref = root.ref;
  impl_->root_level = root.level;
  impl_->entries = entry_count;
  impl_->changes++;
}

Result<std::optional<Entry>> Index::at_or_after(const Key& key) {
  std::optional<Entry> found;
  {
    SharedLock lock(impl_->latch);
    if (impl_->empty()) return found;
    IndexPath path;
    CSNAP_TRY(impl_->descend(key, path));
    bool there = path.slot(0) < path.node(0).count();
    if (!there) CSNAP_TRY(impl_->step(path, true, there));
    if (there) found = Entry::from_disk(leaf_entries(*path.node(0).image)[path.slot(0)]);
  }
  impl_->trim();
  return found;
}

Result<std::optional<Entry>> Index::covering(const Key& key) {
  std::optional<Entry> found;
  if (impl_->answers.find(key, found)) return found;
  {
    SharedLock lock(impl_->latch);
    if (impl_->empty()) {
      impl_->answers.keep(key, {});
      return found;
    }
    IndexPath path;
    CSNAP_TRY(impl_->descend(key, path));
    const Generation from = impl_->answers_from(path, key);
    bool there = path.slot(0) < path.node(0).count();
    if (!there) CSNAP_TRY(impl_->step(path, true, there));
    if (there) found = Entry::from_disk(leaf_entries(*path.node(0).image)[path.slot(0)]);
    if (found && !found->key.same_chunk(key)) found.reset();
    impl_->answers.keep(key, {from, found});
  }
  impl_->trim();
  return found;
}

bool Index::covering_nowait(const Key& key, std::optional<Entry>& entry) const {
  return impl_->answers.find(key, entry);
}

Result<std::optional<Entry>> Index::before(const Key& key) {
  std::optional<Entry> found;
  {
    SharedLock lock(impl_->latch);
    if (impl_->empty()) return found;
    IndexPath path;
    CSNAP_TRY(impl_->descend(key, path));
    bool there = path.slot(0) > 0;
    if (there)
      path.slot(0)--;
    else
      CSNAP_TRY(impl_->step(path, false, there));
    if (there) found = Entry::from_disk(leaf_entries(*path.node(0).image)[path.slot(0)]);
  }
  impl_->trim();
  return found;
}

Result<std::optional<Entry>> Index::find(const Key& key) {
  std::optional<Entry> found;
  {
    SharedLock lock(impl_->latch);
    if (impl_->empty()) return found;
    IndexPath path;
    CSNAP_TRY(impl_->descend(key, path));
    if (path.slot(0) < path.node(0).count()) {
      const Entry entry = Entry::from_disk(leaf_entries(*path.node(0).image)[path.slot(0)]);
      if (entry.key == key) found = entry;
    }
  }
  impl_->trim();
  return found;
}

// ---- Scan --------------------------------------------------------------------------------------

Status Index::scan(const Key& from, const std::function<bool(Generation, Generation)>& wanted,
                   size_t max_entries, size_t max_nodes, std::vector<Entry>& out, Key& next) {
  CSNAP_ASSERT(max_entries > 0);
  Status status;
  {
    SharedLock lock(impl_->latch);
    status = impl_->scan_locked(from, wanted, max_entries, max_nodes, out, next);
  }
  impl_->trim();
  return status;
}

Status IndexImpl::scan_locked(const Key& from,
                              const std::function<bool(Generation, Generation)>& wanted,
                              size_t max_entries, size_t max_nodes, std::vector<Entry>& out,
                              Key& next) {
  next = kKeyEnd;
  if (empty() || from == kKeyEnd) return Status();
  // All keys below `next` are done with. A stop is possible only when it has grown past `from`, so
  // that every call gets on however small max_nodes is.
  next = from;
  const size_t stop_size = out.size() + max_entries;
  size_t nodes_seen = 1;
  IndexPath path;
  Node* node = nullptr;
  CSNAP_TRY(get_root(node));
  path.top = node->level;
  path.nodes[node->level] = node;
  path.slot(node->level) = node->level ? inner_slot(*node->image, from) : 0;
  for (uint32_t level = node->level; level <= path.top;) {
    Node& here = path.node(level);
    here.touch();
    if (level == 0) {
      const format::IndexEntry* entries = leaf_entries(*here.image);
      for (uint32_t i = leaf_lower_bound(*here.image, next); i < here.count(); i++) {
        if (out.size() == stop_size) {
          next = key_of(entries[i]);
          return Status();
        }
        out.push_back(Entry::from_disk(entries[i]));
      }
      level++;
      if (level <= path.top) path.slot(level)++;
      continue;
    }
    const uint32_t slot = path.slot(level);
    if (slot == here.count()) {
      level++;
      if (level <= path.top) path.slot(level)++;
      continue;
    }
    const format::IndexChild& child = inner_children(*here.image)[slot];
    if (slot > 0 && key_of(child) > next) next = key_of(child);
    if (next > from && (out.size() == stop_size || nodes_seen >= max_nodes)) return Status();
    const GenerationRange range = range_of(child);
    if (!wanted(range.min, range.max)) {
      path.slot(level)++;
      continue;
    }
    CSNAP_TRY(get_child(here, slot, node));
    nodes_seen++;
    level--;
    path.nodes[level] = node;
    path.slot(level) = level ? inner_slot(*node->image, next) : 0;
  }
  next = kKeyEnd;
  return Status();
}

// ---- Changes: first resident nodes only, so that no read is done under the exclusive latch
// -------

namespace {
// How often a change lets the nodes it needs be read under the shared latch; then it reads itself.
constexpr int kWarmRounds = 2;
}  // namespace

Status Index::insert(const Entry& entry) {
  CSNAP_ASSERT(entry_is_valid(entry.to_disk()));
  Status status;
  for (int round = 0;; round++) {
    bool missed = false;
    {
      ExclusiveLock lock(impl_->latch);
      status = impl_->insert_locked(entry, round < kWarmRounds, missed);
    }
    if (!missed) break;
    SharedLock lock(impl_->latch);
    CSNAP_TRY(impl_->warm(entry.key, false));
  }
  impl_->trim();
  return status;
}

Status Index::erase(const Key& key, bool& erased) {
  Status status;
  for (int round = 0;; round++) {
    bool missed = false;
    {
      ExclusiveLock lock(impl_->latch);
      status = impl_->erase_locked(key, erased, round < kWarmRounds, missed);
    }
    if (!missed) break;
    SharedLock lock(impl_->latch);
    CSNAP_TRY(impl_->warm(key, true));
  }
  impl_->trim();
  return status;
}

uint64_t Index::blocks_needed(uint64_t changes) {
  SharedLock lock(impl_->latch);
  if (changes == 0) return 0;
  // A superblock may claim any level; a change refuses what is too high.
  const uint32_t height =
      impl_->empty() ? 0 : std::min<uint32_t>(impl_->root_level + 1u, kIndexLevelsMax);
  // By depth: how many nodes the format allows there (saturating).
  std::array<uint64_t, kIndexLevelsMax> nodes_max{};
  uint64_t nodes = 1;
  for (uint32_t depth = 0; depth < height; depth++) {
    nodes_max[depth] = nodes;
    const bool saturated = nodes > UINT64_MAX / format::kInnerEntriesMax;
    nodes = saturated ? UINT64_MAX : nodes * format::kInnerEntriesMax;
  }
  // A change shadows its path and at most one neighbour at each level.
  uint64_t bound = 0;
  for (uint32_t depth = 0; depth < height; depth++)
    bound += std::min(2 * changes, nodes_max[depth]);
  // A change splits at most one leaf. Above, each split takes one below; a node that was full
  // before splits at the first, one made by a split or merge after two at the earliest.
  uint64_t splits = changes;
  bound += splits;
  for (uint32_t level = 1; level < height; level++) {
    const uint64_t full = nodes_max[height - 1 - level];
    splits = full < splits ? std::min(splits, full + splits / 2 + 1) : splits;
    bound += splits;
  }
  // New levels above the root: half as many splits on each, and their roots.
  return bound + splits + static_cast<uint64_t>(std::bit_width(changes)) + 2;
}

IndexStats Index::stats() {
  SharedLock lock(impl_->latch);
  IndexStats stats{};
  stats.entries = impl_->entries;
  stats.dirty_nodes = impl_->cache.dirty_count();
  stats.cached_nodes = impl_->cache.node_count();
  const uint32_t height = std::min<uint32_t>(impl_->root_level + 1u, kIndexLevelsMax);
  stats.height = impl_->empty() ? 0 : static_cast<uint8_t>(height);
  return stats;
}

// ---- Checkpoint --------------------------------------------------------------------------------

void IndexImpl::seal_node(Node& node, Node* parent, uint32_t slot, std::vector<SealedBlock>& out) {
  const uint32_t crc = io.seal(node.block, *node.image);
  // The node may be changed again while its image is being written, so the image is a copy.
  out.push_back({node.block, std::make_unique<BlockImage>(*node.image)});
  cache.set_frozen(node);
  if (!parent) {
    CSNAP_ASSERT(root_ref.block == node.block);
    root_ref.crc = crc;
    return;
  }
  format::IndexChild& child = inner_children(*parent->image)[slot];
  CSNAP_ASSERT(child.block == node.block);
  CSNAP_ASSERT(parent->dirty);  // X3
  child.crc = crc;
  set_range(child, node_range(*node.image, node.level));
}

IndexRoot Index::freeze(std::vector<SealedBlock>& out) {
  ExclusiveLock lock(impl_->latch);
  impl_->cache.begin_freeze();
  impl_->changes++;
  Node* top = impl_->root;
  if (top && top->dirty) {
    // Post order over the dirty nodes. slots[level]: the next child to look at.
    IndexPath path;
    path.top = top->level;
    path.nodes[top->level] = top;
    path.slot(top->level) = 0;
    for (uint32_t level = top->level; level <= path.top;) {
      Node& node = path.node(level);
      Node* child = nullptr;
      if (level > 0) {
        uint32_t& slot = path.slot(level);
        while (slot < node.count() && !(child && child->dirty)) child = node.child(slot++);
        if (child && !child->dirty) child = nullptr;
      }
      if (child) {
        level--;
        path.nodes[level] = child;
        path.slot(level) = 0;
        continue;
      }
      const bool is_root = level == path.top;
      Node* parent = is_root ? nullptr : path.nodes[level + 1];
      impl_->seal_node(node, parent, is_root ? 0 : path.slot(level + 1) - 1, out);
      level++;
    }
  }
  CSNAP_ASSERT(impl_->cache.dirty_count() == 0);
  return {impl_->root_ref, impl_->root_level};
}

void Index::frozen_written() {
  ExclusiveLock lock(impl_->latch);
  impl_->cache.frozen_written();
  impl_->changes++;
  if (impl_->cache.over_limit()) impl_->cache.evict(impl_->root);
}

}  // namespace csnap
