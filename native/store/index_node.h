// An index node in its disk form: the accessors, the search and the validator. Nobody else
// interprets the bytes of a node. Callers: NodeCache, Index (lookups, changes, walk), the fuzzer.
//
// Invariants
//  N1  A node that passed validate_node() can be searched, scanned and changed without further
//      checks: 1 <= count <= the format's maximum, keys strictly ascending, children's blocks not
//      0.
//  N2  Payload behind the last record is zero, and so is the key of an inner node's first record as
//      far as this code wrote it (a reader ignores that key).
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "store/entry.h"
#include "store/metadata_io.h"

namespace csnap {

// Levels of a tree, at most: a bound of every path, far above what a store can fill.
constexpr uint32_t kIndexLevelsMax = 32;

// Smallest and largest generation of some entries.
struct GenerationRange {
  Generation min = ~Generation{0};
  Generation max = 0;

  bool empty() const { return min > max; }
  void add(const Key& key);
  void add(const GenerationRange& other);
  bool covers(const GenerationRange& other) const {
    return other.empty() || (min <= other.min && other.max <= max);
  }
  bool operator==(const GenerationRange&) const = default;
};

// Where a node's keys must lie, as its ancestors say. `has_upper` false: no bound above.
struct KeyBounds {
  Key lower;  // inclusive
  Key upper;  // exclusive
  bool has_upper = false;
};

inline format::BlockKind node_kind(uint8_t level) {
  return level == 0 ? format::BlockKind::INDEX_LEAF : format::BlockKind::INDEX_INNER;
}
inline uint32_t node_count(const BlockImage& image) { return image.header().count; }
inline uint32_t node_count_max(uint8_t level) {
  return level == 0 ? format::kLeafEntriesMax : format::kInnerEntriesMax;
}
inline size_t record_bytes(uint8_t level) {
  return level == 0 ? sizeof(format::IndexEntry) : sizeof(format::IndexChild);
}

inline format::IndexEntry* leaf_entries(BlockImage& image) {
  return reinterpret_cast<format::IndexEntry*>(image.payload());
}
inline const format::IndexEntry* leaf_entries(const BlockImage& image) {
  return reinterpret_cast<const format::IndexEntry*>(image.payload());
}
inline format::IndexChild* inner_children(BlockImage& image) {
  return reinterpret_cast<format::IndexChild*>(image.payload());
}
inline const format::IndexChild* inner_children(const BlockImage& image) {
  return reinterpret_cast<const format::IndexChild*>(image.payload());
}

inline Key key_of(const format::IndexEntry& entry) {
  return {entry.volume, entry.chunk, entry.generation};
}
inline Key key_of(const format::IndexChild& child) {
  return {child.volume, child.chunk, child.generation};
}
void set_key(format::IndexChild& child, const Key& key);
GenerationRange range_of(const format::IndexChild& child);
void set_range(format::IndexChild& child, const GenerationRange& range);

// Makes `image` an empty node of `level`.
void init_node(BlockImage& image, uint8_t level);

// Position of the first leaf entry with key >= `key`; count when there is none.
uint32_t leaf_lower_bound(const BlockImage& image, const Key& key);
// The same, faster where the position is near `guess` (of kGuessScale: how far into the leaf).
uint32_t leaf_lower_bound(const BlockImage& image, const Key& key, uint32_t guess);
// Slot of the child under which `key` belongs.
uint32_t inner_slot(const BlockImage& image, const Key& key);
// Where in the leaf below `slot` a key should be if its chunks were spread evenly between the keys
// that part it from its neighbours; kNoGuess where they don't tell.
constexpr uint32_t kGuessScale = 1 << 16;
constexpr uint32_t kNoGuess = kGuessScale + 1;
uint32_t guess_in_leaf(const BlockImage& parent, uint32_t slot, const Key& key);
// Asks the processor for the lines that leaf_lower_bound() looks at first.
void prefetch_leaf(const BlockImage& image, uint32_t guess);

// Generations below a node, from its own records.
GenerationRange node_range(const BlockImage& image, uint8_t level);

// True if the index may hold the entry (location of a known kind, key below kKeyEnd).
bool entry_is_valid(const format::IndexEntry& entry);

// Checks what validate_block() does not know of: CORRUPT unless N1 holds and reserved bytes are 0.
// Any bytes may be passed. `block` is for the message.
Status validate_node(const BlockImage& image, uint8_t level, BlockNumber block);
// CORRUPT unless the keys of a valid node lie within `bounds` (X1).
Status validate_bounds(const BlockImage& image, uint8_t level, BlockNumber block,
                       const KeyBounds& bounds);
Status corrupt_node(BlockNumber block, const std::string& what);

}  // namespace csnap
