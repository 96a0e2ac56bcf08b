#include "volume/block_pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <new>

#include "base/units.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(start, bytes) ((void)(start), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(start, bytes) ((void)(start), (void)(bytes))
#endif

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // from Linux 5.14 on
#endif

namespace csnap {

// At the start of its memory, which lies at a multiple of its size.
struct BlockPool::Slab {
  void* first_free;  // each free block begins with the address of the next
  size_t free;
  size_t place;  // in usable_; only with free blocks
};

BlockPool::Slab* BlockPool::slab_of(void* block) {
  return reinterpret_cast<Slab*>(reinterpret_cast<uintptr_t>(block) & ~(kSlabBytes - 1));
}

BlockPool::Slab* BlockPool::make_slab() {
  // More than is needed, to cut the aligned part out of it.
  void* memory =
      mmap(nullptr, 2 * kSlabBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CSNAP_ASSERT(memory != MAP_FAILED);  // out of memory ends the program, as for new
  auto* start = static_cast<std::byte*>(memory);
  auto* aligned =
      reinterpret_cast<std::byte*>(round_up(reinterpret_cast<uintptr_t>(start), kSlabBytes));
  if (aligned > start) munmap(start, static_cast<size_t>(aligned - start));
  munmap(aligned + kSlabBytes, static_cast<size_t>(start + kSlabBytes - aligned));
  // All pages at once cost half of one by one. Where that isn't possible they come so.
  (void)madvise(aligned, kSlabBytes, MADV_POPULATE_WRITE);
  auto* slab = new (aligned) Slab{nullptr, 0, usable_.size()};
  usable_.push_back(slab);
  std::byte* block = aligned + kSlabBytes - blocks_per_slab_ * block_bytes_;
  for (size_t i = 0; i < blocks_per_slab_; i++, block += block_bytes_) {
    *reinterpret_cast<void**>(block) = std::exchange(slab->first_free, block);
    ASAN_POISON_MEMORY_REGION(block, block_bytes_);
  }
  slab->free = blocks_per_slab_;
  free_ += blocks_per_slab_;
  slabs_++;
  return slab;
}

void* BlockPool::take(size_t bytes) {
  MutexLock lock(mutex_);
  if (block_bytes_ == 0) {
    block_bytes_ = round_up(std::max(bytes, sizeof(void*)), alignof(std::max_align_t));
    blocks_per_slab_ = (kSlabBytes - sizeof(Slab)) / block_bytes_;
    CSNAP_ASSERT(blocks_per_slab_ > 0);
  }
  CSNAP_ASSERT(bytes <= block_bytes_ && bytes + alignof(std::max_align_t) > block_bytes_);
  Slab* slab = usable_.empty() ? make_slab() : usable_.back();
  void* block = slab->first_free;
  ASAN_UNPOISON_MEMORY_REGION(block, block_bytes_);
  slab->first_free = *static_cast<void**>(block);
  free_--;
  // The last one, so nobody else's place changes.
  if (--slab->free == 0) usable_.pop_back();
  return block;
}

void BlockPool::give(void* block) {
  MutexLock lock(mutex_);
  Slab* slab = slab_of(block);
  *static_cast<void**>(block) = std::exchange(slab->first_free, block);
  ASAN_POISON_MEMORY_REGION(block, block_bytes_);
  free_++;
  if (slab->free++ == 0) {
    slab->place = usable_.size();
    usable_.push_back(slab);
  }
  if (slab->free < blocks_per_slab_ || free_ < free_max_ + blocks_per_slab_) return;
  usable_[slab->place] = usable_.back();
  usable_[slab->place]->place = slab->place;
  usable_.pop_back();
  free_ -= blocks_per_slab_;
  slabs_--;
  ASAN_UNPOISON_MEMORY_REGION(slab, kSlabBytes);
  munmap(slab, kSlabBytes);
}

size_t BlockPool::slab_count() {
  MutexLock lock(mutex_);
  return slabs_;
}

BlockPool::~BlockPool() {
  for (Slab* slab : usable_) {
    CSNAP_ASSERT(slab->free == blocks_per_slab_);
    ASAN_UNPOISON_MEMORY_REGION(slab, kSlabBytes);
    munmap(slab, kSlabBytes);
    slabs_--;
  }
  CSNAP_ASSERT(slabs_ == 0);
}

}  // namespace csnap
