#include "store/space_counters.h"

#include <algorithm>
#include <cstring>

namespace csnap {

using format::CounterSlot;
using format::kCountersPerPage;

Status SpaceCounters::load(const format::TreeRoot& root, uint64_t slots, bool estimated) {
  CSNAP_TRY(pages_.load(root, div_up(slots, kCountersPerPage)));
  slots_ = slots;
  estimated_ = estimated;
  for (uint64_t i = 0; i < slots; i++) {
    const PageArray::Page* page = pages_.page(i / kCountersPerPage);
    CounterSlot slot{};
    if (page)
      std::memcpy(&slot, page->data() + i % kCountersPerPage * sizeof slot, sizeof slot);
    else
      std::memset(&slot, 0, sizeof slot);
    if (slot.count == 0) {
      free_slots_.push_back(i);
      continue;
    }
    const Holders holders{slot.volume, slot.first, slot.last};
    if (holders.first > holders.last || buckets_.count(holders))
      return Status(Code::CORRUPT, "space counters: slot " + std::to_string(i) + " makes no sense");
    buckets_[holders] = {slot.count, i};
    by_last_.insert({holders.volume, holders.last, holders.first});
  }
  std::reverse(free_slots_.begin(), free_slots_.end());
  return Status();
}

void SpaceCounters::write_slot(uint64_t number, const Holders& holders, uint64_t count) {
  CounterSlot slot;
  std::memset(&slot, 0, sizeof slot);
  if (count != 0) {
    slot.volume = holders.volume;
    slot.first = holders.first;
    slot.last = holders.last;
    slot.count = count;
  }
  PageArray::Page& page = pages_.writable(number / kCountersPerPage);
  std::memcpy(page.data() + number % kCountersPerPage * sizeof slot, &slot, sizeof slot);
}

void SpaceCounters::change(const Holders& holders, int64_t chunks) {
  auto at = buckets_.find(holders);
  if (at == buckets_.end()) {
    if (chunks <= 0) {
      inconsistent_ = inconsistent_ || (chunks < 0 && !estimated_);
      return;
    }
    if (buckets_.size() >= kBucketsMax) {
      // C2: the nearest bucket takes it.
      estimated_ = true;
      at = buckets_.lower_bound(holders);
      if (at == buckets_.end()) --at;
      at->second.count += static_cast<uint64_t>(chunks);
      write_slot(at->second.slot, at->first, at->second.count);
      return;
    }
    uint64_t slot = slots_;
    if (!free_slots_.empty()) {
      slot = free_slots_.back();
      free_slots_.pop_back();
    } else {
      slots_++;
      pages_.resize(div_up(slots_, kCountersPerPage));
    }
    at = buckets_.insert({holders, {0, slot}}).first;
    by_last_.insert({holders.volume, holders.last, holders.first});
  }
  const int64_t count = static_cast<int64_t>(at->second.count) + chunks;
  inconsistent_ = inconsistent_ || (count < 0 && !estimated_);
  at->second.count = count > 0 ? static_cast<uint64_t>(count) : 0;
  write_slot(at->second.slot, holders, at->second.count);
  if (at->second.count == 0) {
    free_slots_.push_back(at->second.slot);
    by_last_.erase({holders.volume, holders.last, holders.first});
    buckets_.erase(at);
  }
}

void SpaceCounters::add(const Holders& holders, int64_t chunks) { change(holders, chunks); }

void SpaceCounters::snapshot_deleted(VolumeId volume, Generation generation, Generation before,
                                     Generation after) {
  std::vector<std::pair<Holders, uint64_t>> moved;
  for (auto at = buckets_.lower_bound({volume, generation, 0});
       at != buckets_.end() && at->first.volume == volume && at->first.first == generation; ++at)
    moved.push_back({at->first, at->second.count});
  for (auto at = by_last_.lower_bound({volume, generation, 0});
       at != by_last_.end() && std::get<0>(*at) == volume && std::get<1>(*at) == generation; ++at) {
    const Holders holders{volume, std::get<2>(*at), generation};
    if (holders.first != generation) moved.push_back({holders, buckets_[holders].count});
  }
  for (const auto& [holders, count] : moved) {
    change(holders, -static_cast<int64_t>(count));
    Holders left = holders;
    if (left.first == generation && left.last == generation)
      left = {volume, 0, 0};
    else if (left.first == generation)
      left.first = after;
    else
      left.last = before;
    // Only buckets that took in others' entries (C2) can have holders that are gone already.
    if (left.first == 0 || left.last == 0) left = {volume, 0, 0};
    change(left, static_cast<int64_t>(count));
  }
}

std::vector<SpaceCounters::Usage> SpaceCounters::usage(VolumeId volume,
                                                       const std::vector<Generation>& live) const {
  std::vector<int64_t> change(live.size() + 1, 0);
  std::vector<Usage> out(live.size());
  auto position = [&](Generation generation) {
    return static_cast<size_t>(std::lower_bound(live.begin(), live.end(), generation) -
                               live.begin());
  };
  for (auto at = buckets_.lower_bound({volume, 1, 0});
       at != buckets_.end() && at->first.volume == volume; ++at) {
    const size_t first = position(at->first.first);
    const size_t last = position(at->first.last);
    if (first >= live.size() || last >= live.size()) continue;  // estimated only
    change[first] += static_cast<int64_t>(at->second.count);
    change[last + 1] -= static_cast<int64_t>(at->second.count);
    if (first == last) out[first].unique += at->second.count;
  }
  int64_t total = 0;
  for (size_t i = 0; i < live.size(); i++) {
    total += change[i];
    out[i].total = static_cast<uint64_t>(total);
  }
  return out;
}

uint64_t SpaceCounters::freed_by(VolumeId volume, const std::vector<Generation>& live,
                                 const std::vector<Generation>& gone) const {
  uint64_t freed = 0;
  auto count_in = [](const std::vector<Generation>& sorted, const Holders& holders) {
    return std::upper_bound(sorted.begin(), sorted.end(), holders.last) -
           std::lower_bound(sorted.begin(), sorted.end(), holders.first);
  };
  for (auto at = buckets_.lower_bound({volume, 1, 0});
       at != buckets_.end() && at->first.volume == volume; ++at)
    if (count_in(gone, at->first) == count_in(live, at->first)) freed += at->second.count;
  return freed;
}

uint64_t SpaceCounters::dead(VolumeId volume) const {
  const auto at = buckets_.find({volume, 0, 0});
  return at == buckets_.end() ? 0 : at->second.count;
}

const std::map<Holders, uint64_t> SpaceCounters::buckets() const {
  std::map<Holders, uint64_t> out;
  for (const auto& [holders, bucket] : buckets_) out[holders] = bucket.count;
  return out;
}

}  // namespace csnap
