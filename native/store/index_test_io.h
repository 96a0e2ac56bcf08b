// MetadataIo over RAM for the tests of the exception index: keeps what is "on the device" apart
// from what the tree under construction uses, and checks whoever allocates and releases (M1, M2).
//
// Invariants
//  T1  A block is handed out only while neither the tree being built, nor the tree being written by
//  a
//      checkpoint, nor the tree of the last finished checkpoint holds it.
#pragma once

#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/sync.h"
#include "store/index.h"
#include "testing/rng.h"

// A failed step of a long random run: going on would only bury the first cause.
#define CSNAP_MUST(condition)                                              \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      FAIL_CHECK(#condition);                                              \
      std::abort();                                                        \
    }                                                                      \
  } while (0)

namespace csnap {

// Length of a random run: fewer steps where a sanitizer slows each of them down, more in the full
// tier.
inline uint64_t scaled(uint64_t steps) {
  const char* tier = std::getenv("CSNAP_TIER");
  if (tier && std::string(tier) == "full") steps *= 10;
  return std::getenv("CSNAP_SANITIZED") ? steps / 10 : steps;
}

class MemoryIo : public MetadataIo {
 public:
  static constexpr uint64_t kStoreTag = 0x1122334455667788;

  explicit MemoryIo(uint64_t seed = 1) : rng_(seed) {}

  BlockNumber allocate() override {
    MutexLock lock(mutex_);
    allocations_++;
    if (free_.empty()) {
      blocks_.emplace_back();
      free_.push_back(blocks_.size());
    }
    // Any free block, often one that has just become free.
    const size_t pick = rng_.coin() ? free_.size() - 1 : rng_.below(free_.size());
    std::swap(free_[pick], free_.back());
    const BlockNumber block = free_.back();
    free_.pop_back();
    Slot& slot = at(block);
    CSNAP_MUST(!slot.used);
    slot.used = true;
    slot.born = epoch_;
    used_++;
    return block;
  }

  void release(BlockNumber block) override {
    MutexLock lock(mutex_);
    Slot& slot = at(block);
    CSNAP_MUST(slot.used);
    slot.used = false;
    used_--;
    if (slot.born == epoch_)
      free_.push_back(block);
    else
      limbo_[epoch_].push_back(block);
  }

  Status read(BlockRef ref, format::BlockKind kind, uint8_t level, BlockImage& image) override {
    {
      MutexLock lock(mutex_);
      reads_++;
      if (fail_at_ != 0 && reads_ >= fail_at_) return Status(Code::IO_ERROR, "injected read error");
      if (ref.block == 0 || ref.block > blocks_.size() || !at(ref.block).image)
        return Status(Code::CORRUPT, "no such block was ever written");
      image = *at(ref.block).image;
    }
    return validate_block(image, ref, kind, level, kSequence, kStoreTag);
  }

  uint32_t seal(BlockNumber block, BlockImage& image) override {
    return seal_block(image, block, kSequence, kStoreTag);
  }

  // The checkpoint's side.
  void frozen() { epoch_++; }
  void write(const SealedBlock& sealed) {
    MutexLock lock(mutex_);
    at(sealed.block).image = std::make_unique<BlockImage>(*sealed.image);
  }
  // The superblock of the latest freeze is durable: what was released before that freeze is free.
  void durable() {
    MutexLock lock(mutex_);
    for (auto it = limbo_.begin(); it != limbo_.end() && it->first < epoch_; it = limbo_.erase(it))
      for (BlockNumber block : it->second) {
        free_.push_back(block);
        // Whoever still reads it finds out.
        at(block).image.reset();
      }
  }
  // After a crash: `live` are the blocks of the durable tree.
  void reset_to(const std::set<BlockNumber>& live) {
    MutexLock lock(mutex_);
    limbo_.clear();
    free_.clear();
    epoch_++;
    used_ = live.size();
    for (BlockNumber block = 1; block <= blocks_.size(); block++) {
      at(block).used = live.count(block) != 0;
      if (!at(block).used) free_.push_back(block);
    }
  }

  BlockImage* image(BlockNumber block) { return at(block).image.get(); }
  uint64_t used() const { return used_; }
  uint64_t allocations() const { return allocations_; }
  uint64_t reads() const { return reads_; }
  // From the n-th read from now on all fail; 0: none.
  void fail_reads(uint64_t nth) { fail_at_ = nth ? reads_ + nth : 0; }

 private:
  static constexpr uint64_t kSequence = 7;
  struct Slot {
    std::unique_ptr<BlockImage> image;
    uint64_t born = 0;
    bool used = false;
  };
  Slot& at(BlockNumber block) {
    CSNAP_MUST(block >= 1 && block <= blocks_.size());
    return blocks_[block - 1];
  }

  Mutex mutex_;
  Rng rng_;
  std::vector<Slot> blocks_;
  std::vector<BlockNumber> free_;
  std::map<uint64_t, std::vector<BlockNumber>> limbo_;  // by the epoch of the release
  uint64_t epoch_ = 1;
  uint64_t used_ = 0;
  uint64_t allocations_ = 0;
  uint64_t reads_ = 0;
  uint64_t fail_at_ = 0;
};

// A whole checkpoint that nothing disturbs.
inline IndexRoot checkpoint(Index& index, MemoryIo& io) {
  std::vector<SealedBlock> out;
  const IndexRoot root = index.freeze(out);
  io.frozen();
  for (const SealedBlock& sealed : out) io.write(sealed);
  index.frozen_written();
  io.durable();
  return root;
}

struct WalkResult {
  std::vector<Entry> entries;
  std::vector<std::string> problems;
  std::set<BlockNumber> blocks;
  uint64_t leaves = 0;
};

inline WalkResult walk_all(Index& index) {
  WalkResult result;
  const Status status = index.walk(
      [&](const NodeView& view) {
        CSNAP_MUST(result.blocks.insert(view.block).second);
        if (view.level == 0) result.leaves++;
        return true;
      },
      [&](const Entry& entry) {
        result.entries.push_back(entry);
        return true;
      },
      [&](const std::string& problem) {
        result.problems.push_back(problem);
        return true;
      });
  CSNAP_MUST(status.ok());
  return result;
}

inline Entry make_entry(const Key& key, uint64_t block = 1) {
  return {key, Location::data(block), static_cast<uint32_t>(mix64(block))};
}

}  // namespace csnap
