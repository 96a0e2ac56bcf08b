// The space map: which blocks of the store are in use. A plain bitmap in a page array, plus, in RAM
// only, the *held* blocks: free on the map but not to be reused yet (W4). Callers: Store.
//
// Metadata blocks are taken first-fit from the top, chunks next-fit from the bottom in aligned
// runs, so that single blocks do not break up the runs that chunks need.
//
// Invariants
//  S1  A block is handed out only if it is neither used nor held.
//  S2  free_blocks() == blocks that are neither used nor held.
#pragma once

#include <optional>
#include <vector>

#include "base/sync.h"
#include "store/page_array.h"

namespace csnap {

class SpaceMap {
 public:
  SpaceMap(MetadataIo& io, uint64_t block_count, uint64_t chunk_blocks);

  // A new map: everything before `first_free` in use.
  void format(BlockNumber first_free);
  Status load(const format::TreeRoot& root);

  // One metadata block; nullopt: the store is full to the last block.
  std::optional<BlockNumber> allocate_block();
  // An aligned run of chunk_blocks, held until use_held() or unhold(), so that a checkpoint in
  // between does not record it; nullopt: there is none, or fewer than `reserve_blocks` would be
  // left behind it. The only call that may be made outside the store's transaction lock.
  std::optional<BlockNumber> allocate_chunk(uint64_t reserve_blocks);

  // Held -> used: the record that refers to the run is durable.
  void use_held(BlockNumber first, uint64_t count);
  // For replay: free -> used.
  void mark_used(BlockNumber first, uint64_t count);
  // Used -> free at once: nothing durable ever referred to the block.
  void free_now(BlockNumber block);
  // Used -> held. unhold() makes it allocatable.
  void free_held(BlockNumber first, uint64_t count);
  void unhold(BlockNumber first, uint64_t count);

  bool is_used(BlockNumber block) const;
  // Adds (sets true) every block in use to `blocks`, which is as long as the store.
  void add_used_to(std::vector<bool>& blocks) const;
  uint64_t block_count() const { return block_count_; }
  uint64_t chunk_blocks() const { return chunk_blocks_; }
  uint64_t used_blocks() const;
  uint64_t free_blocks() const;

  PageArray& pages() { return pages_; }

 private:
  bool bit_used(BlockNumber block) const;
  bool taken(BlockNumber block) const { return bit_used(block) || held_[block]; }
  bool run_is_free(BlockNumber first) const;
  void set_used(BlockNumber block, bool used);
  void set_held(BlockNumber block, bool held);
  void count_page(BlockNumber block, int64_t change);

  const uint64_t block_count_;
  const uint64_t chunk_blocks_;
  mutable Mutex mutex_;  // guards all below
  PageArray pages_;
  std::vector<bool> held_;
  std::vector<uint32_t> taken_in_page_;  // used or held, by map page: full pages are skipped
  uint64_t used_ = 0;
  uint64_t held_count_ = 0;
  BlockNumber block_hint_;  // every block above is taken
  BlockNumber chunk_cursor_ = 0;
};

}  // namespace csnap
