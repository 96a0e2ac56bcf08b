#include "store/metadata_io.h"

#include <cinttypes>
#include <cstdio>

#include "base/crc32c.h"

namespace csnap {
namespace {

uint32_t block_crc(const BlockImage& image) {
  BlockImage copy = image;
  copy.header().crc = 0;
  return crc32c(copy.bytes.data(), copy.bytes.size());
}

Status corrupt(BlockNumber block, const char* what) {
  return Status(Code::CORRUPT, "metadata block " + std::to_string(block) + " is corrupt: " + what);
}

}  // namespace

Status validate_block(const BlockImage& image, BlockRef ref, format::BlockKind kind, uint8_t level,
                      uint64_t superblock_sequence, uint64_t store_tag) {
  const format::BlockHeader& header = image.header();
  if (header.magic != format::kBlockMagic) return corrupt(ref.block, "no block magic");
  const uint32_t crc = block_crc(image);
  if (header.crc != crc) return corrupt(ref.block, "its checksum does not match");
  if (ref.crc != crc) return corrupt(ref.block, "its parent expects another checksum");
  if (header.block != ref.block) return corrupt(ref.block, "it belongs elsewhere (misdirected)");
  if (header.store_tag != store_tag) return corrupt(ref.block, "it belongs to another store");
  if (header.kind != static_cast<uint8_t>(kind)) return corrupt(ref.block, "wrong kind");
  if (header.level != level) return corrupt(ref.block, "wrong level");
  if (header.superblock_sequence > superblock_sequence)
    return corrupt(ref.block, "it is newer than the superblock in use (W5)");
  return Status();
}

uint32_t seal_block(BlockImage& image, BlockNumber block, uint64_t superblock_sequence,
                    uint64_t store_tag) {
  format::BlockHeader& header = image.header();
  header.magic = format::kBlockMagic;
  header.block = block;
  header.superblock_sequence = superblock_sequence;
  header.store_tag = store_tag;
  header.crc = 0;
  header.crc = crc32c(image.bytes.data(), image.bytes.size());
  return header.crc;
}

}  // namespace csnap
