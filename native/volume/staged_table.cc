#include "volume/staged_table.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace csnap {

StagedTable::StagedTable(uint64_t chunk_count, uint64_t chunk_bytes)
    : chunk_bytes_(chunk_bytes), bits_(chunk_count) {}

bool StagedTable::may_put(ChunkIndex chunk, Generation generation, bool& fresh) {
  MutexLock lock(mutex_);
  const auto at = chunks_.find(chunk);
  fresh = at == chunks_.end();
  return fresh || (at->second.generation == generation && !at->second.awaited);
}

void StagedTable::put(ChunkIndex index, Generation generation, uint64_t start,
                      const std::byte* data, uint64_t length, RecordPlace place, bool copied,
                      BlockNumber reserved) {
  CSNAP_ASSERT(start % kSectorBytes == 0 && length % kSectorBytes == 0 && length > 0);
  CSNAP_ASSERT(start + length <= chunk_bytes_);
  MutexLock lock(mutex_);
  const auto [at, fresh] = chunks_.try_emplace(index);
  Chunk& chunk = at->second;
  if (fresh) {
    chunk.generation = generation;
    chunk.first = place;
    chunk.copied = copied;
    chunk.reserved = reserved;
    chunk.pages.resize(chunk_bytes_ / kPageBytes);
    by_position_[place.position] = index;
    if (!copied) owed_count_.fetch_add(1, std::memory_order_release);
    bits_.set(index);
    count_.fetch_add(1, std::memory_order_release);
  }
  if (chunk.in_place) {
    chunk.in_place = false;
    chunk.first = place;
    by_position_[place.position] = index;
  }
  CSNAP_ASSERT(chunk.generation == generation);  // T1
  CSNAP_ASSERT(place.sequence >= chunk.last);    // T3
  chunk.last = place.sequence;
  for (uint64_t done = 0; done < length;) {
    const uint64_t within = (start + done) % kPageBytes;
    const uint64_t now = std::min(length - done, kPageBytes - within);
    std::unique_ptr<Page>& page = chunk.pages[(start + done) / kPageBytes];
    if (!page) {
      page = std::make_unique<Page>();
      bytes_.fetch_add(kPageBytes, std::memory_order_relaxed);
    }
    std::memcpy(page->bytes.data() + within, data + done, now);
    const uint64_t sectors = now / kSectorBytes;
    page->mask |= static_cast<uint8_t>(((1u << sectors) - 1) << (within / kSectorBytes));
    done += now;
  }
}

template <typename F>
void StagedTable::each_run(const Chunk& chunk, uint64_t from, uint64_t upto, F run) {
  for (uint64_t number = from / kPageBytes; number * kPageBytes < upto; number++) {
    const Page* page = chunk.pages[number].get();
    if (!page) continue;
    for (uint64_t sector = 0; sector < kPageBytes / kSectorBytes;) {
      if (!(page->mask >> sector & 1)) {
        sector++;
        continue;
      }
      uint64_t end = sector;
      while (end < kPageBytes / kSectorBytes && page->mask >> end & 1) end++;
      const uint64_t base = number * kPageBytes;
      const uint64_t start = std::max(from, base + sector * kSectorBytes);
      const uint64_t stop = std::min(upto, base + end * kSectorBytes);
      if (start < stop) run(start, page->bytes.data() + (start - base), stop - start);
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
  for (auto at = chunks_.lower_bound(offset / chunk_bytes_);
       at != chunks_.end() && at->first <= last; ++at) {
    if (at->second.generation > upto) continue;
    const uint64_t base = at->first * chunk_bytes_;
    const uint64_t from = std::max(offset, base) - base;
    const uint64_t end = std::min(offset + length, base + chunk_bytes_) - base;
    each_run(at->second, from, end, [&](uint64_t start, const std::byte* data, uint64_t bytes) {
      pieces.push_back({base + start - offset, {data, data + bytes}});
    });
  }
  return pieces;
}

void StagedTable::overlay(const std::vector<Piece>& pieces, std::byte* data) {
  for (const Piece& piece : pieces)
    std::memcpy(data + piece.at, piece.data.data(), piece.data.size());
}

// ---- Copying out -------------------------------------------------------------------------------

std::optional<StagedTable::Owed> StagedTable::owed(ChunkIndex chunk) {
  if (!has(chunk)) return std::nullopt;
  MutexLock lock(mutex_);
  const auto at = chunks_.find(chunk);
  if (at == chunks_.end() || at->second.copied) return std::nullopt;
  return Owed{at->second.generation, at->second.reserved};
}

std::vector<ChunkIndex> StagedTable::owed_from(ChunkIndex from, size_t limit) {
  std::vector<ChunkIndex> found;
  MutexLock lock(mutex_);
  const auto collect = [&](Chunks::iterator at, Chunks::iterator end) {
    for (; at != end && found.size() < limit; ++at)
      if (!at->second.copied) found.push_back(at->first);
  };
  const auto middle = chunks_.lower_bound(from);
  collect(middle, chunks_.end());
  if (found.empty()) collect(chunks_.begin(), middle);
  return found;
}

std::vector<ChunkIndex> StagedTable::oldest_owed(size_t limit) {
  std::vector<ChunkIndex> found;
  {
    MutexLock lock(mutex_);
    for (auto at = by_position_.begin(); at != by_position_.end() && found.size() < limit; ++at)
      if (!chunks_.at(at->second).copied) found.push_back(at->second);
  }
  std::sort(found.begin(), found.end());
  return found;
}

BlockNumber StagedTable::set_copied(ChunkIndex index) {
  MutexLock lock(mutex_);
  Chunk& chunk = chunks_.at(index);
  CSNAP_ASSERT(!chunk.copied);
  chunk.copied = true;
  owed_count_.fetch_sub(1, std::memory_order_release);
  return std::exchange(chunk.reserved, 0);
}

// ---- Applying ----------------------------------------------------------------------------------

StagedTable::Content StagedTable::content_of(ChunkIndex index, const Chunk& chunk) const {
  Content content;
  content.chunk = index;
  content.last = chunk.last;
  each_run(chunk, 0, chunk_bytes_, [&](uint64_t start, const std::byte* data, uint64_t length) {
    Run* former = content.runs.empty() ? nullptr : &content.runs.back();
    if (!former || former->start + former->data.size() != start)
      former = &content.runs.emplace_back(Run{start, {}});
    former->data.insert(former->data.end(), data, data + length);
  });
  return content;
}

std::vector<StagedTable::Content> StagedTable::applicable(uint64_t limit_bytes, bool all) {
  std::vector<Content> found;
  uint64_t bytes = 0;
  MutexLock lock(mutex_);
  for (const auto& [index, chunk] : chunks_) {
    if (bytes >= limit_bytes) break;
    if (!chunk.copied || !(all || chunk.awaited)) continue;
    found.push_back(content_of(index, chunk));
    for (const Run& run : found.back().runs) bytes += run.data.size();
  }
  return found;
}

void StagedTable::set_in_place(ChunkIndex index, Sequence last) {
  MutexLock lock(mutex_);
  Chunk& chunk = chunks_.at(index);
  CSNAP_ASSERT(chunk.copied && chunk.last >= last);
  if (chunk.last != last || chunk.in_place) return;
  chunk.in_place = true;
  by_position_.erase(chunk.first.position);
}

bool StagedTable::applied(ChunkIndex index, Sequence last) {
  MutexLock lock(mutex_);
  const auto at = chunks_.find(index);
  CSNAP_ASSERT(at != chunks_.end() && at->second.copied);
  Chunk& chunk = at->second;
  CSNAP_ASSERT(chunk.last >= last);
  if (chunk.last != last) return false;
  if (!chunk.in_place) by_position_.erase(chunk.first.position);
  if (chunk.awaited) awaited_.fetch_sub(1, std::memory_order_release);
  for (const auto& page : chunk.pages)
    if (page) bytes_.fetch_sub(kPageBytes, std::memory_order_relaxed);
  chunks_.erase(at);
  bits_.clear(index);
  count_.fetch_sub(1, std::memory_order_release);
  return true;
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
  return chunks_.at(by_position_.begin()->second).first;
}

std::vector<ChunkIndex> StagedTable::find(ChunkIndex first, uint64_t count, Generation after,
                                          Generation upto) {
  std::vector<ChunkIndex> found;
  if (!any()) return found;
  MutexLock lock(mutex_);
  for (auto at = chunks_.lower_bound(first); at != chunks_.end() && at->first - first < count; ++at)
    if (at->second.generation > after && at->second.generation <= upto) found.push_back(at->first);
  return found;
}

}  // namespace csnap
