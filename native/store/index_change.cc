// Insert and erase: first everything the change needs is found and resident, then it happens.
#include <algorithm>
#include <cstring>

#include "store/index_impl.h"

namespace csnap {
namespace {

// An inner or leaf node with fewer records looks for a neighbour to merge or share with.
uint32_t small_count(uint32_t capacity) { return std::max(2u, capacity / 4); }
// Two nodes become one up to this sum; above they share evenly. Leaves room for later inserts.
uint32_t merge_count_max(uint32_t capacity) { return capacity * 3 / 4; }

std::byte* record(Node& node, uint32_t slot) {
  return node.image->payload() + slot * record_bytes(node.level);
}

void set_count(Node& node, uint32_t count) {
  CSNAP_ASSERT(count <= node_count_max(node.level));
  node.image->header().count = static_cast<uint16_t>(count);
}

void place_child(Node& parent, uint32_t slot, Node* child) {
  parent.children[slot].store(child, std::memory_order_relaxed);
  if (!child) return;
  child->parent = &parent;
  parent.resident_children++;
}

Node* take_child(Node& parent, uint32_t slot) {
  Node* child = parent.children[slot].exchange(nullptr, std::memory_order_relaxed);
  if (child) parent.resident_children--;
  return child;
}

// Makes room for `count` records at `slot`; their bytes are arbitrary afterwards.
void open_gap(Node& node, uint32_t slot, uint32_t count) {
  const uint32_t behind = node.count() - slot;
  set_count(node, node.count() + count);
  std::memmove(record(node, slot + count), record(node, slot), behind * record_bytes(node.level));
  if (node.level == 0) return;
  for (uint32_t i = behind; i-- > 0;)
    place_child(node, slot + count + i, take_child(node, slot + i));
}

// Removes `count` records at `slot`, whose child pointers are taken already.
void close_gap(Node& node, uint32_t slot, uint32_t count) {
  const uint32_t left = node.count() - count;
  std::memmove(record(node, slot), record(node, slot + count),
               (left - slot) * record_bytes(node.level));
  std::memset(record(node, left), 0, count * record_bytes(node.level));  // N2
  set_count(node, left);
  if (node.level == 0) return;
  for (uint32_t i = slot; i < left; i++) place_child(node, i, take_child(node, i + count));
}

// Moves records, with their resident children, to another node of the same level.
void move_records(Node& from, uint32_t first, uint32_t count, Node& to, uint32_t at) {
  open_gap(to, at, count);
  std::memcpy(record(to, at), record(from, first), count * record_bytes(from.level));
  if (from.level > 0)
    for (uint32_t i = 0; i < count; i++) place_child(to, at + i, take_child(from, first + i));
  close_gap(from, first, count);
}

// The key that leads to `node` from now on; an inner node does not keep its first key (N2).
Key take_separator(Node& node) {
  if (node.level == 0) return key_of(leaf_entries(*node.image)[0]);
  format::IndexChild& first = inner_children(*node.image)[0];
  const Key key = key_of(first);
  set_key(first, Key{});
  return key;
}

void refresh_range(Node& parent, uint32_t slot, const Node& child) {
  set_range(inner_children(*parent.image)[slot], node_range(*child.image, child.level));
}

void widen_range(Node& parent, uint32_t slot, const Key& key) {
  format::IndexChild& child = inner_children(*parent.image)[slot];
  GenerationRange range = range_of(child);
  range.add(key);
  set_range(child, range);
}

// One change under the exclusive latch.
class Change {
 public:
  Change(IndexImpl& impl, IndexPath& path) : impl_(impl), path_(path) {}

  void insert(const Entry& entry);
  // Fills in the plan of an erase; reads the neighbours it needs unless `stop_at_miss`.
  Status plan_erase(bool stop_at_miss, bool& missed);
  void erase();

 private:
  // What becomes of the path's node of a level once a record below or in it is gone.
  enum class Fix { NONE, DROP, MERGE, SHARE };

  Node* new_node(uint32_t level);
  void make_writable(Node& node, Node* parent, uint32_t slot);
  void make_path_writable(uint32_t from_level);
  void drop(Node& node);
  bool spill_right(const Entry& entry);
  Node* split(Node& node, uint32_t at, bool& goes_right);
  void grow_root(Node* right);
  void collapse_root();
  void join(uint32_t level);

  IndexImpl& impl_;
  IndexPath& path_;
  std::array<Fix, kIndexLevelsMax> fixes_{};
  // Of MERGE and SHARE: the slot of the left one of the two in their parent.
  std::array<uint32_t, kIndexLevelsMax> left_slots_{};
};

Node* Change::new_node(uint32_t level) {
  std::unique_ptr<Node> node = impl_.cache.make(static_cast<uint8_t>(level));
  init_node(*node->image, static_cast<uint8_t>(level));
  node->block = impl_.io.allocate();
  return impl_.cache.adopt_dirty(std::move(node));
}

// Shadowing: the old block keeps what the last checkpoint refers to. Parents come first (X3).
void Change::make_writable(Node& node, Node* parent, uint32_t slot) {
  if (node.dirty) return;
  const BlockNumber old_block = node.block;
  node.block = impl_.io.allocate();
  impl_.io.release(old_block);
  impl_.cache.set_dirty(node);
  if (!parent) {
    impl_.root_ref = {node.block, 0};
    return;
  }
  CSNAP_ASSERT(parent->dirty);
  format::IndexChild& child = inner_children(*parent->image)[slot];
  child.block = node.block;
  child.crc = 0;  // known at the freeze
}

void Change::make_path_writable(uint32_t from_level) {
  for (uint32_t level = path_.top + 1; level-- > from_level;) {
    const bool is_root = level == path_.top;
    make_writable(path_.node(level), is_root ? nullptr : path_.nodes[level + 1],
                  is_root ? 0 : path_.slot(level + 1));
  }
}

void Change::drop(Node& node) {
  impl_.io.release(node.block);
  impl_.cache.drop(node);
}

// ---- Insert ------------------------------------------------------------------------------------

void Change::insert(const Entry& entry) {
  make_path_writable(0);
  Node* leaf = &path_.node(0);
  uint32_t at = path_.slot(0);
  if (at < leaf->count() && key_of(leaf_entries(*leaf->image)[at]) == entry.key) {
    leaf_entries(*leaf->image)[at] = entry.to_disk();
    return;
  }
  impl_.entries++;
  for (uint32_t level = 1; level <= path_.top; level++)
    widen_range(path_.node(level), path_.slot(level), entry.key);
  const bool full = leaf->count() >= impl_.capacity(0);
  if (full && spill_right(entry)) return;
  Node* right = nullptr;
  if (full) {
    bool goes_right = false;
    right = split(*leaf, at, goes_right);
    if (goes_right) {
      at -= leaf->count();
      leaf = right;
    }
  }
  open_gap(*leaf, at, 1);
  leaf_entries(*leaf->image)[at] = entry.to_disk();

  for (uint32_t level = 1; right; level++) {
    if (level > path_.top) return grow_root(right);
    Node* parent = &path_.node(level);
    uint32_t slot = path_.slot(level);
    refresh_range(*parent, slot, path_.node(level - 1));
    Node* parent_right = nullptr;
    slot++;
    if (parent->count() >= impl_.capacity(level)) {
      bool goes_right = false;
      parent_right = split(*parent, slot, goes_right);
      if (goes_right) {
        slot -= parent->count();
        parent = parent_right;
      }
    }
    open_gap(*parent, slot, 1);
    format::IndexChild& child = inner_children(*parent->image)[slot];
    child = {};
    child.block = right->block;
    set_key(child, take_separator(*right));
    place_child(*parent, slot, right);
    refresh_range(*parent, slot, *right);
    right = parent_right;
  }
}

// An entry at the right edge of a full leaf goes to the front of the next leaf if that has room and
// is at hand. Otherwise descending inserts there would leave a leaf for each entry (see split).
bool Change::spill_right(const Entry& entry) {
  if (path_.top == 0 || path_.slot(0) < path_.node(0).count()) return false;
  Node& parent = path_.node(1);
  const uint32_t slot = path_.slot(1) + 1;
  if (slot >= parent.count()) return false;
  Node* right = parent.child(slot);
  if (!right || right->count() >= impl_.capacity(0)) return false;
  make_writable(*right, &parent, slot);
  open_gap(*right, 0, 1);
  leaf_entries(*right->image)[0] = entry.to_disk();
  set_key(inner_children(*parent.image)[slot], entry.key);
  widen_range(parent, slot, entry.key);
  return true;
}

// Cuts a full node in two, of which the right one is new and has no parent yet. `at`: where a
// record is to be inserted next; `goes_right`: into the right one, at `at` less the left one's
// count.
Node* Change::split(Node& node, uint32_t at, bool& goes_right) {
  const uint32_t count = node.count();
  uint32_t keep = count / 2;
  // Ascending inserts append. Then the left node stays full, so that they leave full nodes behind.
  // An inner node gives its last child away, as each has at least two.
  if (at == count) keep = node.level == 0 ? count : count - 1;
  goes_right = at > keep || keep == count;
  Node* right = new_node(node.level);
  if (keep < count) move_records(node, keep, count - keep, *right, 0);
  return right;
}

void Change::grow_root(Node* right) {
  Node* left = impl_.root;
  Node* top = new_node(left->level + 1u);
  set_count(*top, 2);
  format::IndexChild* children = inner_children(*top->image);
  children[0].block = left->block;
  children[1].block = right->block;
  set_key(children[1], take_separator(*right));
  place_child(*top, 0, left);
  place_child(*top, 1, right);
  refresh_range(*top, 0, *left);
  refresh_range(*top, 1, *right);
  impl_.root = top;
  impl_.root_ref = {top->block, 0};
  impl_.root_level = top->level;
}

// ---- Erase -------------------------------------------------------------------------------------

Status Change::plan_erase(bool stop_at_miss, bool& missed) {
  for (uint32_t level = 0; level <= path_.top; level++) {
    const uint32_t capacity = impl_.capacity(level);
    const uint32_t left_over = path_.node(level).count() - 1;
    fixes_[level] = Fix::NONE;
    if (left_over == 0) {
      fixes_[level] = Fix::DROP;
      continue;
    }
    if (left_over >= small_count(capacity) || level == path_.top) return Status();
    Node& parent = path_.node(level + 1);
    if (parent.count() < 2) return Status();
    const uint32_t slot = path_.slot(level + 1);
    const uint32_t neighbour_slot = slot > 0 ? slot - 1 : 1;
    Node* neighbour = parent.child(neighbour_slot);
    if (!neighbour && stop_at_miss) {
      missed = true;
      return Status();
    }
    if (!neighbour) CSNAP_TRY(impl_.get_child(parent, neighbour_slot, neighbour));
    left_slots_[level] = std::min(slot, neighbour_slot);
    const bool fits = left_over + neighbour->count() <= merge_count_max(capacity);
    fixes_[level] = fits ? Fix::MERGE : Fix::SHARE;
    if (!fits) return Status();
  }
  return Status();
}

void Change::erase() {
  uint32_t level = 0;
  while (level <= path_.top && fixes_[level] == Fix::DROP) level++;
  // What is dropped needs no new block.
  make_path_writable(level);
  // The record, then the nodes that only led to it. The path's slot is that of the lost child.
  for (uint32_t dropped = 0; dropped < level; dropped++) {
    Node& node = path_.node(dropped);
    if (dropped < path_.top) take_child(path_.node(dropped + 1), path_.slot(dropped + 1));
    drop(node);
  }
  if (level > path_.top) {
    impl_.root = nullptr;
    impl_.root_ref = {};
    impl_.root_level = 0;
    return;
  }
  Node& node = path_.node(level);
  close_gap(node, path_.slot(level), 1);
  if (level > 0 && path_.slot(level) == 0) set_key(inner_children(*node.image)[0], Key{});
  for (; level < path_.top && fixes_[level] != Fix::NONE; level++) {
    join(level);
    if (fixes_[level] == Fix::SHARE) break;
  }
  collapse_root();
}

// Merges the path's node with its neighbour, or shares their records evenly.
void Change::join(uint32_t level) {
  Node& parent = path_.node(level + 1);
  const uint32_t left_slot = left_slots_[level];
  Node& left = *parent.child(left_slot);
  Node& right = *parent.child(left_slot + 1);
  make_writable(left, &parent, left_slot);
  format::IndexChild* children = inner_children(*parent.image);
  // Between the two, the right one's first key counts again.
  if (level > 0) set_key(inner_children(*right.image)[0], key_of(children[left_slot + 1]));
  if (fixes_[level] == Fix::MERGE) {
    move_records(right, 0, right.count(), left, left.count());
    take_child(parent, left_slot + 1);
    drop(right);
    close_gap(parent, left_slot + 1, 1);
  } else {
    make_writable(right, &parent, left_slot + 1);
    const uint32_t keep = (left.count() + right.count()) / 2;
    if (left.count() > keep)
      move_records(left, keep, left.count() - keep, right, 0);
    else
      move_records(right, 0, keep - left.count(), left, left.count());
    set_key(children[left_slot + 1], take_separator(right));
    refresh_range(parent, left_slot + 1, right);
  }
  refresh_range(parent, left_slot, left);
}

// An inner root with a single child gives way to it (X4).
void Change::collapse_root() {
  Node* top = impl_.root;
  while (top && top->level > 0 && top->count() == 1) {
    const format::IndexChild& only = inner_children(*top->image)[0];
    Node* child = take_child(*top, 0);
    impl_.root_ref = {only.block, only.crc};
    impl_.root_level = static_cast<uint8_t>(top->level - 1);
    if (child) child->parent = nullptr;
    drop(*top);
    impl_.root = child;
    top = child;
  }
}

}  // namespace

Status IndexImpl::insert_locked(const Entry& entry, bool stop_at_miss, bool& missed) {
  IndexPath path;
  if (empty()) {
    std::unique_ptr<Node> node = cache.make(0);
    init_node(*node->image, 0);
    node->block = io.allocate();
    root_ref = {node->block, 0};
    root_level = 0;
    root = cache.adopt_dirty(std::move(node));
    path.nodes[0] = root;
    path.slots[0] = 0;
  } else {
    CSNAP_TRY(descend(entry.key, path, stop_at_miss, missed));
    if (missed) return Status();
    const bool root_may_split = path.node(path.top).count() >= capacity(path.top);
    if (root_may_split && path.top + 1 >= kIndexLevelsMax)
      return corrupt_node(root_ref.block, "the tree is too high");
  }
  Change(*this, path).insert(entry);
  answers.forget(entry.key);
  changes++;
  return Status();
}

Status IndexImpl::erase_locked(const Key& key, bool& erased, bool stop_at_miss, bool& missed) {
  erased = false;
  if (empty()) return Status();
  IndexPath path;
  CSNAP_TRY(descend(key, path, stop_at_miss, missed));
  if (missed || path.slot(0) == path.node(0).count() ||
      key_of(leaf_entries(*path.node(0).image)[path.slot(0)]) != key)
    return Status();
  Change change(*this, path);
  CSNAP_TRY(change.plan_erase(stop_at_miss, missed));
  if (missed) return Status();
  change.erase();
  answers.forget(key);
  // A count that the superblock had wrong is the checker's business.
  if (entries > 0) entries--;
  erased = true;
  changes++;
  return Status();
}

Status IndexImpl::warm(const Key& key, bool for_erase) {
  if (empty()) return Status();
  IndexPath path;
  CSNAP_TRY(descend(key, path));
  if (!for_erase) return Status();
  if (path.slot(0) == path.node(0).count() ||
      key_of(leaf_entries(*path.node(0).image)[path.slot(0)]) != key)
    return Status();
  bool missed = false;
  return Change(*this, path).plan_erase(false, missed);
}

}  // namespace csnap
