#include "store/index_node.h"

#include <algorithm>
#include <cstring>

namespace csnap {
namespace {

// key(record) < key, without branches: a search's comparisons are coin flips to the processor.
template <typename Record>
inline bool record_less(const Record& record, const Key& key) {
  const uint32_t volume = record.volume;
  const uint64_t chunk = record.chunk;
  const uint64_t generation = record.generation;
  return (volume < key.volume) |
         ((volume == key.volume) &
          ((chunk < key.chunk) | ((chunk == key.chunk) & (generation < key.generation))));
}

// key < key(record)
template <typename Record>
inline bool record_greater(const Record& record, const Key& key) {
  const uint32_t volume = record.volume;
  const uint64_t chunk = record.chunk;
  const uint64_t generation = record.generation;
  return (volume > key.volume) |
         ((volume == key.volume) &
          ((chunk > key.chunk) | ((chunk == key.chunk) & (generation > key.generation))));
}

bool all_zero(const void* data, size_t bytes) {
  const auto* begin = static_cast<const unsigned char*>(data);
  return std::all_of(begin, begin + bytes, [](unsigned char byte) { return byte == 0; });
}

Status validate_entries(const BlockImage& image, uint32_t count, BlockNumber block) {
  const format::IndexEntry* entries = leaf_entries(image);
  for (uint32_t i = 0; i < count; i++) {
    if (!entry_is_valid(entries[i]))
      return corrupt_node(block, "entry " + std::to_string(i) + " has an impossible location");
    if (i > 0 && !record_less(entries[i - 1], key_of(entries[i])))
      return corrupt_node(block, "entry " + std::to_string(i) + " is out of order");
  }
  return Status();
}

Status validate_children(const BlockImage& image, uint32_t count, BlockNumber block) {
  const format::IndexChild* children = inner_children(image);
  for (uint32_t i = 0; i < count; i++) {
    if (children[i].block == 0)
      return corrupt_node(block, "child " + std::to_string(i) + " has no block");
    if (range_of(children[i]).empty())
      return corrupt_node(block, "child " + std::to_string(i) + " has an empty generation range");
    // The first child's key is ignored, and the second one is the least that means something.
    if (i > 1 && !record_less(children[i - 1], key_of(children[i])))
      return corrupt_node(block, "child " + std::to_string(i) + " is out of order");
  }
  return Status();
}

}  // namespace

void GenerationRange::add(const Key& key) {
  min = std::min(min, key.generation);
  max = std::max(max, key.generation);
}

void GenerationRange::add(const GenerationRange& other) {
  if (other.empty()) return;
  min = std::min(min, other.min);
  max = std::max(max, other.max);
}

void set_key(format::IndexChild& child, const Key& key) {
  child.volume = key.volume;
  child.chunk = key.chunk;
  child.generation = key.generation;
}

GenerationRange range_of(const format::IndexChild& child) {
  return {child.generation_min, child.generation_max};
}

void set_range(format::IndexChild& child, const GenerationRange& range) {
  child.generation_min = range.min;
  child.generation_max = range.max;
}

void init_node(BlockImage& image, uint8_t level) {
  std::memset(image.bytes.data(), 0, image.bytes.size());
  image.header().kind = static_cast<uint8_t>(node_kind(level));
  image.header().level = level;
}

namespace {

// The same among `length` entries from `first` on; `first` + `length` when there is none.
uint32_t lower_bound_within(const format::IndexEntry* entries, uint32_t first, uint32_t length,
                            const Key& key) {
  while (length > 0) {
    const uint32_t half = length / 2;
    const bool less = record_less(entries[first + half], key);
    first = less ? first + half + 1 : first;
    length = less ? length - half - 1 : half;
  }
  return first;
}

// Entries that are looked at together around a guess: their lines are fetched at once.
constexpr uint32_t kGuessWindow = 6;

uint32_t guessed_start(uint32_t count, uint32_t guess) {
  const uint32_t middle = static_cast<uint32_t>(uint64_t{count} * guess / kGuessScale);
  return middle > kGuessWindow / 2 ? middle - kGuessWindow / 2 : 0;
}

}  // namespace

uint32_t leaf_lower_bound(const BlockImage& image, const Key& key) {
  return lower_bound_within(leaf_entries(image), 0, node_count(image), key);
}

uint32_t leaf_lower_bound(const BlockImage& image, const Key& key, uint32_t guess) {
  if (guess == kNoGuess) return leaf_lower_bound(image, key);
  const format::IndexEntry* const entries = leaf_entries(image);
  const uint32_t count = node_count(image);
  const uint32_t start = std::min(guessed_start(count, guess), count);
  const uint32_t end = std::min(start + kGuessWindow, count);
  if (start > 0 && !record_less(entries[start - 1], key))
    return lower_bound_within(entries, 0, start - 1, key);
  if (end < count && record_less(entries[end], key))
    return lower_bound_within(entries, end + 1, count - end - 1, key);
  return lower_bound_within(entries, start, end - start, key);
}

uint32_t guess_in_leaf(const BlockImage& parent, uint32_t slot, const Key& key) {
  if (slot == 0 || slot + 1 >= node_count(parent)) return kNoGuess;
  const Key lower = key_of(inner_children(parent)[slot]);
  const Key upper = key_of(inner_children(parent)[slot + 1]);
  if (lower.volume != upper.volume || key.chunk < lower.chunk || key.chunk > upper.chunk ||
      upper.chunk == lower.chunk)
    return kNoGuess;
  const double share =
      static_cast<double>(key.chunk - lower.chunk) / static_cast<double>(upper.chunk - lower.chunk);
  return static_cast<uint32_t>(share * kGuessScale);
}

uint32_t inner_slot(const BlockImage& image, const Key& key) {
  const format::IndexChild* const children = inner_children(image);
  uint32_t first = 1;  // the first record's key counts as minus infinity
  uint32_t length = node_count(image) - 1;
  while (length > 0) {
    const uint32_t half = length / 2;
    const bool greater = record_greater(children[first + half], key);
    first = greater ? first : first + half + 1;
    length = greater ? half : length - half - 1;
  }
  return first - 1;
}

void prefetch_leaf(const BlockImage& image, uint32_t guess) {
  constexpr size_t kLine = 64;
  if (guess == kNoGuess) {
    // The header's line and the eighths: where the search of a well filled leaf makes its first
    // steps.
    for (size_t offset = 0; offset < kBlockBytes; offset += kBlockBytes / 8)
      __builtin_prefetch(image.bytes.data() + offset);
    return;
  }
  const auto* const from = reinterpret_cast<const std::byte*>(
      leaf_entries(image) + guessed_start(node_count(image), guess));
  for (size_t offset = 0; offset < (kGuessWindow + 1) * sizeof(format::IndexEntry); offset += kLine)
    __builtin_prefetch(from + offset);
}

GenerationRange node_range(const BlockImage& image, uint8_t level) {
  GenerationRange range;
  const uint32_t count = node_count(image);
  for (uint32_t i = 0; i < count; i++) {
    if (level == 0)
      range.add(key_of(leaf_entries(image)[i]));
    else
      range.add(range_of(inner_children(image)[i]));
  }
  return range;
}

bool entry_is_valid(const format::IndexEntry& entry) {
  if (key_of(entry) == kKeyEnd) return false;
  const Location location{entry.location};
  switch (location.kind()) {
    case format::LocationKind::DATA:
      return location.raw != 0;
    case format::LocationKind::ZERO:
    case format::LocationKind::INHERIT:
    case format::LocationKind::LOST:
      return location == Location::of(location.kind()) && entry.crc == 0;
    case format::LocationKind::ERASED:
      return false;
  }
  return false;
}

Status corrupt_node(BlockNumber block, const std::string& what) {
  return Status(Code::CORRUPT, "metadata block " + std::to_string(block) +
                                   " (exception index) is corrupt: " + what);
}

Status validate_node(const BlockImage& image, uint8_t level, BlockNumber block) {
  const format::BlockHeader& header = image.header();
  const uint32_t count = header.count;
  if (header.kind != static_cast<uint8_t>(node_kind(level)) || header.level != level)
    return corrupt_node(block, "wrong kind or level");
  if (count == 0) return corrupt_node(block, "it is empty");
  if (count > node_count_max(level))
    return corrupt_node(block, "it claims " + std::to_string(count) + " records");
  if (header.reserved0 != 0 || !all_zero(header.reserved1, sizeof header.reserved1))
    return corrupt_node(block, "reserved bytes are not zero");
  const size_t used = count * record_bytes(level);
  if (!all_zero(image.payload() + used, format::kBlockPayloadBytes - used))
    return corrupt_node(block, "bytes behind its last record are not zero");
  return level == 0 ? validate_entries(image, count, block)
                    : validate_children(image, count, block);
}

Status validate_bounds(const BlockImage& image, uint8_t level, BlockNumber block,
                       const KeyBounds& bounds) {
  const uint32_t count = node_count(image);
  bool fits = true;
  if (level == 0) {
    const format::IndexEntry* entries = leaf_entries(image);
    fits = !record_less(entries[0], bounds.lower) &&
           (!bounds.has_upper || record_less(entries[count - 1], bounds.upper));
  } else if (count > 1) {
    const format::IndexChild* children = inner_children(image);
    fits = record_greater(children[1], bounds.lower) &&
           (!bounds.has_upper || record_less(children[count - 1], bounds.upper));
  }
  return fits ? Status() : corrupt_node(block, "its keys are not those its parent leads to");
}

}  // namespace csnap
