// Answers of the exception index, kept where one cache line holds them: which entry a chunk has for
// a range of generations, or that it has none. In front of the tree for look-ups that come again;
// the tree stays the truth. Caller: Index only.
//
// A set of four answers in two neighbouring cache lines, chosen by the chunk, so that whoever
// changes the chunk's entries knows where to look. Memory is taken as it fills: when as many
// answers were kept as there is room for, the room becomes four times as large (and empty) up to
// its bound.
//
// Invariants
//  L1  An answer is kept and used only while the tree gives the same: it is kept under the index's
//      shared latch, and forgotten under the exclusive one by the change that makes it wrong.
//  L2  Readers take no latch. A slot's version is odd while it changes, and so is the whole cache's
//      while it is emptied; what was read around a change of either is not used (sequence locks).
#pragma once

#include <atomic>
#include <optional>

#include "store/entry.h"

namespace csnap {

class LookupCache {
 public:
  // The chunk's smallest entry in a generation from `from` on, if any, is `entry`: that is so for
  // every generation from `from` to the entry's own, or to the end where there is none.
  struct Answer {
    Generation from = 0;
    std::optional<Entry> entry;
  };

  // Room for as much before it grows: with chunks of 16 KiB what is remembered of 2 GiB is not
  // emptied while it is learned. Less is taken while less is asked.
  static constexpr uint64_t kBytesFirst = uint64_t{4} << 20;

  // Never holds more than `bytes_max`; 0: keeps nothing.
  explicit LookupCache(uint64_t bytes_max, uint64_t bytes_first = kBytesFirst);
  ~LookupCache();
  LookupCache(const LookupCache&) = delete;

  // With or without a latch. False: not known.
  bool find(const Key& key, std::optional<Entry>& entry) const;
  // Shared latch. `key` is what was asked for.
  void keep(const Key& key, const Answer& answer);
  // Any latch or none: it is time for grow().
  bool full() const;

  // The rest needs the exclusive latch.
  void forget(const Key& key);  // all answers about the key's chunk
  void clear();
  void grow();

 private:
  static constexpr size_t kWays = 4;

  struct Slot {
    std::atomic<uint32_t> version;
    std::atomic<uint32_t> crc;
    std::atomic<uint64_t> chunk;
    std::atomic<uint64_t> location;     // raw; 0, which no entry has: there is none
    std::atomic<uint64_t> generations;  // first << 32 | last; last 0: empty
  };
  struct alignas(128) Set {
    Slot slots[kWays];
  };

  static bool can_hold(const Key& key);
  Set& set_of(ChunkIndex chunk) const;
  static void write(Slot& slot, ChunkIndex chunk, uint64_t generations, uint64_t location,
                    uint32_t crc);

  void empty(uint64_t sets);

  const uint64_t sets_max_;
  Set* memory_ = nullptr;  // sets_max_ of them, all zero but where something was kept
  std::atomic<uint64_t> version_{0};
  std::atomic<uint64_t> sets_{0};
  // Counted by those who keep something, away from what others read.
  alignas(64) std::atomic<uint64_t> kept_{0};  // since it was emptied
};

}  // namespace csnap
