#include "testing/volume_model.h"

#include <algorithm>
#include <cstring>

#include "base/assert.h"

namespace csnap {

VolumeModel::VolumeModel(uint64_t origin_bytes, uint64_t chunk_bytes)
    : chunk_bytes_(chunk_bytes),
      origin_(origin_bytes),
      exceptions_(div_up(origin_bytes, chunk_bytes)),
      written_in_(div_up(origin_bytes, chunk_bytes)) {}

VolumeModel::Snapshot* VolumeModel::find(const Uuid& uuid) {
  for (Snapshot& snapshot : snapshots_)
    if (snapshot.uuid == uuid) return &snapshot;
  return nullptr;
}

bool VolumeModel::owed(ChunkIndex chunk) const {
  if (snapshots_.empty()) return false;
  const auto& list = exceptions_[chunk];
  return list.empty() || list.back().generation < snapshots_.back().generation;
}

void VolumeModel::before_overwrite(ChunkIndex chunk) {
  if (owed(chunk)) {
    const auto begin = origin_.begin() + static_cast<ptrdiff_t>(chunk * chunk_bytes_);
    const auto end = origin_.begin() +
                     static_cast<ptrdiff_t>(std::min(origin_.size(), (chunk + 1) * chunk_bytes_));
    const bool zero = std::all_of(begin, end, [](uint8_t byte) { return byte == 0; });
    exceptions_[chunk].push_back({generation_ - 1, zero});
  }
  auto& generations = written_in_[chunk];
  if (generations.empty() || generations.back() != generation_) generations.push_back(generation_);
}

void VolumeModel::write(uint64_t offset, const void* data, uint64_t length) {
  if (length == 0) return;
  for (ChunkIndex chunk = offset / chunk_bytes_; chunk <= (offset + length - 1) / chunk_bytes_;
       chunk++)
    before_overwrite(chunk);
  if (data)
    std::memcpy(origin_.data() + offset, data, length);
  else
    std::memset(origin_.data() + offset, 0, length);
}

std::string VolumeModel::trimmed(uint64_t offset, const std::vector<uint8_t>& now) {
  for (uint64_t i = 0; i < now.size(); i++) {
    uint8_t& was = origin_[offset + i];
    if (now[i] == was) continue;
    const ChunkIndex chunk = (offset + i) / chunk_bytes_;
    if (now[i] != 0) return "a trim left other data at " + std::to_string(offset + i);
    if (exact_ && owed(chunk))
      return "a trim took chunk " + std::to_string(chunk) + " from a snapshot";
    was = 0;
  }
  return "";
}

void VolumeModel::create(const SnapshotInfo& info) {
  CSNAP_ASSERT(info.generation == generation_);
  Snapshot snapshot{info.uuid, info.name, info.generation, info.priority, info.pinned, {}, origin_};
  for (const auto& [key, value] : info.labels) snapshot.labels[key] = value;
  snapshots_.push_back(std::move(snapshot));
  generation_++;
}

void VolumeModel::remove(const Uuid& uuid) {
  std::erase_if(snapshots_, [&](const Snapshot& snapshot) { return snapshot.uuid == uuid; });
  // What nobody holds any more goes, and never comes back.
  for (auto& list : exceptions_) {
    Generation previous = 0;
    std::erase_if(list, [&](const Exception& exception) {
      const Generation after = std::exchange(previous, exception.generation);
      return std::none_of(snapshots_.begin(), snapshots_.end(), [&](const Snapshot& snapshot) {
        return snapshot.generation > after && snapshot.generation <= exception.generation;
      });
    });
  }
}

const VolumeModel::Snapshot* VolumeModel::victim(const Uuid& but_not) const {
  const Snapshot* victim = nullptr;
  for (const Snapshot& snapshot : snapshots_)
    if (!snapshot.pinned && snapshot.uuid != but_not &&
        (!victim || snapshot.priority < victim->priority))
      victim = &snapshot;
  return victim;
}

template <typename Visit>
void VolumeModel::each_exception(Visit visit) const {
  for (const auto& list : exceptions_) {
    Generation previous = 0;
    for (const Exception& exception : list) {
      size_t first = 0;
      while (first < snapshots_.size() && snapshots_[first].generation <= previous) first++;
      size_t last = first;
      while (last < snapshots_.size() && snapshots_[last].generation <= exception.generation)
        last++;
      CSNAP_ASSERT(last > first);
      visit(exception.zero, first, last - 1);
      previous = exception.generation;
    }
  }
}

uint64_t VolumeModel::exception_count() const {
  uint64_t count = 0;
  for (const auto& list : exceptions_) count += list.size();
  return count;
}

uint64_t VolumeModel::data_chunk_count() const {
  uint64_t count = 0;
  each_exception([&](bool zero, size_t, size_t) { count += zero ? 0 : 1; });
  return count;
}

VolumeModel::Usage VolumeModel::usage(const Snapshot& snapshot) const {
  const auto index = static_cast<size_t>(&snapshot - snapshots_.data());
  Usage usage;
  each_exception([&](bool zero, size_t first, size_t last) {
    if (zero || index < first || index > last) return;
    (first == last ? usage.unique : usage.shared)++;
  });
  return usage;
}

uint64_t VolumeModel::freed_by(const std::vector<Uuid>& uuids) const {
  const auto goes = [&](size_t index) {
    return std::find(uuids.begin(), uuids.end(), snapshots_[index].uuid) != uuids.end();
  };
  uint64_t count = 0;
  each_exception([&](bool zero, size_t first, size_t last) {
    bool all = !zero;
    for (size_t index = first; index <= last && all; index++) all = goes(index);
    count += all ? 1 : 0;
  });
  return count;
}

std::vector<ChunkIndex> VolumeModel::diff(const Snapshot& a, const Snapshot* b) const {
  std::vector<ChunkIndex> chunks;
  for (ChunkIndex chunk = 0; chunk < chunk_count(); chunk++)
    if (std::any_of(written_in_[chunk].begin(), written_in_[chunk].end(), [&](Generation in) {
          return in > a.generation && (!b || in <= b->generation);
        }))
      chunks.push_back(chunk);
  return chunks;
}

}  // namespace csnap
