// Memory of one size that comes and goes all the time, from one thread to another: kept instead of
// given back, where the C library would return it to the kernel and fault it in again, zeroed, page
// by page, and grow its heap for each. A pool of std::pmr would never give back what a burst has
// taken. Caller: StagedTable.
//
// Invariants
//  B1  A slab is given back only while all its blocks are free.
//  B2  Of slabs whose blocks are all free, no more are kept than `free_max` blocks need.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "base/assert.h"
#include "base/sync.h"

namespace csnap {

// Blocks of the size that is asked for first, for objects of no more than a pointer's alignment.
class BlockPool {
 public:
  explicit BlockPool(size_t free_max) : free_max_(free_max) {}
  // All blocks must have been given back.
  ~BlockPool();
  BlockPool(const BlockPool&) = delete;

  void* take(size_t bytes);
  void give(void* block);
  // Of memory taken from the system.
  size_t slab_count();

  static constexpr size_t kSlabBytes = 256 * 1024;

 private:
  struct Slab;
  static Slab* slab_of(void* block);
  Slab* make_slab();

  const size_t free_max_;
  Mutex mutex_;
  size_t block_bytes_ = 0;
  size_t blocks_per_slab_ = 0;
  size_t slabs_ = 0;
  size_t free_ = 0;            // blocks
  std::vector<Slab*> usable_;  // with free blocks
};

// For std::allocate_shared: object and counter in one block of the pool, which it keeps alive.
template <typename T>
class PoolAllocator {
 public:
  using value_type = T;

  explicit PoolAllocator(std::shared_ptr<BlockPool> pool) : pool_(std::move(pool)) {}
  template <typename U>
  explicit PoolAllocator(const PoolAllocator<U>& other) : pool_(other.pool()) {}

  T* allocate(size_t count) {
    CSNAP_ASSERT(count == 1);
    return static_cast<T*>(pool_->take(sizeof(T)));
  }
  void deallocate(T* object, size_t) { pool_->give(object); }
  const std::shared_ptr<BlockPool>& pool() const { return pool_; }
  bool operator==(const PoolAllocator&) const = default;

 private:
  std::shared_ptr<BlockPool> pool_;
};

}  // namespace csnap
