// Snapshots: create, delete, properties, list, diff.
//
//  W6  create_snapshot() returns only after its completion record, which follows a sync of the
//  origin,
//      is durable.
//  W7  The new generation is installed while every writer section of the old one drains, under the
//      transaction lock: what was acknowledged before is in, what is submitted after is not.
#include <algorithm>
#include <cstring>

#include "volume/volume_impl.h"

namespace csnap {

namespace {

Uuid uuid_of(const UuidBytes& bytes) {
  Uuid uuid;
  std::memcpy(uuid.bytes, bytes.data(), bytes.size());
  return uuid;
}

UuidBytes bytes_of(const Uuid& uuid) {
  UuidBytes bytes;
  std::memcpy(bytes.data(), uuid.bytes, bytes.size());
  return bytes;
}

Status not_found() { return Status(Code::NOT_FOUND, "no such snapshot"); }

// On disk a NUL ends a label's key and value.
Status judge_labels(const std::vector<std::pair<std::string, std::string>>& labels) {
  for (const auto& [key, value] : labels)
    if (key.empty() || key.find('\0') != std::string::npos || value.find('\0') != std::string::npos)
      return Status(Code::INVALID_ARGUMENT,
                    "a label needs a name, and neither part may hold a NUL");
  if (Snapshot::label_bytes(labels) > format::kLabelBytesMax)
    return Status(Code::LIMIT, "labels of a snapshot take at most 1024 bytes together");
  return Status();
}

}  // namespace

Result<SnapshotInfo> VolumeImpl::create_snapshot(
    const std::string& name, bool pinned, uint8_t priority,
    const std::vector<std::pair<std::string, std::string>>& labels) {
  if (name.empty() || name.size() > format::kNameBytesMax || priority > 100)
    return Status(Code::INVALID_ARGUMENT,
                  "a snapshot's name has 1 to 128 bytes, its priority is 0 to 100");
  CSNAP_TRY(judge_labels(labels));
  MutexLock one(snapshot_mutex_);
  // Most of what the barrier would have to wait for goes out before it.
  if (Status status = origin_.sync(); !status.ok()) {
    fail(status, true);
    return store_->failure();
  }
  Snapshot snapshot;
  snapshot.state = format::SnapshotState::CREATING;
  snapshot.flags = pinned ? format::kSnapshotPinned : 0;
  snapshot.priority = priority;
  snapshot.name = name;
  snapshot.labels = labels;
  snapshot.created_ns = options_.clock_ns();
  snapshot.size_bytes = origin_bytes_;
  snapshot.uuid = bytes_of(options_.make_uuid());
  Result<Snapshot> begun = begin_snapshot(std::move(snapshot));
  if (!begun.ok()) return begun.take_status();
  if (Status status = origin_.sync(); !status.ok()) {
    fail(status, true);
    return store_->failure();
  }
  if (Status status = complete_snapshot(begun.value()); !status.ok()) {
    // Not whole, so it must not stay; where even that fails, the next open deletes it (W6).
    if (!store_->failed()) (void)remove_snapshot(&begun.value().uuid, false);
    return status;
  }
  SnapshotInfo info = info_of(begun.value());
  info.state = format::SnapshotState::LIVE;
  emit(VolumeEvent::Kind::SNAPSHOT_CREATED, &begun.value(), "snapshot " + name + " created");
  return info;
}

// The barrier and the snapshot's record, in one transaction: commits wait, so no exception is keyed
// by a generation that the journal does not know yet.
Result<Snapshot> VolumeImpl::begin_snapshot(Snapshot snapshot) {
  Result<Store::Transaction> begun = store_->begin(Priority::DATA, sizeof(format::SnapshotSlot), 0);
  if (!begun.ok()) return begun.take_status();
  Store::Transaction transaction = begun.take();
  if (store_->snapshots().find_name(kOriginVolume, snapshot.name))
    return Status(Code::ALREADY_EXISTS, "a snapshot named " + snapshot.name + " exists already");
  if (store_->snapshots().all().size() >= format::kSnapshotsMax)
    return Status(Code::LIMIT, "a store holds at most " + std::to_string(format::kSnapshotsMax) +
                                   " snapshots; delete some");
  snapshot.generation = store_->superblock().generation;
  snapshot.serial = store_->superblock().snapshot_serial + 1;

  auto next =
      std::make_shared<GenerationState>(snapshot.generation + 1, snapshot.generation, chunk_count_);
  std::shared_ptr<GenerationState> former;
  {
    MutexLock lock(state_mutex_);
    former = state_owner_;
    CSNAP_RULE(W5, next->generation > former->generation);
    state_owner_ = next;
    state_.store(next.get());
  }
  writers_.synchronize();  // W7; nobody uses `former` inside a section any more

  transaction.batch.add_struct(format::RecordKind::SNAPSHOT, snapshot.to_disk());
  // Not after the sync: what is staged behind the record has no other fate than the record.
  Status status = store_->commit(transaction, [&] {
    next->open.store(true, std::memory_order_release);
    release_opened();
  });
  if (!status.ok()) {
    release_opened();
    return status;
  }
  store_->apply_snapshot(snapshot);
  return snapshot;
}

Status VolumeImpl::complete_snapshot(const Snapshot& snapshot) {
  Result<Store::Transaction> begun =
      store_->begin(Priority::RESERVED, sizeof(format::SnapshotCompleteRecord), 0);
  if (!begun.ok()) return begun.take_status();
  Store::Transaction transaction = begun.take();
  format::SnapshotCompleteRecord record;
  std::memcpy(record.uuid, snapshot.uuid.data(), sizeof record.uuid);
  record.generation = snapshot.generation;
  transaction.batch.add_struct(format::RecordKind::SNAPSHOT_COMPLETE, record);
  CSNAP_TRY(store_->commit(transaction));
  Snapshot done = *store_->snapshots().find(snapshot.uuid);
  done.state = format::SnapshotState::LIVE;
  store_->apply_snapshot(done);
  MutexLock lock(views_mutex_);
  openable_[done.uuid] = {done.generation, done.size_bytes};
  return Status();
}

// Under the transaction lock, after a delete: what is owed may have become less.
void VolumeImpl::refresh_newest_live() {
  const std::vector<Generation>& live = store_->snapshots().live(kOriginVolume);
  const Generation newest = live.empty() ? 0 : live.back();
  const std::shared_ptr<GenerationState> state = generation_state();
  CSNAP_ASSERT(newest <= state->newest_live.load());
  state->newest_live.store(newest, std::memory_order_release);
}

Status VolumeImpl::delete_snapshot(const Uuid& uuid, bool dropped) {
  {
    MutexLock lock = store_->lock();
    const Snapshot* found = store_->snapshots().find(bytes_of(uuid));
    if (!found || found->state != format::SnapshotState::LIVE) return not_found();
  }
  const UuidBytes bytes = bytes_of(uuid);
  return remove_snapshot(&bytes, dropped);
}

// `uuid` null: the one that the store-full policy gives up first, chosen in the same transaction.
Status VolumeImpl::remove_snapshot(const UuidBytes* uuid, bool dropped) {
  Snapshot snapshot;
  {
    Result<Store::Transaction> begun =
        store_->begin(Priority::RESERVED, sizeof(format::DeleteRecord), 0);
    if (!begun.ok()) return begun.take_status();
    Store::Transaction transaction = begun.take();
    const Snapshot* found = uuid ? store_->snapshots().find(*uuid) : choose_victim();
    if (!found || !found->live()) return not_found();
    snapshot = *found;
    format::DeleteRecord record;
    std::memset(&record, 0, sizeof record);
    std::memcpy(record.uuid, snapshot.uuid.data(), sizeof record.uuid);
    record.delete_serial = store_->superblock().delete_serial + 1;
    record.dropped = dropped ? 1 : 0;
    transaction.batch.add_struct(format::RecordKind::DELETE, record);
    CSNAP_TRY(store_->commit(transaction));
    store_->apply_delete(snapshot.uuid, dropped, record.delete_serial);
    {
      // Its readers are told before a writer may overwrite what it shares with the origin, and
      // before anything of it can be freed (that takes the transaction lock).
      MutexLock lock(views_mutex_);
      openable_.erase(snapshot.uuid);
      const auto at = views_.find(snapshot.uuid);
      if (at != views_.end()) {
        if (std::shared_ptr<VolumeView> view = at->second.lock()) view->deleted.store(true);
        views_.erase(at);
      }
    }
    refresh_newest_live();
  }
  emit(dropped ? VolumeEvent::Kind::SNAPSHOT_DROPPED : VolumeEvent::Kind::SNAPSHOT_DELETED,
       &snapshot,
       "snapshot " + snapshot.name +
           (dropped ? " dropped: the snapshot store is filling up" : " deleted"));
  MutexLock lock(space_mutex_);
  reclaim_kicked_ = true;
  reclaim_idle_ = false;
  space_wake_.notify_all();
  return Status();
}

Result<SnapshotInfo> VolumeImpl::update_snapshot(const Uuid& uuid, const SnapshotChanges& changes) {
  Result<Store::Transaction> begun =
      store_->begin(Priority::RESERVED, sizeof(format::SnapshotSlot), 0);
  if (!begun.ok()) return begun.take_status();
  Store::Transaction transaction = begun.take();
  const Snapshot* found = store_->snapshots().find(bytes_of(uuid));
  if (!found || found->state != format::SnapshotState::LIVE) return not_found();
  Snapshot snapshot = *found;
  if (changes.pinned >= 0) {
    snapshot.flags &= static_cast<uint8_t>(~format::kSnapshotPinned);
    if (changes.pinned) snapshot.flags |= format::kSnapshotPinned;
  }
  if (changes.priority > 100)
    return Status(Code::INVALID_ARGUMENT, "a snapshot's priority is 0 to 100");
  if (changes.priority >= 0) snapshot.priority = static_cast<uint8_t>(changes.priority);
  for (const auto& [key, value] : changes.set_labels) {
    std::erase_if(snapshot.labels, [&](const auto& label) { return label.first == key; });
    if (!value.empty()) snapshot.labels.push_back({key, value});
  }
  CSNAP_TRY(judge_labels(snapshot.labels));
  transaction.batch.add_struct(format::RecordKind::SNAPSHOT_UPDATE, snapshot.to_disk());
  CSNAP_TRY(store_->commit(transaction));
  store_->apply_snapshot(snapshot);
  transaction.lock.unlock();
  return info_of(snapshot);
}

Status VolumeImpl::update_settings(const Settings& settings) {
  Result<Store::Transaction> begun =
      store_->begin(Priority::RESERVED, sizeof(format::SettingsRecord), 0);
  if (!begun.ok()) return begun.take_status();
  Store::Transaction transaction = begun.take();
  format::Superblock& sb = store_->superblock();
  format::SettingsRecord record;
  std::memset(&record, 0, sizeof record);
  record.on_full = settings.on_full >= 0 ? static_cast<uint8_t>(settings.on_full) : sb.on_full;
  auto pick = [](int64_t wanted, uint64_t now) {
    return wanted >= 0 ? static_cast<uint64_t>(wanted) : now;
  };
  record.staged_limit_bytes = pick(settings.staged_limit_bytes, sb.staged_limit_bytes);
  record.cache_limit_bytes = pick(settings.cache_limit_bytes, sb.cache_limit_bytes);
  record.reclaim_rate_bytes = pick(settings.reclaim_rate_bytes, sb.reclaim_rate_bytes);
  transaction.batch.add_struct(format::RecordKind::SETTINGS, record);
  CSNAP_TRY(store_->commit(transaction));
  sb.on_full = record.on_full;
  sb.staged_limit_bytes = record.staged_limit_bytes;
  staged_limit_ = record.staged_limit_bytes;
  sb.cache_limit_bytes = record.cache_limit_bytes;
  sb.reclaim_rate_bytes = record.reclaim_rate_bytes;
  return Status();
}

// ---- Looks -------------------------------------------------------------------------------------

SnapshotInfo VolumeImpl::info_of(const Snapshot& snapshot) {
  SnapshotInfo info;
  info.uuid = uuid_of(snapshot.uuid);
  info.name = snapshot.name;
  info.state = snapshot.state;
  info.generation = snapshot.generation;
  info.created_ns = snapshot.created_ns;
  info.size_bytes = snapshot.size_bytes;
  info.priority = snapshot.priority;
  info.pinned = snapshot.pinned();
  info.suspect = snapshot.serial <= suspect_serial_;
  info.labels = snapshot.labels;
  MutexLock lock(views_mutex_);
  const auto at = views_.find(snapshot.uuid);
  if (at != views_.end()) info.use_count = static_cast<uint32_t>(at->second.use_count());
  return info;
}

Result<std::vector<SnapshotInfo>> VolumeImpl::list_snapshots() {
  std::vector<Snapshot> snapshots;
  std::vector<SpaceCounters::Usage> usage;
  std::vector<Generation> live;
  bool estimated;
  {
    MutexLock lock = store_->lock();
    for (const Snapshot* snapshot : store_->snapshots().all()) snapshots.push_back(*snapshot);
    live = store_->snapshots().live(kOriginVolume);
    usage = store_->counters().usage(kOriginVolume, live);
    estimated = store_->counters().estimated();
  }
  std::sort(snapshots.begin(), snapshots.end(),
            [](const Snapshot& a, const Snapshot& b) { return a.serial < b.serial; });
  std::vector<SnapshotInfo> out;
  out.reserve(snapshots.size());
  for (const Snapshot& snapshot : snapshots) {
    SnapshotInfo info = info_of(snapshot);
    info.estimated = estimated;
    const auto at = std::lower_bound(live.begin(), live.end(), snapshot.generation);
    if (snapshot.live() && at != live.end() && *at == snapshot.generation) {
      const SpaceCounters::Usage& used = usage[static_cast<size_t>(at - live.begin())];
      info.unique_bytes = used.unique * chunk_bytes_;
      info.shared_bytes = (used.total - used.unique) * chunk_bytes_;
    }
    out.push_back(std::move(info));
  }
  return out;
}

Result<uint64_t> VolumeImpl::freed_if_deleted(const std::vector<Uuid>& uuids) {
  MutexLock lock = store_->lock();
  std::vector<Generation> gone;
  for (const Uuid& uuid : uuids) {
    const Snapshot* snapshot = store_->snapshots().find(bytes_of(uuid));
    if (!snapshot || !snapshot->live()) return not_found();
    gone.push_back(snapshot->generation);
  }
  std::sort(gone.begin(), gone.end());
  gone.erase(std::unique(gone.begin(), gone.end()), gone.end());
  return store_->counters().freed_by(kOriginVolume, store_->snapshots().live(kOriginVolume), gone) *
         chunk_bytes_;
}

Status VolumeImpl::diff(const Uuid& a, const Uuid& b,
                        const std::function<bool(ChunkIndex first, uint64_t count)>& out) {
  Generation from = 0;
  Generation upto = kHeadGeneration;
  uint64_t from_bytes = 0;
  uint64_t upto_bytes = origin_bytes_;
  {
    MutexLock lock = store_->lock();
    const Snapshot* first = store_->snapshots().find(bytes_of(a));
    if (!first || !first->live()) return not_found();
    from = first->generation;
    from_bytes = first->size_bytes;
    if (!b.is_nil()) {
      const Snapshot* second = store_->snapshots().find(bytes_of(b));
      if (!second || !second->live()) return not_found();
      upto = second->generation;
      upto_bytes = second->size_bytes;
    }
  }
  if (from > upto)
    return Status(Code::INVALID_ARGUMENT,
                  "the first snapshot is younger than the second; swap them");
  // Before the index is read: what leaves the table meanwhile has its entry in the index by then.
  const std::vector<ChunkIndex> staged = staged_->find(0, chunk_count_, from, upto);
  size_t next_staged = 0;
  const auto wanted = [&](Generation low, Generation high) { return low < upto && high >= from; };
  ChunkIndex run_first = 0;
  uint64_t run_count = 0;
  bool go_on = true;
  const auto add = [&](ChunkIndex chunk) {
    if (run_count > 0 && chunk < run_first + run_count) return;  // a second entry of the chunk
    if (run_count > 0 && chunk == run_first + run_count) {
      run_count++;
      return;
    }
    if (run_count > 0) go_on = out(run_first, run_count);
    run_first = chunk;
    run_count = 1;
  };
  std::vector<Entry> entries;
  Key next;
  while (go_on && next != kKeyEnd) {
    const Key start = next;
    entries.clear();
    CSNAP_TRY(store_->index().scan(start, wanted, 4096, 256, entries, next));
    for (const Entry& entry : entries) {
      if (!go_on || entry.key.volume != kOriginVolume || entry.key.generation < from ||
          entry.key.generation >= upto)
        continue;
      while (next_staged < staged.size() && staged[next_staged] < entry.key.chunk && go_on)
        add(staged[next_staged++]);
      if (go_on) add(entry.key.chunk);
    }
  }
  while (next_staged < staged.size() && go_on) add(staged[next_staged++]);
  for (ChunkIndex chunk = div_up(from_bytes, chunk_bytes_);
       go_on && chunk < div_up(upto_bytes, chunk_bytes_); chunk++)
    add(chunk);
  if (go_on && run_count > 0) out(run_first, run_count);
  return Status();
}

}  // namespace csnap
