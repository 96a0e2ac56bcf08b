// The staged table: chunks whose newest content is in the journal and not yet in the origin, with
// that content in RAM (design section 5). A read overlays it on what the origin holds; the applier
// takes it from here to the origin.
//
// Invariants
//  T1  What is staged of a chunk lies in layers, one a generation, the younger above: a snapshot
//  must
//      not make writers wait for what was staged before it. A layer is neither copied out for nor
//      applied until all below it have left.
//  T2  A chunk leaves only when a durable record says that everything staged of it is in place, so
//      that no replay can undo a later write in place. Until then every write to it is staged.
//  T3  Order of put() is order of the journal: callers hold the store's append lock.
//  T4  Once somebody waits for a chunk to leave, nothing more is staged to it.
//  T5  For each chunk marked `reserved` the table holds one store chunk; which one is whose is
//      settled when it is taken, so that a group copied out together lies together.
//  T6  A page that was handed out to a reader or the applier is not changed any more.
//
// Callers: volume/ only. Every method may be called from any thread.
#pragma once

#include <array>
#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <memory_resource>
#include <optional>
#include <set>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/sync.h"
#include "store/journal.h"
#include "volume/block_pool.h"
#include "volume/generation_state.h"

namespace csnap {

class StagedTable {
 public:
  StagedTable(uint64_t chunk_count, uint64_t chunk_bytes);

  // What is staged of 4 KiB. Once a piece of it is handed out it is never changed again: later
  // writes make a new one (T6).
  static constexpr uint64_t kPageBytes = 4096;
  struct Page {
    Page() {}          // what is not staged of the bytes stays as it is
    uint8_t mask = 0;  // a bit for each sector that is staged
    std::array<std::byte, kPageBytes> bytes;
  };
  // A run of staged sectors within a page.
  struct Piece {
    uint64_t at;  // in bytes, from what was asked for
    uint64_t length;
    const std::byte* data;
    std::shared_ptr<const Page> page;  // keeps the data
  };
  // All of a chunk's lowest layer, to be put in place. Pieces are from its
  // start on, in order.
  struct Content {
    ChunkIndex chunk = 0;
    Sequence last = 0;  // of its records
    std::vector<Piece> pieces;
    Generation generation = 0;
  };
  // What the copy-out of a chunk needs to know.
  struct Owed {
    Generation generation = 0;  // of what is staged: its exception belongs below it
  };

  // One atomic load; false: nothing of it is staged.
  bool has(ChunkIndex chunk) const { return any() && bits_.test(chunk); }
  bool has_any(ChunkIndex first, ChunkIndex last) const {
    if (!any()) return false;
    for (ChunkIndex chunk = first; chunk <= last; chunk++)
      if (bits_.test(chunk)) return true;
    return false;
  }
  bool any() const { return count_.load(std::memory_order_acquire) != 0; }
  uint64_t count() const { return count_.load(std::memory_order_relaxed); }
  uint64_t bytes() const { return bytes_.load(std::memory_order_relaxed); }

  // What a write would find of its chunk.
  enum class Below {
    NOTHING,
    OLDER,  // of older generations only
    SAME,   // of its generation
    WAITS,  // it may not be staged (T4), or never (a generation that is younger is)
  };
  // Under the append lock a chunk may still leave, but nothing is staged that WAITS would be for.
  Below below(ChunkIndex chunk, Generation generation);
  struct Put {
    bool owes_first = false;  // this one has to be copied out now, and no other had to be
    bool took_reserved = false;
  };
  // Sectors of one chunk. `copied`: its exception is durable, or it is owed to nobody, and nothing
  // older is staged; else `reserved` is the store chunk for it. Neither counts but for the first of
  // a generation.
  Put put(ChunkIndex chunk, Generation generation, uint64_t start, const std::byte* data,
          uint64_t length, RecordPlace place, bool copied, BlockNumber reserved);

  // What is staged of [offset, offset + length) of the volume, of generations up to `upto`, for
  // overlay(). Empty: nothing.
  std::vector<Piece> take(uint64_t offset, uint64_t length, Generation upto);
  static void overlay(const std::vector<Piece>& pieces, std::byte* data);

  // -- copying out; of many chunks at once, as a lock for each is what others would wait for
  // Of each: nullopt: not staged, or copied already.
  std::vector<std::optional<Owed>> owed(std::span<const ChunkIndex> chunks);
  // Up to `limit` chunks that are still to be copied out, in order, from `from` on, then from 0.
  std::vector<ChunkIndex> owed_from(ChunkIndex from, size_t limit);
  // Of the records that are oldest, up to `limit` chunks that are still to be copied out; sorted.
  std::vector<ChunkIndex> oldest_owed(size_t limit);
  uint64_t owed_count() const { return owed_count_.load(std::memory_order_acquire); }
  // Layers that are still to be copied out for, now or once they are the lowest.
  uint64_t uncopied_count() const { return uncopied_count_.load(std::memory_order_relaxed); }
  // For the copy of each a store chunk of those held, the one that was reserved first. The
  // caller's now. 0: none was reserved for it.
  std::vector<BlockNumber> take_reserved(std::span<const ChunkIndex> chunks);
  // The copy came to nothing. False: the chunk has no use for it, and `block` stays the caller's.
  bool give_reserved(ChunkIndex chunk, BlockNumber block);
  // Their exceptions are durable, or they are owed to nobody any more. Returns the store chunks
  // that were reserved and not taken, which are the caller's now.
  std::vector<BlockNumber> set_copied(std::span<const ChunkIndex> chunks);

  // -- applying
  // Up to `limit_bytes` of what is copied out, in order of chunks; `all`: else only what somebody
  // waits for.
  std::vector<Content> applicable(uint64_t limit_bytes, bool all);
  // The contents are in place and synced: what was staged up to their `last` is not needed any
  // more, but the chunks stay until applied(). Later records are.
  void set_in_place(std::span<const Content> contents);
  // No replay will meet what was staged up to `last` again (T2): the chunks leave unless more was
  // staged since. Returns those that left; with `promoted`, how many of the others are owed now, as
  // their lowest layer has left.
  std::vector<ChunkIndex> applied(std::span<const Content> contents, size_t* promoted = nullptr);
  // T4. False: not staged.
  bool wait_for(ChunkIndex chunk);
  bool awaited() const { return awaited_.load(std::memory_order_acquire) != 0; }

  // The oldest record that is not in place; nullopt: none. Under the append lock.
  std::optional<RecordPlace> oldest();
  // Of `count` chunks from `first` on, those staged in a generation above `after` and up to `upto`,
  // in order.
  std::vector<ChunkIndex> find(ChunkIndex first, uint64_t count, Generation after, Generation upto);

 private:
  struct PageSlot {
    std::shared_ptr<Page> page;
    bool handed_out = false;  // T6
  };
  // A layer of it; chunks_ holds the lowest.
  struct Chunk {
    Chunk(size_t page_count, std::pmr::memory_resource* memory) : pages(page_count, memory) {}
    Generation generation = 0;
    RecordPlace first;      // of its records that are not in place
    bool in_place = false;  // all of them are
    // The first record since the applier took the content; it may be on its way to its place.
    std::optional<RecordPlace> since_taken;
    Sequence last = 0;
    bool copied = false;
    bool awaited = false;
    bool reserved = false;       // T5
    uint64_t owed_position = 0;  // in owed_in_order_
    std::pmr::vector<PageSlot> pages;
    std::unique_ptr<Chunk> above;  // T1; never `copied`, and `awaited` is the lowest's
  };
  using Chunks = std::pmr::unordered_map<ChunkIndex, Chunk>;
  struct OwedEntry {
    uint64_t position;
    ChunkIndex chunk;
  };

  std::shared_ptr<Page> make_page(const Page* like);
  bool is_owed(const OwedEntry& entry) const;
  bool will_be_owed(const OwedEntry& entry) const;
  void begin(Chunk& chunk, ChunkIndex index, Generation generation, RecordPlace place,
             BlockNumber reserved);
  void write(Chunk& chunk, uint64_t start, const std::byte* data, uint64_t length);
  void set_in_place(const Content& content);
  enum class Applied { STAYED, LEFT, PROMOTED };
  Applied applied(const Content& content);
  // Adds what is staged within [from, upto) of a chunk; `at` of its start is `base`.
  static void collect(Chunk& chunk, uint64_t from, uint64_t upto, uint64_t base,
                      std::vector<Piece>& pieces);

  const uint64_t chunk_bytes_;
  ChunkBitmap bits_;
  std::atomic<uint64_t> count_{0};
  std::atomic<uint64_t> bytes_{0};  // of pages
  std::atomic<uint64_t> owed_count_{0};
  std::atomic<uint64_t> uncopied_count_{0};
  std::atomic<uint64_t> awaited_{0};
  // The pages' memory. A page lives on with who holds it, and so does the pool.
  const std::shared_ptr<BlockPool> pool_;
  Mutex mutex_;
  // Of the entries below: they are made by connections and ended by the applier, where the C
  // library's heap would have to be tidied for each. What a burst has taken stays, a tenth of what
  // may be staged at most.
  std::pmr::unsynchronized_pool_resource entries_;
  Chunks chunks_{&entries_};
  // Each is in one of these two: to be copied out, or copied, so that it may be applied.
  std::pmr::set<ChunkIndex> owed_{&entries_};
  std::pmr::map<ChunkIndex, Chunk*> copied_{&entries_};
  // The `first` of each layer, by position.
  std::pmr::map<uint64_t, Sequence> by_position_{&entries_};
  // Who may have to be copied out, now or when what is below has left, oldest first. Some are done,
  // but not the first.
  std::deque<OwedEntry> owed_in_order_;
  std::deque<BlockNumber> reserved_;  // T5; oldest first, as the space map hands out neighbours
};

}  // namespace csnap
