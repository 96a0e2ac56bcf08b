// One door to metadata blocks: who wants a new block, or the bytes of an old one, comes here. The
// store implements it over the device and the space map; tests over a map. Callers: Index,
// PageArray.
//
// Invariants
//  M1  A block handed out by allocate() is referenced by no superblock on the device.
//  M2  A released block is not handed out again before the superblock that no longer refers to it
//  is
//      durable (W4).
//  M3  read() returns only blocks whose header and checksum prove that they are what was asked for.
#pragma once

#include <array>
#include <cstddef>
#include <memory>

#include "base/status.h"
#include "base/units.h"
#include "store/format.h"

namespace csnap {

struct alignas(4096) BlockImage {
  std::array<std::byte, kBlockBytes> bytes{};

  format::BlockHeader& header() { return *reinterpret_cast<format::BlockHeader*>(bytes.data()); }
  const format::BlockHeader& header() const {
    return *reinterpret_cast<const format::BlockHeader*>(bytes.data());
  }
  std::byte* payload() { return bytes.data() + sizeof(format::BlockHeader); }
  const std::byte* payload() const { return bytes.data() + sizeof(format::BlockHeader); }
};

// A reference from a parent: where a block is and what its checksum must be.
struct BlockRef {
  BlockNumber block = 0;  // 0: none
  uint32_t crc = 0;
};

// A sealed block on its way to the device.
struct SealedBlock {
  BlockNumber block;
  std::unique_ptr<BlockImage> image;
};

class MetadataIo {
 public:
  virtual ~MetadataIo() = default;

  // A block for new metadata. Never fails: whoever changes metadata has reserved before (see
  // Store::Transaction); running dry is a broken invariant.
  virtual BlockNumber allocate() = 0;
  // The block is not referenced any more by the tree being built. A block that was allocated since
  // the last checkpoint is free at once, an older one after the next.
  virtual void release(BlockNumber block) = 0;
  // Reads and validates. CORRUPT names the block and what is wrong with it.
  virtual Status read(BlockRef ref, format::BlockKind kind, uint8_t level, BlockImage& image) = 0;
  // Fills in the header (number, sequence, tag, checksum) of an image whose kind, level and count
  // are set, and returns the checksum that the parent must carry.
  virtual uint32_t seal(BlockNumber block, BlockImage& image) = 0;
};

// The validator behind read(), for all users: CORRUPT unless `image` is what the arguments say.
// `superblock_sequence`: of the slot in use; a newer block stops the volume (W5).
Status validate_block(const BlockImage& image, BlockRef ref, format::BlockKind kind, uint8_t level,
                      uint64_t superblock_sequence, uint64_t store_tag);
// The sealing behind seal().
uint32_t seal_block(BlockImage& image, BlockNumber block, uint64_t superblock_sequence,
                    uint64_t store_tag);

}  // namespace csnap
