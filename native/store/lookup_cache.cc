#include "store/lookup_cache.h"

#include <sys/mman.h>

#include <algorithm>

namespace csnap {
namespace {

// What was kept is learned again, so the steps are large: a third more misses in all.
constexpr uint64_t kGrowth = 4;
constexpr uint64_t kHugeBytes = uint64_t{2} << 20;
constexpr Generation kGenerationMax = UINT32_MAX;
constexpr uint64_t kLastGenerations = UINT32_MAX;  // mask

// Fibonacci hashing; neighbours, which sequential reads ask for, go far apart.
uint64_t scatter(uint64_t value) { return value * 0x9E3779B97F4A7C15u; }

}  // namespace

LookupCache::LookupCache(uint64_t bytes_max, uint64_t bytes_first)
    : sets_max_(bytes_max / sizeof(Set)) {
  if (sets_max_ == 0) return;
  void* memory = mmap(nullptr, sets_max_ * sizeof(Set), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return;  // it is only a cache
  memory_ = static_cast<Set*>(memory);
  sets_ = std::clamp<uint64_t>(bytes_first / sizeof(Set), 1, sets_max_);
}

LookupCache::~LookupCache() {
  if (memory_ != nullptr) munmap(memory_, sets_max_ * sizeof(Set));
}

bool LookupCache::can_hold(const Key& key) {
  return key.volume == kOriginVolume && key.generation != 0 && key.generation < kGenerationMax;
}

LookupCache::Set& LookupCache::set_of(ChunkIndex chunk) const {
  const auto wide =
      static_cast<unsigned __int128>(scatter(chunk)) * sets_.load(std::memory_order_acquire);
  return memory_[static_cast<uint64_t>(wide >> 64)];
}

bool LookupCache::find(const Key& key, std::optional<Entry>& entry) const {
  if (memory_ == nullptr || !can_hold(key)) return false;
#ifndef __SANITIZE_THREAD__  // which knows no fences
  // What the caller has read of the origin, it has read before: an overwrite comes after the entry
  // that forget() was called for (design section 7). The latch would have seen to it.
  std::atomic_thread_fence(std::memory_order_acquire);
#endif
  const uint64_t whole = version_.load(std::memory_order_acquire);
  for (const Slot& slot : set_of(key.chunk).slots) {
    const uint32_t version = slot.version.load(std::memory_order_acquire);
    // Acquiring each keeps the versions' second look behind them.
    if (slot.chunk.load(std::memory_order_acquire) != key.chunk) continue;
    const uint64_t generations = slot.generations.load(std::memory_order_acquire);
    const Generation last = generations & kLastGenerations;
    if (key.generation < generations >> 32 || key.generation > last) continue;
    const uint64_t location = slot.location.load(std::memory_order_acquire);
    const uint32_t crc = slot.crc.load(std::memory_order_acquire);
    if (version % 2 != 0 || slot.version.load(std::memory_order_acquire) != version) continue;
    if (whole % 2 != 0 || version_.load(std::memory_order_relaxed) != whole) return false;
    if (location == 0)
      entry.reset();
    else
      entry = Entry{{key.volume, key.chunk, last}, {location}, crc};
    return true;
  }
  return false;
}

// L2
void LookupCache::write(Slot& slot, ChunkIndex chunk, uint64_t generations, uint64_t location,
                        uint32_t crc) {
  uint32_t version = slot.version.load(std::memory_order_relaxed);
  // Another reader that keeps its answer was faster.
  if (version % 2 != 0 ||
      !slot.version.compare_exchange_strong(version, version + 1, std::memory_order_acquire))
    return;
  slot.chunk.store(chunk, std::memory_order_release);
  slot.generations.store(generations, std::memory_order_release);
  slot.location.store(location, std::memory_order_release);
  slot.crc.store(crc, std::memory_order_release);
  slot.version.store(version + 2, std::memory_order_release);
}

void LookupCache::keep(const Key& key, const Answer& answer) {
  if (memory_ == nullptr || !can_hold(key)) return;
  Generation last = kGenerationMax;
  if (answer.entry) {
    if (!can_hold(answer.entry->key)) return;
    last = answer.entry->key.generation;
  }
  CSNAP_ASSERT(answer.from <= key.generation && key.generation <= last);
  Set& set = set_of(key.chunk);
  // An empty place, or one by chance: not by age, so that finding an answer writes nothing.
  size_t way = scatter(key.chunk ^ key.generation << 40) >> 62;
  for (size_t i = 0; i < kWays; i++) {
    if (set.slots[i].generations.load(std::memory_order_relaxed) != 0) continue;
    way = i;
    break;
  }
  write(set.slots[way], key.chunk, answer.from << 32 | last,
        answer.entry ? answer.entry->location.raw : 0, answer.entry ? answer.entry->crc : 0);
  kept_.fetch_add(1, std::memory_order_relaxed);
}

bool LookupCache::full() const {
  const uint64_t sets = sets_.load(std::memory_order_relaxed);
  return sets < sets_max_ && kept_.load(std::memory_order_relaxed) >= sets * kWays;
}

// Nobody keeps answers meanwhile, so every version is even.
void LookupCache::forget(const Key& key) {
  if (memory_ == nullptr || key.volume != kOriginVolume) return;
  for (Slot& slot : set_of(key.chunk).slots)
    if (slot.chunk.load(std::memory_order_relaxed) == key.chunk &&
        slot.generations.load(std::memory_order_relaxed) != 0)
      write(slot, 0, 0, 0, 0);
}

void LookupCache::clear() { empty(sets_.load(std::memory_order_relaxed)); }

// Nearly every chunk gets another set, where what was kept of it would only be in the way.
void LookupCache::grow() {
  if (!full()) return;
  empty(std::min(sets_.load(std::memory_order_relaxed) * kGrowth, sets_max_));
}

// L2: the slots' own versions go too.
void LookupCache::empty(uint64_t sets) {
  if (memory_ == nullptr) return;
  version_.fetch_add(1, std::memory_order_acq_rel);
  const int emptied = madvise(memory_, sets_max_ * sizeof(Set), MADV_DONTNEED);
  CSNAP_ASSERT(emptied == 0);
  // Look-ups jump about in it: huge pages save most of their address translations.
  if (sets * sizeof(Set) >= kHugeBytes) (void)madvise(memory_, sets * sizeof(Set), MADV_HUGEPAGE);
  sets_.store(sets, std::memory_order_release);
  kept_.store(0, std::memory_order_relaxed);
  version_.fetch_add(1, std::memory_order_release);
}

}  // namespace csnap
