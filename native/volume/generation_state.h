// What a writer of the origin needs to know of the running generation: which chunks may be
// overwritten in place ("copied"). Made anew by each snapshot; learned lazily from the index.
//
// Invariants
//  G1  A set bit: the index holds, durably, an entry of the chunk at or above the newest snapshot
//  that
//      was live when the bit was set, or that entry's place was taken by reclaim for good reason.
//  G2  newest_live only falls within one generation state (deletes); 0: nothing is owed to anybody.
#pragma once

#include <sys/mman.h>

#include <atomic>

#include "base/assert.h"
#include "base/units.h"

namespace csnap {

// One bit per chunk in lazily filled anonymous memory: a new map is all zero and costs nothing.
class ChunkBitmap {
 public:
  explicit ChunkBitmap(uint64_t chunk_count) : bytes_(round_up(div_up(chunk_count, 64) * 8, 4096)) {
    void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CSNAP_ASSERT(memory != MAP_FAILED);
    words_ = static_cast<std::atomic<uint64_t>*>(memory);
  }
  ~ChunkBitmap() { munmap(words_, bytes_); }
  ChunkBitmap(const ChunkBitmap&) = delete;

  bool test(uint64_t bit) const {
    return words_[bit / 64].load(std::memory_order_acquire) >> (bit % 64) & 1;
  }
  void set(uint64_t bit) {
    words_[bit / 64].fetch_or(uint64_t{1} << (bit % 64), std::memory_order_release);
  }
  void clear(uint64_t bit) {
    words_[bit / 64].fetch_and(~(uint64_t{1} << (bit % 64)), std::memory_order_release);
  }

 private:
  const size_t bytes_;
  std::atomic<uint64_t>* words_;
};

struct GenerationState {
  GenerationState(Generation generation, Generation newest_live, uint64_t chunk_count)
      : generation(generation), newest_live(newest_live), copied_bits(chunk_count) {}

  const Generation generation;
  // Its beginning, the former generation's snapshot, is in the journal (W7).
  std::atomic<bool> open{false};
  std::atomic<Generation> newest_live;
  ChunkBitmap copied_bits;

  bool copied(ChunkIndex chunk) const {
    return newest_live.load(std::memory_order_acquire) == 0 || copied_bits.test(chunk);
  }
};

}  // namespace csnap
