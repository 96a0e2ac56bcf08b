// The reclaimer: frees, in the background, what no live snapshot holds, and follows the store-full
// policy (design section 8). One thread, so space is given back in one place.
//
//  W4   A chunk is reused only after its FREE record is durable and its readers have left.
//  W10  Under drop-snapshots a write is refused for want of space only when no unpinned snapshot is
//       left to drop.
#include <algorithm>
#include <cstring>

#include "volume/volume_impl.h"

namespace csnap {
namespace {

constexpr size_t kScanEntries = 512;
constexpr size_t kScanNodes = 64;
constexpr uint64_t kDefaultRateBytes = uint64_t{512} << 20;
// Low water: less than 1/16 of the store is left for chunks; high water: more than 1/8 again.
constexpr uint64_t kLowWaterDivisor = 16;
constexpr uint64_t kHighWaterDivisor = 8;

}  // namespace

// After a group of copy-outs: the policy starts before a write has to wait for space.
void VolumeImpl::look_at_water() {
  if (low_water_told_ || !low_water()) return;
  MutexLock lock(space_mutex_);
  reclaim_kicked_ = true;
  reclaim_idle_ = false;
  space_wake_.notify_all();
}

bool VolumeImpl::low_water() {
  MutexLock lock = store_->lock();
  const uint64_t available = store_->available_blocks();
  return available < store_->space_map().block_count() /
                         (low_water_told_ ? kHighWaterDivisor : kLowWaterDivisor);
}

void VolumeImpl::reclaim_loop() {
  MutexLock lock(space_mutex_);
  while (true) {
    while (!reclaim_kicked_ && !reclaim_stop_) {
      reclaim_idle_ = true;
      space_changed_.notify_all();
      space_wake_.wait(lock);
    }
    if (reclaim_stop_) break;
    reclaim_kicked_ = false;
    reclaim_idle_ = false;
    const uint64_t requests = space_requests_;
    // A waiter that has been answered may not have woken yet.
    const bool urgent = space_waited_for_ && space_progress_ == space_waited_seen_;
    lock.unlock();

    const uint64_t freed_before = counters_.chunks_freed.load();
    bool progressed = false;
    Status status = reclaim_pass();
    if (status.ok()) {
      progressed = counters_.chunks_freed.load() > freed_before;
      follow_policy(urgent && !progressed, progressed);
    } else if (status.code() != Code::NO_SPACE) {
      fail(status, false);
    }

    lock.lock();
    space_served_ = requests;
    if (progressed) space_progress_++;
    space_changed_.notify_all();
  }
  reclaim_idle_ = true;
  space_served_ = space_requests_;
  space_changed_.notify_all();
}

uint64_t VolumeImpl::space_progress() {
  MutexLock lock(space_mutex_);
  return space_progress_;
}

// The committer found no room, in an attempt that it began when space_progress() was `seen`. True:
// try again, something was freed or dropped since then.
bool VolumeImpl::wait_for_space(uint64_t seen) {
  MutexLock lock(space_mutex_);
  if (space_progress_ == seen && !reclaim_stop_) {
    const uint64_t ticket = ++space_requests_;
    reclaim_kicked_ = true;
    space_wake_.notify_all();
    space_waited_for_ = true;
    space_waited_seen_ = seen;
    while (space_served_ < ticket && space_progress_ == seen) space_changed_.wait(lock);
    space_waited_for_ = false;
  }
  return space_progress_ != seen && !store_->failed();
}

Status VolumeImpl::wait_reclaimed() {
  MutexLock lock(space_mutex_);
  while (!reclaim_idle_ || reclaim_kicked_) {
    if (store_->failed()) return store_->failure();
    space_changed_.wait(lock);
  }
  return store_->failed() ? store_->failure() : Status();
}

// ---- Policy ------------------------------------------------------------------------------------

void VolumeImpl::decide_drop(const Uuid& uuid) {
  MutexLock lock(space_mutex_);
  drop_answered_ = true;
  drop_answer_ = uuid;
  reclaim_kicked_ = true;
  space_wake_.notify_all();
}

// The unpinned snapshot with the lowest priority, the oldest among equals; null: none. Under the
// transaction lock.
const Snapshot* VolumeImpl::choose_victim() {
  const Snapshot* victim = nullptr;
  for (const Snapshot* snapshot : store_->snapshots().all()) {
    if (snapshot->state != format::SnapshotState::LIVE || snapshot->pinned() ||
        snapshot->flags & format::kSnapshotIsClone)
      continue;
    if (!victim || snapshot->priority < victim->priority ||
        (snapshot->priority == victim->priority && snapshot->serial < victim->serial))
      victim = snapshot;
  }
  return victim;
}

// `urgent`: a write waits and nothing could be freed.
void VolumeImpl::follow_policy(bool urgent, bool& progressed) {
  const bool low = low_water();
  // A check holds back what is freed: nothing is dropped for its sake. It gives way to a write that
  // waits for space, and otherwise is left to end (check() comes back here then).
  if (urgent && store_->revoke_pins()) {
    progressed = true;
    return;
  }
  if (store_->pinned()) return;
  format::OnFull policy;
  {
    MutexLock lock = store_->lock();
    policy = static_cast<format::OnFull>(store_->superblock().on_full);
  }
  if (low != low_water_told_) {
    low_water_told_ = low;
    {
      // Before the event, as its answer may be quick.
      MutexLock lock(space_mutex_);
      drop_answered_ = false;
      drop_deadline_ms_ = monotonic_ms() + options_.drop_decision_ms;
    }
    emit(low ? VolumeEvent::Kind::LOW_WATER : VolumeEvent::Kind::HIGH_WATER, nullptr,
         low ? "the snapshot store is nearly full" : "the snapshot store has room again");
  }
  if (policy != format::OnFull::DROP_SNAPSHOTS || (!low && !urgent)) return;
  std::optional<Uuid> victim;
  {
    // TypeScript decides, unless its answer is late or a write can't wait.
    MutexLock lock(space_mutex_);
    while (options_.drop_decision_ms > 0 && !drop_answered_ && !urgent && !reclaim_stop_ &&
           monotonic_ms() < drop_deadline_ms_ && !space_waited_for_)
      space_wake_.wait_for(lock, drop_deadline_ms_ - monotonic_ms());
    if (drop_answered_ && !drop_answer_.is_nil()) victim = drop_answer_;
    drop_answered_ = false;
    drop_deadline_ms_ = monotonic_ms() + options_.drop_decision_ms;
  }
  Status status(Code::NOT_FOUND, "nothing was chosen");
  if (victim) status = delete_snapshot(*victim, true);
  // No answer, or one that is out of date: the core's own choice.
  if (status.code() == Code::NOT_FOUND) status = remove_snapshot(nullptr, true);
  progressed = progressed || status.ok();
}

// ---- The pass ----------------------------------------------------------------------------------

bool VolumeImpl::freeable(const Entry& entry, const Entry* before, Status& status) {
  const std::vector<Generation>& live = store_->snapshots().live(entry.key.volume);
  const Generation newest = last_live(live, entry.key.generation);
  if (newest == 0) return true;
  if (before && before->key.same_chunk(entry.key) && before->key.generation >= newest) return true;
  // Whose the newest live snapshot at or below this entry is: this entry's, or an earlier one's.
  Result<std::optional<Entry>> owner =
      store_->index().at_or_after({entry.key.volume, entry.key.chunk, newest});
  if (!owner.ok()) {
    status = owner.take_status();
    return false;
  }
  return owner.value() && owner.value()->key < entry.key;
}

Status VolumeImpl::reclaim_pass() {
  while (true) {
    uint64_t pass = 0;
    Key cursor;
    // Generations [d, next live after d) of the deleted: only entries in there can have become
    // free.
    std::vector<std::pair<Generation, Generation>> ranges;
    {
      MutexLock lock = store_->lock();
      format::Superblock& sb = store_->superblock();
      if (store_->failed()) return store_->failure();
      if (store_->snapshots().deleted_count() == 0) return Status();
      if (sb.reclaim_active) {
        pass = sb.reclaim_pass;
        cursor = {sb.reclaim_cursor.volume, sb.reclaim_cursor.chunk, sb.reclaim_cursor.generation};
      } else {
        pass = sb.delete_serial;
        sb.reclaim_active = 1;
        sb.reclaim_pass = pass;
        sb.reclaim_cursor = {};
      }
      for (const Snapshot* snapshot : store_->snapshots().all()) {
        if (!snapshot->deleted() || snapshot->delete_serial > pass) continue;
        const Generation after =
            next_live(store_->snapshots().live(snapshot->volume), snapshot->generation);
        ranges.push_back({snapshot->generation, after == 0 ? kHeadGeneration : after});
      }
    }
    // A pass that was resumed may have been started for snapshots that are all gone; then it only
    // ends.
    std::sort(ranges.begin(), ranges.end());
    for (size_t i = 1; i < ranges.size(); i++)
      ranges[i].second = std::max(ranges[i].second, ranges[i - 1].second);
    const auto wanted = [&](Generation low, Generation high) {
      // The last range that starts at or below `high` reaches farthest of all before it.
      auto at = std::upper_bound(ranges.begin(), ranges.end(),
                                 std::pair<Generation, Generation>{high, kHeadGeneration});
      return at != ranges.begin() && (at - 1)->second > low;
    };
    std::vector<Entry> scanned;
    while (cursor != kKeyEnd) {
      {
        MutexLock lock(space_mutex_);
        if (reclaim_stop_) return Status();
      }
      scanned.clear();
      Key next;
      const size_t limit = std::min<size_t>(kScanEntries, store_->changes_max());
      CSNAP_TRY(store_->index().scan(cursor, wanted, limit, kScanNodes, scanned, next));
      uint64_t freed = 0;
      CSNAP_TRY(reclaim_batch(scanned, freed));
      cursor = next;
      {
        MutexLock lock = store_->lock();
        format::IndexKey& saved = store_->superblock().reclaim_cursor;
        saved.volume = cursor.volume;
        saved.chunk = cursor.chunk;
        saved.generation = cursor.generation;
      }
      throttle(freed);
    }
    std::vector<Snapshot> gone;
    {
      Result<Store::Transaction> begun =
          store_->begin(Priority::RESERVED, sizeof(format::ReclaimRecord), 0);
      if (!begun.ok()) return begun.take_status();
      Store::Transaction transaction = begun.take();
      format::ReclaimRecord record;
      record.pass = pass;
      record.reserved = 0;
      transaction.batch.add_struct(format::RecordKind::RECLAIM, record);
      CSNAP_TRY(store_->commit(transaction));
      for (const Snapshot* snapshot : store_->snapshots().all())
        if (snapshot->deleted() && snapshot->delete_serial <= pass) gone.push_back(*snapshot);
      store_->apply_reclaimed(pass);
    }
    for (const Snapshot& snapshot : gone)
      emit(VolumeEvent::Kind::SNAPSHOT_RECLAIMED, &snapshot,
           "space of snapshot " + snapshot.name + " returned");
  }
}

Status VolumeImpl::reclaim_batch(const std::vector<Entry>& scanned, uint64_t& freed) {
  if (scanned.empty()) return Status();
  std::vector<BlockNumber> blocks;
  {
    const uint64_t bytes = RecordBatch::entries_bytes(scanned.size());
    Result<Store::Transaction> begun = store_->begin(Priority::RESERVED, bytes, scanned.size());
    if (!begun.ok()) return begun.take_status();
    Store::Transaction transaction = begun.take();
    std::vector<Entry> entries;
    Status status;
    for (size_t i = 0; i < scanned.size() && status.ok(); i++)
      if (freeable(scanned[i], i > 0 ? &scanned[i - 1] : nullptr, status))
        entries.push_back(scanned[i]);
    if (!status.ok()) return status;
    if (entries.empty()) return Status();
    CSNAP_TRY(free_entries(transaction, entries));
    for (const Entry& entry : entries)
      if (entry.location.is_data()) blocks.push_back(entry.location.block());
  }
  // W4: who looked the entries up before they went has finished reading.
  readers_.synchronize();
  for (BlockNumber block : blocks) verified_->clear(block / store_->space_map().chunk_blocks());
  store_->unhold_chunks(blocks);
  freed = blocks.size();
  counters_.chunks_freed.fetch_add(freed, std::memory_order_relaxed);
  return Status();
}

Status VolumeImpl::free_entries(Store::Transaction& transaction,
                                const std::vector<Entry>& entries) {
  transaction.batch.add_entries(format::RecordKind::FREE, entries);
  CSNAP_TRY(store_->commit(transaction));
  Status status = store_->apply_free(entries);
  if (!status.ok()) fail(status, false);
  return status;
}

void VolumeImpl::throttle(uint64_t freed_chunks) {
  if (freed_chunks == 0 || low_water()) return;
  uint64_t rate;
  {
    MutexLock lock = store_->lock();
    rate = store_->superblock().reclaim_rate_bytes;
  }
  if (rate == 0) rate = kDefaultRateBytes;
  const uint64_t wait_ms = freed_chunks * chunk_bytes_ * 1000 / rate;
  if (wait_ms == 0) return;
  MutexLock lock(space_mutex_);
  const uint64_t until = monotonic_ms() + wait_ms;
  while (!reclaim_stop_ && !space_waited_for_ && monotonic_ms() < until)
    space_wake_.wait_for(lock, until - monotonic_ms());
}

}  // namespace csnap
