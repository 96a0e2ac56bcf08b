#include "volume/staged_table.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace csnap {

namespace {

// Free pages that are kept, at most: what two of the applier's rounds give back.
constexpr size_t kFreePages = 2048;

}  // namespace

StagedTable::StagedTable(uint64_t chunk_count, uint64_t chunk_bytes)
    : chunk_bytes_(chunk_bytes),
      bits_(chunk_count),
      pool_(std::make_shared<BlockPool>(kFreePages)) {}

std::shared_ptr<StagedTable::Page> StagedTable::make_page(const Page* like) {
  const PoolAllocator<Page> allocator(pool_);
  return like ? std::allocate_shared<Page>(allocator, *like)
              : std::allocate_shared<Page>(allocator);
}

StagedTable::Below StagedTable::below(ChunkIndex index, Generation generation) {
  MutexLock lock(mutex_);
  const auto at = chunks_.find(index);
  if (at == chunks_.end()) return Below::NOTHING;
  const Chunk* top = &at->second;
  if (top->awaited) return Below::WAITS;
  while (top->above != nullptr) top = top->above.get();
  if (top->generation > generation) return Below::WAITS;
  return top->generation == generation ? Below::SAME : Below::OLDER;
}

// The first of its generation.
void StagedTable::begin(Chunk& chunk, ChunkIndex index, Generation generation, RecordPlace place,
                        BlockNumber reserved) {
  chunk.generation = generation;
  chunk.first = place;
  chunk.reserved = reserved != 0;
  if (chunk.reserved) reserved_.push_back(reserved);
  by_position_.emplace_hint(by_position_.end(), place.position, place.sequence);
  if (chunk.copied) return;
  uncopied_count_.fetch_add(1, std::memory_order_relaxed);
  chunk.owed_position = place.position;
  owed_in_order_.push_back({place.position, index});
}

StagedTable::Put StagedTable::put(ChunkIndex index, Generation generation, uint64_t start,
                                  const std::byte* data, uint64_t length, RecordPlace place,
                                  bool copied, BlockNumber reserved) {
  CSNAP_ASSERT(start % kSectorBytes == 0 && length % kSectorBytes == 0 && length > 0);
  CSNAP_ASSERT(start + length <= chunk_bytes_);
  MutexLock lock(mutex_);
  Put done;
  const auto [at, fresh] = chunks_.try_emplace(index, chunk_bytes_ / kPageBytes, &entries_);
  Chunk* chunk = &at->second;
  if (fresh) {
    chunk->copied = copied;
    begin(*chunk, index, generation, place, reserved);
    done.took_reserved = chunk->reserved;
    if (copied) {
      copied_.emplace(index, chunk);
    } else {
      owed_.insert(index);
      done.owes_first = owed_count_.fetch_add(1, std::memory_order_release) == 0;
    }
    bits_.set(index);
    count_.fetch_add(1, std::memory_order_release);
  }
  while (chunk->generation != generation) {
    CSNAP_ASSERT(chunk->generation < generation);  // T1
    if (chunk->above == nullptr) {
      chunk->above = std::make_unique<Chunk>(chunk_bytes_ / kPageBytes, &entries_);
      begin(*chunk->above, index, generation, place, reserved);
      done.took_reserved = chunk->above->reserved;
    }
    chunk = chunk->above.get();
  }
  if (chunk->in_place) {
    chunk->in_place = false;
    chunk->first = place;
    by_position_.emplace_hint(by_position_.end(), place.position, place.sequence);
  }
  CSNAP_ASSERT(place.sequence >= chunk->last);  // T3
  chunk->last = place.sequence;
  if (!chunk->since_taken) chunk->since_taken = place;
  write(*chunk, start, data, length);
  return done;
}

void StagedTable::write(Chunk& chunk, uint64_t start, const std::byte* data, uint64_t length) {
  for (uint64_t done = 0; done < length;) {
    const uint64_t within = (start + done) % kPageBytes;
    const uint64_t now = std::min(length - done, kPageBytes - within);
    PageSlot& slot = chunk.pages[(start + done) / kPageBytes];
    if (!slot.page) {
      slot.page = make_page(nullptr);
      bytes_.fetch_add(kPageBytes, std::memory_order_relaxed);
    } else if (std::exchange(slot.handed_out, false)) {
      slot.page = make_page(slot.page.get());  // T6
    }
    Page& page = *slot.page;
    std::memcpy(page.bytes.data() + within, data + done, now);
    const uint64_t sectors = now / kSectorBytes;
    page.mask |= static_cast<uint8_t>(((1u << sectors) - 1) << (within / kSectorBytes));
    done += now;
  }
}

void StagedTable::collect(Chunk& chunk, uint64_t from, uint64_t upto, uint64_t base,
                          std::vector<Piece>& pieces) {
  for (uint64_t number = from / kPageBytes; number * kPageBytes < upto; number++) {
    PageSlot& slot = chunk.pages[number];
    if (!slot.page) continue;
    const Page& page = *slot.page;
    for (uint64_t sector = 0; sector < kPageBytes / kSectorBytes;) {
      if (!(page.mask >> sector & 1)) {
        sector++;
        continue;
      }
      uint64_t end = sector;
      while (end < kPageBytes / kSectorBytes && page.mask >> end & 1) end++;
      const uint64_t first = number * kPageBytes;
      const uint64_t start = std::max(from, first + sector * kSectorBytes);
      const uint64_t stop = std::min(upto, first + end * kSectorBytes);
      if (start < stop) {
        slot.handed_out = true;
        pieces.push_back(
            {start - base, stop - start, page.bytes.data() + (start - first), slot.page});
      }
      sector = end;
    }
  }
}

std::vector<StagedTable::Piece> StagedTable::take(uint64_t offset, uint64_t length,
                                                  Generation upto) {
  std::vector<Piece> pieces;
  if (!any()) return pieces;
  const ChunkIndex last = (offset + length - 1) / chunk_bytes_;
  MutexLock lock(mutex_);
  for (ChunkIndex index = offset / chunk_bytes_; index <= last; index++) {
    if (!bits_.test(index)) continue;
    const auto at = chunks_.find(index);
    if (at == chunks_.end()) continue;
    const uint64_t base = index * chunk_bytes_;
    const uint64_t from = std::max(offset, base) - base;
    const uint64_t end = std::min(offset + length, base + chunk_bytes_) - base;
    for (Chunk* layer = &at->second; layer != nullptr; layer = layer->above.get())
      if (layer->generation <= upto) collect(*layer, from, end, offset - base, pieces);
  }
  return pieces;
}

void StagedTable::overlay(const std::vector<Piece>& pieces, std::byte* data) {
  for (const Piece& piece : pieces) std::memcpy(data + piece.at, piece.data, piece.length);
}

// ---- Copying out -------------------------------------------------------------------------------

std::vector<std::optional<StagedTable::Owed>> StagedTable::owed(
    std::span<const ChunkIndex> chunks) {
  std::vector<std::optional<Owed>> found(chunks.size());
  if (!any()) return found;
  MutexLock lock(mutex_);
  for (size_t i = 0; i < chunks.size(); i++) {
    if (!bits_.test(chunks[i])) continue;
    const auto at = chunks_.find(chunks[i]);
    if (at != chunks_.end() && !at->second.copied) found[i] = Owed{at->second.generation};
  }
  return found;
}

std::vector<ChunkIndex> StagedTable::owed_from(ChunkIndex from, size_t limit) {
  std::vector<ChunkIndex> found;
  MutexLock lock(mutex_);
  auto at = owed_.lower_bound(from);
  if (at == owed_.end()) at = owed_.begin();
  for (; at != owed_.end() && found.size() < limit; ++at) found.push_back(*at);
  return found;
}

bool StagedTable::is_owed(const OwedEntry& entry) const {
  const auto at = chunks_.find(entry.chunk);
  return at != chunks_.end() && !at->second.copied && at->second.owed_position == entry.position;
}

// Of those that is_owed() is not true of yet, too.
bool StagedTable::will_be_owed(const OwedEntry& entry) const {
  if (is_owed(entry)) return true;
  const auto at = chunks_.find(entry.chunk);
  if (at == chunks_.end()) return false;
  for (const Chunk* layer = at->second.above.get(); layer != nullptr; layer = layer->above.get())
    if (layer->owed_position == entry.position) return true;
  return false;
}

std::vector<ChunkIndex> StagedTable::oldest_owed(size_t limit) {
  std::vector<ChunkIndex> found;
  {
    MutexLock lock(mutex_);
    for (const OwedEntry& entry : owed_in_order_) {
      if (found.size() == limit) break;
      if (is_owed(entry)) found.push_back(entry.chunk);
    }
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::vector<BlockNumber> StagedTable::take_reserved(std::span<const ChunkIndex> chunks) {
  std::vector<BlockNumber> taken(chunks.size());
  MutexLock lock(mutex_);
  for (size_t i = 0; i < chunks.size(); i++) {
    const auto at = chunks_.find(chunks[i]);
    if (at == chunks_.end() || !std::exchange(at->second.reserved, false)) continue;
    taken[i] = reserved_.front();
    reserved_.pop_front();
  }
  return taken;
}

bool StagedTable::give_reserved(ChunkIndex index, BlockNumber block) {
  MutexLock lock(mutex_);
  const auto at = chunks_.find(index);
  if (at == chunks_.end() || at->second.copied || at->second.reserved) return false;
  at->second.reserved = true;
  reserved_.push_front(block);
  return true;
}

std::vector<BlockNumber> StagedTable::set_copied(std::span<const ChunkIndex> chunks) {
  std::vector<BlockNumber> left;
  MutexLock lock(mutex_);
  for (const ChunkIndex index : chunks) {
    Chunk& chunk = chunks_.at(index);
    CSNAP_ASSERT(!chunk.copied);
    chunk.copied = true;
    owed_.erase(index);
    copied_.emplace(index, &chunk);
    if (!std::exchange(chunk.reserved, false)) continue;
    left.push_back(reserved_.back());
    reserved_.pop_back();
  }
  owed_count_.fetch_sub(chunks.size(), std::memory_order_release);
  uncopied_count_.fetch_sub(chunks.size(), std::memory_order_relaxed);
  while (!owed_in_order_.empty() && !will_be_owed(owed_in_order_.front()))
    owed_in_order_.pop_front();
  return left;
}

// ---- Applying ----------------------------------------------------------------------------------

std::vector<StagedTable::Content> StagedTable::applicable(uint64_t limit_bytes, bool all) {
  std::vector<Content> found;
  uint64_t bytes = 0;
  MutexLock lock(mutex_);
  if (!all && !awaited()) return found;
  for (const auto& [index, pointer] : copied_) {
    if (bytes >= limit_bytes) break;
    Chunk& chunk = *pointer;
    if (!all && !chunk.awaited) continue;
    Content& content = found.emplace_back(Content{index, chunk.last, {}, chunk.generation});
    chunk.since_taken.reset();
    collect(chunk, 0, chunk_bytes_, 0, content.pieces);
    for (const Piece& piece : content.pieces) bytes += piece.length;
  }
  return found;
}

void StagedTable::set_in_place(std::span<const Content> contents) {
  MutexLock lock(mutex_);
  for (const Content& content : contents) set_in_place(content);
}

void StagedTable::set_in_place(const Content& content) {
  Chunk& chunk = chunks_.at(content.chunk);
  CSNAP_ASSERT(chunk.copied && chunk.last >= content.last);
  if (chunk.in_place) return;
  by_position_.erase(chunk.first.position);
  if (chunk.last == content.last) {
    chunk.in_place = true;
    return;
  }
  // Of a chunk that is written all the time the tail must get on, too.
  CSNAP_ASSERT(chunk.since_taken && chunk.since_taken->sequence > content.last);
  chunk.first = *chunk.since_taken;
  by_position_[chunk.first.position] = chunk.first.sequence;
}

std::vector<ChunkIndex> StagedTable::applied(std::span<const Content> contents, size_t* promoted) {
  std::vector<ChunkIndex> left;
  MutexLock lock(mutex_);
  for (const Content& content : contents) {
    const Applied what = applied(content);
    if (what == Applied::LEFT) left.push_back(content.chunk);
    if (what == Applied::PROMOTED && promoted != nullptr) ++*promoted;
  }
  return left;
}

StagedTable::Applied StagedTable::applied(const Content& content) {
  const auto at = chunks_.find(content.chunk);
  CSNAP_ASSERT(at != chunks_.end() && at->second.copied);
  Chunk& chunk = at->second;
  CSNAP_ASSERT(chunk.last >= content.last);
  if (chunk.last != content.last) return Applied::STAYED;
  if (!chunk.in_place) by_position_.erase(chunk.first.position);
  for (const PageSlot& slot : chunk.pages)
    if (slot.page) bytes_.fetch_sub(kPageBytes, std::memory_order_relaxed);
  copied_.erase(content.chunk);
  if (chunk.above != nullptr) {
    const std::unique_ptr<Chunk> above = std::move(chunk.above);
    above->awaited = chunk.awaited;
    chunk = std::move(*above);
    owed_.insert(content.chunk);
    owed_count_.fetch_add(1, std::memory_order_release);
    return Applied::PROMOTED;
  }
  if (chunk.awaited) awaited_.fetch_sub(1, std::memory_order_release);
  chunks_.erase(at);
  bits_.clear(content.chunk);
  count_.fetch_sub(1, std::memory_order_release);
  return Applied::LEFT;
}

bool StagedTable::wait_for(ChunkIndex index) {
  if (!has(index)) return false;
  MutexLock lock(mutex_);
  const auto at = chunks_.find(index);
  if (at == chunks_.end()) return false;
  if (!at->second.awaited) awaited_.fetch_add(1, std::memory_order_release);
  at->second.awaited = true;
  return true;
}

// ---- Looks -------------------------------------------------------------------------------------

std::optional<RecordPlace> StagedTable::oldest() {
  MutexLock lock(mutex_);
  if (by_position_.empty()) return std::nullopt;
  return RecordPlace{by_position_.begin()->first, by_position_.begin()->second};
}

std::vector<ChunkIndex> StagedTable::find(ChunkIndex first, uint64_t count, Generation after,
                                          Generation upto) {
  std::vector<ChunkIndex> found;
  if (!any()) return found;
  MutexLock lock(mutex_);
  const auto add = [&](Chunks::const_reference one) {
    for (const Chunk* layer = &one.second; layer != nullptr; layer = layer->above.get()) {
      if (layer->generation <= after || layer->generation > upto) continue;
      found.push_back(one.first);
      return;
    }
  };
  if (count > chunks_.size()) {
    for (const auto& one : chunks_)
      if (one.first >= first && one.first - first < count) add(one);
    std::sort(found.begin(), found.end());
    return found;
  }
  for (ChunkIndex index = first; index < first + count; index++)
    if (const auto at = chunks_.find(index); at != chunks_.end()) add(*at);
  return found;
}

}  // namespace csnap
