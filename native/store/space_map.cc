#include "store/space_map.h"

#include <algorithm>

namespace csnap {

using format::kSpacePageBits;

SpaceMap::SpaceMap(MetadataIo& io, uint64_t block_count, uint64_t chunk_blocks)
    : block_count_(block_count),
      chunk_blocks_(chunk_blocks),
      pages_(io, format::BlockKind::SPACE_PAGE),
      held_(block_count, false),
      taken_in_page_(div_up(block_count, kSpacePageBits), 0),
      block_hint_(block_count - 1) {
  CSNAP_ASSERT(is_power_of_two(chunk_blocks));
  static_assert(kSpacePageBits % (format::kChunkBytesMax / kBlockBytes) == 0,
                "an aligned run of blocks must not straddle two pages");
}

void SpaceMap::format(BlockNumber first_free) {
  MutexLock lock(mutex_);
  pages_.resize(taken_in_page_.size());
  for (BlockNumber block = 0; block < first_free; block++) set_used(block, true);
}

Status SpaceMap::load(const format::TreeRoot& root) {
  MutexLock lock(mutex_);
  CSNAP_TRY(pages_.load(root, taken_in_page_.size()));
  used_ = 0;
  for (uint64_t number = 0; number < pages_.page_count(); number++) {
    const PageArray::Page* page = pages_.page(number);
    uint32_t count = 0;
    if (page)
      for (std::byte byte : *page) count += __builtin_popcount(static_cast<unsigned>(byte));
    taken_in_page_[number] = count;
    used_ += count;
  }
  if (used_ > block_count_)
    return Status(Code::CORRUPT, "the space map has bits set past the end of the store");
  block_hint_ = block_count_ - 1;
  return Status();
}

bool SpaceMap::bit_used(BlockNumber block) const {
  const PageArray::Page* page = pages_.page(block / kSpacePageBits);
  if (!page) return false;
  const uint64_t bit = block % kSpacePageBits;
  return ((*page)[bit / 8] & std::byte(1 << (bit % 8))) != std::byte(0);
}

void SpaceMap::count_page(BlockNumber block, int64_t change) {
  taken_in_page_[block / kSpacePageBits] += static_cast<uint32_t>(change);
}

void SpaceMap::set_used(BlockNumber block, bool used) {
  CSNAP_ASSERT(block < block_count_);
  CSNAP_ASSERT(bit_used(block) != used);
  PageArray::Page& page = pages_.writable(block / kSpacePageBits);
  const uint64_t bit = block % kSpacePageBits;
  page[bit / 8] ^= std::byte(1 << (bit % 8));
  used_ += used ? 1 : -1;
  count_page(block, used ? 1 : -1);
}

void SpaceMap::set_held(BlockNumber block, bool held) {
  CSNAP_ASSERT(held_[block] != held);
  held_[block] = held;
  held_count_ += held ? 1 : -1;
  count_page(block, held ? 1 : -1);
}

std::optional<BlockNumber> SpaceMap::allocate_block() {
  MutexLock lock(mutex_);
  BlockNumber block = block_hint_;
  while (true) {
    if (taken_in_page_[block / kSpacePageBits] ==
        std::min(kSpacePageBits, block_count_ - round_down(block, kSpacePageBits))) {
      if (block < kSpacePageBits) return std::nullopt;
      block = round_down(block, kSpacePageBits) - 1;
      continue;
    }
    if (!taken(block)) break;
    if (block == 0) return std::nullopt;
    block--;
  }
  block_hint_ = block;
  CSNAP_RULE(W4, !held_[block]);
  set_used(block, true);
  return block;
}

bool SpaceMap::run_is_free(BlockNumber first) const {
  for (uint64_t i = 0; i < chunk_blocks_; i++)
    if (taken(first + i)) return false;
  return true;
}

std::optional<BlockNumber> SpaceMap::allocate_chunk(uint64_t reserve_blocks) {
  MutexLock lock(mutex_);
  if (block_count_ - used_ - held_count_ < reserve_blocks + chunk_blocks_) return std::nullopt;
  const uint64_t runs = block_count_ / chunk_blocks_;
  BlockNumber run = chunk_cursor_ / chunk_blocks_;
  for (uint64_t tried = 0; tried < runs;) {
    if (run >= runs) run = 0;
    const BlockNumber first = run * chunk_blocks_;
    const uint64_t page_runs = kSpacePageBits / chunk_blocks_;
    if (taken_in_page_[first / kSpacePageBits] + chunk_blocks_ > kSpacePageBits) {
      const uint64_t skip = page_runs - run % page_runs;
      run += skip;
      tried += skip;
      continue;
    }
    if (run_is_free(first)) {
      for (uint64_t i = 0; i < chunk_blocks_; i++) {
        CSNAP_RULE(W4, !bit_used(first + i));
        set_held(first + i, true);
      }
      chunk_cursor_ = first + chunk_blocks_;
      return first;
    }
    run++;
    tried++;
  }
  return std::nullopt;
}

void SpaceMap::use_held(BlockNumber first, uint64_t count) {
  MutexLock lock(mutex_);
  for (uint64_t i = 0; i < count; i++) {
    set_held(first + i, false);
    set_used(first + i, true);
  }
}

void SpaceMap::mark_used(BlockNumber first, uint64_t count) {
  MutexLock lock(mutex_);
  for (uint64_t i = 0; i < count; i++) set_used(first + i, true);
}

void SpaceMap::free_now(BlockNumber block) {
  MutexLock lock(mutex_);
  set_used(block, false);
  block_hint_ = std::max(block_hint_, block);
}

void SpaceMap::free_held(BlockNumber first, uint64_t count) {
  MutexLock lock(mutex_);
  for (uint64_t i = 0; i < count; i++) {
    set_used(first + i, false);
    set_held(first + i, true);
  }
}

void SpaceMap::unhold(BlockNumber first, uint64_t count) {
  MutexLock lock(mutex_);
  for (uint64_t i = 0; i < count; i++) set_held(first + i, false);
  block_hint_ = std::max(block_hint_, first + count - 1);
}

bool SpaceMap::is_used(BlockNumber block) const {
  MutexLock lock(mutex_);
  return block < block_count_ && bit_used(block);
}

void SpaceMap::add_used_to(std::vector<bool>& blocks) const {
  MutexLock lock(mutex_);
  for (uint64_t number = 0; number < pages_.page_count(); number++) {
    if (!pages_.page(number)) continue;
    const BlockNumber first = number * kSpacePageBits;
    for (BlockNumber block = first; block < std::min(first + kSpacePageBits, block_count_); block++)
      if (bit_used(block)) blocks[block] = true;
  }
}

uint64_t SpaceMap::used_blocks() const {
  MutexLock lock(mutex_);
  return used_;
}

uint64_t SpaceMap::free_blocks() const {
  MutexLock lock(mutex_);
  return block_count_ - used_ - held_count_;
}

}  // namespace csnap
