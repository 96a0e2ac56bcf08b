// A page array: pages of kBlockPayloadBytes, all in RAM, persisted copy-on-write under directory
// blocks that carry their children's checksums. Space map, snapshot table and space counters are
// page arrays. Callers: their owners in store/, under the store's transaction lock.
//
// Invariants
//  P1  A page that is all zero and was never written has no block.
//  P2  seal() is called only when every dirty page has its new block (assign() says so), as the
//  space
//      map's own pages change while blocks are handed out.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "store/metadata_io.h"

namespace csnap {

class PageArray {
 public:
  using Page = std::array<std::byte, format::kBlockPayloadBytes>;

  PageArray(MetadataIo& io, format::BlockKind kind) : io_(io), kind_(kind) {}

  // Reads `page_count` pages. Errors: CORRUPT, IO_ERROR.
  Status load(const format::TreeRoot& root, uint64_t page_count);
  // Grows (never shrinks) to `page_count` zero pages.
  void resize(uint64_t page_count);

  uint64_t page_count() const { return pages_.size(); }
  // Null: all zero.
  const Page* page(uint64_t number) const { return pages_[number].data.get(); }
  // For changing; the page is dirty from now on.
  Page& writable(uint64_t number);
  bool dirty() const { return dirty_count_ > 0; }
  // Upper bound of the blocks that the next checkpoint allocates for this array.
  uint64_t blocks_needed() const;
  uint64_t directory_blocks() const;

  // Checkpoint: gives each dirty page and each directory block a new place. True if anything was
  // assigned by this call; call again until false, as handing out blocks can dirty pages.
  bool assign();
  // Seals pages and directories into `out`; everything is clean afterwards. Returns the new root.
  format::TreeRoot seal(std::vector<SealedBlock>& out);

  // All blocks in use by the array as last sealed or loaded, for the checker.
  void blocks(std::vector<BlockNumber>& out) const;

 private:
  struct PageState {
    std::unique_ptr<Page> data;
    BlockRef ref;  // as last sealed
    bool dirty = false;
    bool assigned = false;  // ref.block is the new place already
  };

  Status load_level(BlockRef ref, uint8_t level, uint64_t first_page);
  uint8_t levels() const;

  MetadataIo& io_;
  const format::BlockKind kind_;
  std::vector<PageState> pages_;
  std::vector<BlockNumber> directories_;  // blocks of the directories as last sealed
  std::vector<BlockNumber> new_directories_;
  format::TreeRoot root_{};
  uint64_t dirty_count_ = 0;
};

}  // namespace csnap
