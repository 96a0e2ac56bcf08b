// Fuzz target: a tree whose blocks are the input. Each piece of 4 KiB is a block, the first one the
// root; they are sealed and given back whatever the checksum says, so that the fuzzer gets past it
// to the node's validator. Whatever passes that is looked up, scanned, walked and changed: no
// crash, no hang, no broken invariant.
#include <algorithm>
#include <cstring>

#include "store/index.h"
#include "store/index_node.h"

namespace csnap {
namespace {

constexpr uint64_t kSequence = 1;
constexpr uint64_t kStoreTag = 1;
constexpr size_t kBlocksMax = 16;
constexpr size_t kScanRoundsMax = 10000;

class FuzzIo : public MetadataIo {
 public:
  FuzzIo(const uint8_t* data, size_t size)
      : data_(data), size_(std::min(size, kBlocksMax * kBlockBytes)) {}

  BlockNumber allocate() override { return next_++; }
  void release(BlockNumber) override {}

  Status read(BlockRef ref, format::BlockKind kind, uint8_t level, BlockImage& image) override {
    // Any reference hits a piece of the input.
    const size_t blocks = std::max<size_t>(1, div_up(size_, kBlockBytes));
    const size_t offset = ref.block % blocks * kBlockBytes;
    std::memset(image.bytes.data(), 0, kBlockBytes);
    if (offset < size_)
      std::memcpy(image.bytes.data(), data_ + offset,
                  std::min<size_t>(kBlockBytes, size_ - offset));
    if (image.header().kind != static_cast<uint8_t>(kind) || image.header().level != level)
      return Status(Code::CORRUPT, "wrong kind or level");
    ref.crc = seal_block(image, ref.block, kSequence, kStoreTag);
    return validate_block(image, ref, kind, level, kSequence, kStoreTag);
  }

  uint32_t seal(BlockNumber block, BlockImage& image) override {
    return seal_block(image, block, kSequence, kStoreTag);
  }

 private:
  const uint8_t* data_;
  const size_t size_;
  BlockNumber next_ = 1000;
};

// Bytes as they are, without the tree around: the validator may be asked about anything.
void try_validator(const uint8_t* data, size_t size) {
  BlockImage image;
  std::memcpy(image.bytes.data(), data, std::min<size_t>(size, kBlockBytes));
  for (const uint8_t level : {uint8_t{0}, uint8_t{1}, image.header().level}) {
    if (!validate_node(image, level, 1).ok()) continue;
    const Key probe{1, 1, 1};
    const uint32_t found = level == 0 ? leaf_lower_bound(image, probe) : inner_slot(image, probe);
    if (level == 0)
      for (const uint32_t guess : {0u, kGuessScale / 3, kGuessScale, kNoGuess})
        CSNAP_ASSERT(leaf_lower_bound(image, probe, guess) == found);
    CSNAP_ASSERT(found <= node_count(image));
    CSNAP_ASSERT(!node_range(image, level).empty());
  }
}

void try_lookups(Index& index, const Key& key) {
  const Result<std::optional<Entry>> after = index.at_or_after(key);
  if (after.ok() && after.value()) CSNAP_ASSERT(after.value()->key >= key);
  const Result<std::optional<Entry>> before = index.before(key);
  if (before.ok() && before.value()) CSNAP_ASSERT(before.value()->key < key);
  const Result<std::optional<Entry>> same = index.find(key);
  if (same.ok() && same.value()) CSNAP_ASSERT(same.value()->key == key);
}

std::vector<Entry> scan_all(Index& index, size_t max_nodes) {
  std::vector<Entry> out;
  Key from{};
  for (size_t round = 0; from != kKeyEnd; round++) {
    CSNAP_ASSERT(round < kScanRoundsMax);
    Key next;
    const auto wanted = [](Generation min, Generation max) {
      CSNAP_ASSERT(min <= max);
      return true;
    };
    if (!index.scan(from, wanted, 50, max_nodes, out, next).ok()) break;
    CSNAP_ASSERT(next > from);
    from = next;
  }
  for (size_t i = 1; i < out.size(); i++) CSNAP_ASSERT(out[i - 1].key < out[i].key);
  return out;
}

void try_changes(Index& index, const std::vector<Entry>& entries) {
  for (const Entry& entry : entries) {
    try_lookups(index, entry.key);
    Entry changed = entry;
    changed.key.chunk ^= 1;
    if (changed.key != kKeyEnd) (void)index.insert(changed);
  }
  bool erased = false;
  for (size_t i = 0; i < entries.size(); i += 2) (void)index.erase(entries[i].key, erased);
  std::vector<SealedBlock> sealed;
  index.freeze(sealed);
  for (const SealedBlock& block : sealed)
    CSNAP_ASSERT(validate_node(*block.image, block.image->header().level, block.block).ok());
  for (size_t i = 1; i < entries.size(); i += 2) (void)index.erase(entries[i].key, erased);
}

}  // namespace
}  // namespace csnap

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace csnap;
  try_validator(data, size);
  FuzzIo io(data, size);
  // The root's level is what its header says, as if the superblock agreed.
  const size_t level_offset = offsetof(format::BlockHeader, level);
  const uint8_t level = size > level_offset ? data[level_offset] : 0;
  // Block numbers count modulo the blocks there are, so a multiple of them all is the first one.
  const BlockRef root{720720, 0};
  static_assert(720720 % 16 == 0 && 720720 % 15 == 0 && 720720 % 14 == 0 && 720720 % 13 == 0 &&
                720720 % 11 == 0 && 720720 % 9 == 0 && kBlocksMax == 16);
  for (const IndexOptions& options : {IndexOptions{}, IndexOptions{4, 4, 0}}) {
    Index index(io, options);
    index.open({root, level}, 0);
    (void)index.walk([](const NodeView&) { return true; },
                     [](const Entry& entry) { return entry.key < kKeyEnd; },
                     [](const std::string& problem) { return !problem.empty(); });
    for (const Key& key : {Key{}, Key{0, 100, 5}, Key{1, 0, 0}, kKeyEnd}) try_lookups(index, key);
    CSNAP_ASSERT(index.blocks_needed(10) > 0);
    scan_all(index, 1);
    try_changes(index, scan_all(index, 64));
    scan_all(index, 64);
  }
  return 0;
}
