#include "store/snapshot_table.h"

#include <algorithm>
#include <cstring>

namespace csnap {

using format::SnapshotSlot;
using format::SnapshotState;

size_t Snapshot::label_bytes(const std::vector<std::pair<std::string, std::string>>& labels) {
  size_t bytes = 0;
  for (const auto& [key, value] : labels) bytes += key.size() + value.size() + 2;
  return bytes;
}

SnapshotSlot Snapshot::to_disk() const {
  SnapshotSlot slot;
  std::memset(&slot, 0, sizeof slot);
  slot.state = static_cast<uint8_t>(state);
  slot.flags = flags;
  slot.priority = priority;
  slot.name_bytes = static_cast<uint8_t>(name.size());
  slot.volume = volume;
  slot.generation = generation;
  slot.serial = serial;
  slot.delete_serial = delete_serial;
  slot.created_ns = created_ns;
  slot.size_bytes = size_bytes;
  std::memcpy(slot.uuid, uuid.data(), sizeof slot.uuid);
  std::memcpy(slot.base_uuid, base_uuid.data(), sizeof slot.base_uuid);
  CSNAP_ASSERT(name.size() <= sizeof slot.name);
  std::memcpy(slot.name, name.data(), name.size());
  CSNAP_ASSERT(label_bytes(labels) <= sizeof slot.labels);
  uint8_t* p = slot.labels;
  for (const auto& [key, value] : labels) {
    std::memcpy(p, key.data(), key.size());
    p += key.size() + 1;
    std::memcpy(p, value.data(), value.size());
    p += value.size() + 1;
  }
  slot.label_bytes = static_cast<uint16_t>(p - slot.labels);
  return slot;
}

std::optional<Snapshot> Snapshot::from_disk(const SnapshotSlot& slot) {
  if (slot.state > static_cast<uint8_t>(SnapshotState::DROPPED)) return std::nullopt;
  if (slot.name_bytes > sizeof slot.name || slot.label_bytes > sizeof slot.labels)
    return std::nullopt;
  for (uint8_t byte : slot.reserved)
    if (byte != 0) return std::nullopt;
  Snapshot snapshot;
  snapshot.state = static_cast<SnapshotState>(slot.state);
  snapshot.flags = slot.flags;
  snapshot.priority = slot.priority;
  snapshot.volume = slot.volume;
  snapshot.generation = slot.generation;
  snapshot.serial = slot.serial;
  snapshot.delete_serial = slot.delete_serial;
  snapshot.created_ns = slot.created_ns;
  snapshot.size_bytes = slot.size_bytes;
  std::memcpy(snapshot.uuid.data(), slot.uuid, sizeof slot.uuid);
  std::memcpy(snapshot.base_uuid.data(), slot.base_uuid, sizeof slot.base_uuid);
  snapshot.name.assign(slot.name, slot.name_bytes);
  const auto* p = reinterpret_cast<const char*>(slot.labels);
  const char* end = p + slot.label_bytes;
  auto text = [&](std::string& out) {
    const auto* nul = static_cast<const char*>(std::memchr(p, 0, static_cast<size_t>(end - p)));
    if (!nul) return false;
    out.assign(p, nul);
    p = nul + 1;
    return true;
  };
  while (p < end) {
    std::pair<std::string, std::string> label;
    if (!text(label.first) || !text(label.second)) return std::nullopt;
    snapshot.labels.push_back(std::move(label));
  }
  return snapshot;
}

Status SnapshotTable::load(const format::TreeRoot& root, uint64_t slots) {
  CSNAP_TRY(pages_.load(root, div_up(slots, format::kSnapshotsPerPage)));
  snapshots_.resize(slots);
  for (size_t i = 0; i < slots; i++) {
    const PageArray::Page* page = pages_.page(i / format::kSnapshotsPerPage);
    if (!page) {
      free_slots_.push_back(i);
      continue;
    }
    SnapshotSlot slot;
    std::memcpy(&slot, page->data() + i % format::kSnapshotsPerPage * sizeof slot, sizeof slot);
    std::optional<Snapshot> snapshot = Snapshot::from_disk(slot);
    if (!snapshot)
      return Status(Code::CORRUPT, "snapshot table: slot " + std::to_string(i) + " makes no sense");
    snapshots_[i] = std::move(*snapshot);
    if (snapshots_[i].state == SnapshotState::FREE) {
      free_slots_.push_back(i);
      continue;
    }
    if (by_uuid_.count(snapshots_[i].uuid))
      return Status(Code::CORRUPT, "snapshot table: two slots with one uuid");
    if (snapshots_[i].live() && by_name_.count({snapshots_[i].volume, snapshots_[i].name}))
      return Status(Code::CORRUPT, "snapshot table: two snapshots named " + snapshots_[i].name);
    if (by_generation_.count({snapshots_[i].volume, snapshots_[i].generation}))
      return Status(Code::CORRUPT, "snapshot table: two snapshots of one generation");
    index_slot(i, true);
  }
  // Low slots first.
  std::reverse(free_slots_.begin(), free_slots_.end());
  return Status();
}

void SnapshotTable::index_slot(size_t slot, bool add) {
  const Snapshot& snapshot = snapshots_[slot];
  const std::pair by_generation{snapshot.volume, snapshot.generation};
  if (!add) {
    by_uuid_.erase(snapshot.uuid);
    by_generation_.erase(by_generation);
  } else {
    by_uuid_[snapshot.uuid] = slot;
    by_generation_[by_generation] = slot;
  }
  if (snapshot.deleted()) {
    deleted_count_ += add ? 1 : -1;
  } else if (snapshot.live()) {
    std::vector<Generation>& live = live_[snapshot.volume];
    const auto at = std::lower_bound(live.begin(), live.end(), snapshot.generation);
    if (add) {
      by_name_[{snapshot.volume, snapshot.name}] = slot;
      live.insert(at, snapshot.generation);
    } else {
      by_name_.erase({snapshot.volume, snapshot.name});
      CSNAP_ASSERT(at != live.end() && *at == snapshot.generation);
      live.erase(at);
    }
  }
}

void SnapshotTable::write_slot(size_t slot) {
  const SnapshotSlot disk = snapshots_[slot].to_disk();
  PageArray::Page& page = pages_.writable(slot / format::kSnapshotsPerPage);
  std::memcpy(page.data() + slot % format::kSnapshotsPerPage * sizeof disk, &disk, sizeof disk);
}

void SnapshotTable::put(const Snapshot& snapshot) {
  CSNAP_ASSERT(snapshot.state != SnapshotState::FREE && snapshot.generation != 0);
  size_t slot;
  if (const auto at = by_uuid_.find(snapshot.uuid); at != by_uuid_.end()) {
    slot = at->second;
    index_slot(slot, false);
  } else if (!free_slots_.empty()) {
    slot = free_slots_.back();
    free_slots_.pop_back();
  } else {
    slot = snapshots_.size();
    snapshots_.emplace_back();
    pages_.resize(div_up(snapshots_.size(), format::kSnapshotsPerPage));
  }
  snapshots_[slot] = snapshot;
  index_slot(slot, true);
  write_slot(slot);
}

void SnapshotTable::erase(const UuidBytes& uuid) {
  const auto at = by_uuid_.find(uuid);
  CSNAP_ASSERT(at != by_uuid_.end());
  const size_t slot = at->second;
  index_slot(slot, false);
  snapshots_[slot] = Snapshot();
  free_slots_.push_back(slot);
  write_slot(slot);
}

const Snapshot* SnapshotTable::find(const UuidBytes& uuid) const {
  const auto at = by_uuid_.find(uuid);
  return at == by_uuid_.end() ? nullptr : &snapshots_[at->second];
}

const Snapshot* SnapshotTable::find_name(VolumeId volume, const std::string& name) const {
  const auto at = by_name_.find({volume, name});
  return at == by_name_.end() ? nullptr : &snapshots_[at->second];
}

const std::vector<Generation>& SnapshotTable::live(VolumeId volume) const {
  static const std::vector<Generation> none;
  const auto at = live_.find(volume);
  return at == live_.end() ? none : at->second;
}

const Snapshot* SnapshotTable::at_generation(VolumeId volume, Generation generation) const {
  const auto at = by_generation_.find({volume, generation});
  if (at == by_generation_.end() || !snapshots_[at->second].live()) return nullptr;
  return &snapshots_[at->second];
}

size_t SnapshotTable::live_count() const {
  size_t count = 0;
  for (const auto& [volume, live] : live_) count += live.size();
  return count;
}

std::vector<const Snapshot*> SnapshotTable::all() const {
  std::vector<const Snapshot*> out;
  for (const Snapshot& snapshot : snapshots_)
    if (snapshot.state != SnapshotState::FREE) out.push_back(&snapshot);
  return out;
}

uint64_t SnapshotTable::pages_for_one_more() const {
  return free_slots_.empty() && snapshots_.size() % format::kSnapshotsPerPage == 0 ? 1 : 0;
}

Generation next_live(const std::vector<Generation>& live, Generation after) {
  const auto at = std::upper_bound(live.begin(), live.end(), after);
  return at == live.end() ? 0 : *at;
}

Generation last_live(const std::vector<Generation>& live, Generation upto) {
  const auto at = std::upper_bound(live.begin(), live.end(), upto);
  return at == live.begin() ? 0 : *(at - 1);
}

}  // namespace csnap
