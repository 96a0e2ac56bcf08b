#include "store/recovery.h"

#include <algorithm>
#include <cstring>

#include "base/crc32c.h"

namespace csnap {

using format::RecordKind;
using format::Superblock;

Result<std::unique_ptr<Store>> Store::open(StoreOptions options, SuperblockFound found) {
  std::unique_ptr<Store> store(new Store(std::move(options), *found.superblock));
  Recovery recovery(*store, found);
  Status status = recovery.run();
  if (status.ok()) return store;
  if (recovery.sync_failed()) store->fail(status, true);
  return status;
}

Status Recovery::sync(Device& device) {
  Status status = device.sync();
  if (!status.ok()) sync_failed_ = true;
  return status;
}

// What a killed server left in the page cache must be on the medium before anything is built on it:
// the superblock that was found (the stamp goes over the other slot, the last one that is sure to
// be there), and the entries that are verified below (W1).
Status Recovery::secure_former_term() {
  CSNAP_TRY(sync(store_.device_));
  // A term in mode sync vouches for all that was ever acknowledged (W8); what one in mode flush
  // left unsynced must be safe before that mode is written down.
  const Superblock& sb = store_.superblock_;
  const bool was_flush = sb.durability_mode == static_cast<uint8_t>(format::DurabilityMode::FLUSH);
  if (sb.state & format::kStateClean || !was_flush || !store_.options_.origin ||
      store_.options_.durability != format::DurabilityMode::SYNC)
    return Status();
  return sync(*store_.options_.origin);
}

// F3, W5: a grant older than the store was overtaken between grant and open; nothing is written.
Status Recovery::check_granted_epoch() {
  const Epoch granted = store_.options_.epoch;
  if (granted == 0 || granted > store_.epoch()) return Status();
  return Status(Code::FENCED, store_.device_.name() + ": epoch " + std::to_string(granted) +
                                  " was granted, but the store is at epoch " +
                                  std::to_string(store_.epoch()) +
                                  ": another server was faster, start again");
}

Status Recovery::run() {
  const Superblock& sb = store_.superblock_;
  store_.recovery_.was_clean = sb.state & format::kStateClean;
  if ((sb.state & format::kStateSyncFailed) && !store_.options_.accept_loss &&
      !store_.options_.look_only)
    return Status(
        Code::NEEDS_ACCEPT_LOSS,
        store_.device_.name() +
            ": a sync failed when this volume was last served, acknowledged writes may be "
            "lost; serve it with --accept-loss to go on with what is there");
  if (!store_.options_.look_only) CSNAP_TRY(check_granted_epoch());
  MutexLock lock(store_.transaction_);
  CSNAP_TRY(load_state());
  CSNAP_TRY(read_journal());
  if (!store_.options_.look_only) {
    CSNAP_TRY(secure_former_term());
    CSNAP_TRY(stamp());
  }
  CSNAP_TRY(apply_net_changes());
  CSNAP_TRY(delete_incomplete());
  CSNAP_TRY(verify_unconfirmed());
  store_.confirmed_ = end_.next_sequence - 1;
  store_.reserve_ = store_.reserve_blocks();
  if (store_.options_.look_only) return Status();
  if (!checkpoint_due_) CSNAP_TRY(write_findings());
  if (checkpoint_due_) {
    // The new state itself says what was found. Nothing was appended before it, so a crash here
    // leaves this term without records, and the next stamp drops it from the chain.
    lock.unlock();
    CSNAP_TRY(store_.checkpoint(false, [](Superblock&) {}));
    lock.lock();
  }
  for (BlockNumber block : quarantine_)
    store_.space_map_->unhold(block, store_.space_map_->chunk_blocks());
  return Status();
}

Status Recovery::load_state() {
  const Superblock& sb = store_.superblock_;
  // Pages are in RAM as a whole: sizes must be plausible before memory is taken for them.
  const uint64_t blocks = sb.store_bytes / kBlockBytes;
  if (sb.snapshot_slots > std::min(blocks * format::kSnapshotsPerPage, format::kSnapshotsMax) ||
      sb.counter_slots >
          std::min<uint64_t>(blocks * format::kCountersPerPage, 2 * SpaceCounters::kBucketsMax))
    return Status(Code::CORRUPT, store_.device_.name() + ": the superblock's tables are too large");
  CSNAP_TRY(store_.space_map_->load(sb.space_map));
  CSNAP_TRY(store_.snapshots_->load(sb.snapshot_table, sb.snapshot_slots));
  for (const Snapshot* snapshot : store_.snapshots_->all())
    if (snapshot->generation == 0 || snapshot->generation >= sb.generation)
      return Status(Code::CORRUPT, store_.device_.name() + ": snapshot " + snapshot->name +
                                       " has an impossible generation");
  CSNAP_TRY(store_.counters_->load(sb.space_counters, sb.counter_slots,
                                   sb.state & format::kStateCountersEstimated));
  store_.index_->open({{sb.index.block, sb.index.crc}, sb.index.level}, sb.exception_count);
  return Status();
}

// ---- The new term ------------------------------------------------------------------------------

Status Recovery::stamp() {
  Store& store = store_;
  Superblock& sb = store.superblock_;
  std::vector<EpochTermInfo> chain;
  // Terms without any record need no place in the chain.
  for (size_t i = 0; i < store.chain_.size(); i++) {
    const Sequence next =
        i + 1 < store.chain_.size() ? store.chain_[i + 1].first_sequence : end_.next_sequence;
    if (next > store.chain_[i].first_sequence) chain.push_back(store.chain_[i]);
  }
  if (chain.size() >= format::kEpochChainMax)
    return Status(Code::CORRUPT,
                  store.device_.name() + ": the superblock's epoch chain is overfull");
  checkpoint_due_ = chain.size() + 2 >= format::kEpochChainMax;
  EpochTermInfo term;
  term.epoch = store.epoch() + 1;
  if (store.options_.epoch != 0) term.epoch = store.options_.epoch;
  term.first_sequence = end_.next_sequence;
  const UuidBytes random = store.options_.make_uuid();
  std::memcpy(&term.salt, random.data(), sizeof term.salt);
  chain.push_back(term);

  // Only the term changes (V1): the fields that records have changed are replayed again next time.
  Superblock next = store.written_;
  std::memset(next.epochs, 0, sizeof next.epochs);
  next.epoch_count = static_cast<uint32_t>(chain.size());
  for (size_t i = 0; i < chain.size(); i++) {
    next.epochs[i].epoch = chain[i].epoch;
    next.epochs[i].salt = chain[i].salt;
    next.epochs[i].first_sequence = chain[i].first_sequence;
  }
  const bool clean = next.state & format::kStateClean;
  const bool other_boot = std::memcmp(next.boot_id, store.options_.boot_id.data(), 16) != 0;
  const bool was_flush =
      next.durability_mode == static_cast<uint8_t>(format::DurabilityMode::FLUSH);
  const bool lossy = (!clean && was_flush && other_boot) ||
                     (next.state & format::kStateSyncFailed) || store.options_.accept_origin;
  if (lossy) {
    const UuidBytes id = store.options_.make_uuid();
    std::memcpy(next.durability_id, id.data(), id.size());
  }
  next.state = next.state & ~(format::kStateClean | format::kStateSyncFailed);
  if (store.options_.accept_origin) {
    store.options_.accept_origin(next);
    // Of all that the journal has told, too: RAM's serial, not the written one's.
    next.suspect_serial = sb.snapshot_serial;
  }
  std::memcpy(next.boot_id, store.options_.boot_id.data(), 16);
  next.durability_mode = static_cast<uint8_t>(store.options_.durability);
  next.incompat = next.incompat | format::kIncompatStaging;
  next.state_sequence = state_sequence_;

  for (int slot = 0; slot < 2; slot++) {
    const Superblock former = store.written_;
    CSNAP_TRY(write_superblock(store.device_, former, next, &sync_failed_));
    store.written_ = next;
    store.sequence_in_use_ = next.sequence;
  }
  sb.sequence = next.sequence;
  sb.state = next.state;
  sb.durability_mode = next.durability_mode;
  sb.incompat = next.incompat;
  sb.state_sequence = next.state_sequence;
  sb.suspect_serial = next.suspect_serial;
  sb.origin_kind = next.origin_kind;
  std::memcpy(sb.origin_identity, next.origin_identity, sizeof sb.origin_identity);
  std::memcpy(sb.origin_path, next.origin_path, sizeof sb.origin_path);
  std::memcpy(sb.boot_id, next.boot_id, sizeof sb.boot_id);
  std::memcpy(sb.durability_id, next.durability_id, sizeof sb.durability_id);
  std::memcpy(sb.epochs, next.epochs, sizeof sb.epochs);
  sb.epoch_count = next.epoch_count;
  store.chain_ = chain;
  store.journal_->start_term(term, sb.journal_tail, end_);
  return Status();
}

// ---- The state ---------------------------------------------------------------------------------

Status Recovery::apply_net_changes() {
  Store& store = store_;
  const uint64_t run = store.space_map_->chunk_blocks();
  // Space first, so that index blocks allocated below can't land on a chunk that a record names.
  struct Step {
    Key key;
    std::optional<Entry> old;
  };
  std::vector<Step> steps;
  for (const auto& [key, change] : changes_) {
    Result<std::optional<Entry>> old = store.index_->find(key);
    if (!old.ok()) return old.take_status();
    if (old.value()) CSNAP_TRY(store.check_location(*old.value()));
    steps.push_back({key, old.take()});
  }
  auto contradiction = [&](uint64_t block) {
    return Status(Code::CORRUPT, store.device_.name() +
                                     ": journal and space map disagree about block " +
                                     std::to_string(block));
  };
  std::vector<BlockNumber> freed;
  for (const Step& step : steps) {
    if (!step.old || !step.old->location.is_data()) continue;
    const BlockNumber block = step.old->location.block();
    for (uint64_t i = 0; i < run; i++)
      if (!store.space_map_->is_used(block + i)) return contradiction(block + i);
    store.space_map_->free_held(block, run);
    freed.push_back(block);
  }
  for (BlockNumber block : freed) store.space_map_->unhold(block, run);
  for (const auto& [key, change] : changes_) {
    if (!change.entry || !change.entry->location.is_data()) continue;
    const BlockNumber block = change.entry->location.block();
    for (uint64_t i = 0; i < run; i++)
      if (store.space_map_->is_used(block + i)) return contradiction(block + i);
    store.space_map_->mark_used(block, run);
  }
  auto generation_before = [&](const Key& key, Generation& out) -> Status {
    Result<std::optional<Entry>> former = store.index_->before(key);
    if (!former.ok()) return former.take_status();
    out =
        former.value() && former.value()->key.same_chunk(key) ? former.value()->key.generation : 0;
    return Status();
  };
  auto holders = [&](const Key& key, Generation previous) -> Holders {
    const std::vector<Generation>& live = store.snapshots_->live(key.volume);
    const Generation first = next_live(live, previous);
    const Generation last = last_live(live, key.generation);
    return first == 0 || last == 0 || first > last ? Holders{key.volume, 0, 0}
                                                   : Holders{key.volume, first, last};
  };
  // Counters of entries that go are taken off first, while their predecessors are still there.
  for (const Step& step : steps) {
    if (!step.old || !step.old->location.is_data()) continue;
    Generation previous = 0;
    CSNAP_TRY(generation_before(step.key, previous));
    store.counters_->add(holders(step.key, previous), -1);
  }
  for (const Step& step : steps) {
    const Change& change = changes_[step.key];
    bool erased = false;
    if (store.space_map_->free_blocks() < store.index_->blocks_needed(1))
      return Status(Code::NO_SPACE, store.device_.name() + ": no room to replay the journal");
    if (change.entry)
      CSNAP_TRY(store.index_->insert(*change.entry));
    else if (step.old)
      CSNAP_TRY(store.index_->erase(step.key, erased));
  }
  for (const auto& [key, change] : changes_) {
    if (!change.entry || !change.entry->location.is_data()) continue;
    Generation previous = 0;
    CSNAP_TRY(generation_before(key, previous));
    store.counters_->add(holders(key, previous), 1);
  }
  return Status();
}

Result<uint32_t> Recovery::crc_of(Device& device, uint64_t offset, uint64_t available) {
  std::vector<std::byte> chunk(store_.chunk_bytes());
  CSNAP_TRY(device.read(offset, chunk.data(), std::min<uint64_t>(available, chunk.size())));
  return crc32c(chunk.data(), chunk.size());
}

Status Recovery::verify_unconfirmed() {
  Store& store = store_;
  const uint64_t run = store.space_map_->chunk_blocks();
  for (const auto& [key, change] : changes_) {
    if (change.sequence <= verified_upto_ || !change.entry || !change.entry->location.is_data())
      continue;
    const Entry& entry = *change.entry;
    Result<uint32_t> stored =
        crc_of(store.device_, entry.location.block() * kBlockBytes, store.chunk_bytes());
    if (!stored.ok()) return stored.take_status();
    if (stored.value() == entry.crc) continue;
    Generation previous = 0;
    {
      Result<std::optional<Entry>> former = store.index_->before(key);
      if (!former.ok()) return former.take_status();
      if (former.value() && former.value()->key.same_chunk(key))
        previous = former.value()->key.generation;
    }
    const std::vector<Generation>& live = store.snapshots_->live(key.volume);
    const Generation first = next_live(live, previous);
    const Generation last = last_live(live, key.generation);
    const bool held = first != 0 && last != 0 && first <= last;
    store.counters_->add(held ? Holders{key.volume, first, last} : Holders{key.volume, 0, 0}, -1);
    // The group's sync never returned, so nothing was overwritten on its strength (W2): the origin
    // must still hold the content. If it does not, the content is lost, and that is said, not
    // guessed. What no snapshot holds any more may be lost: with the last one gone, deleted or
    // never completed, writes went in place without waiting for the sync.
    bool dispensable = !held;
    const uint64_t offset = key.chunk * store.chunk_bytes();
    const uint64_t origin_bytes = store.superblock_.origin_bytes;
    if (held && offset < origin_bytes && store.options_.origin) {
      Result<uint32_t> found = crc_of(*store.options_.origin, offset, origin_bytes - offset);
      if (!found.ok()) return found.take_status();
      dispensable = found.value() == entry.crc;
    }
    Entry finding = entry;
    finding.location =
        Location::of(dispensable ? format::LocationKind::ERASED : format::LocationKind::LOST);
    finding.crc = 0;
    bool erased = false;
    if (store.space_map_->free_blocks() < store.index_->blocks_needed(1))
      return Status(Code::NO_SPACE, store.device_.name() + ": no room to replay the journal");
    if (dispensable)
      CSNAP_TRY(store.index_->erase(key, erased));
    else
      CSNAP_TRY(store.index_->insert(finding));
    // Not reusable before the RECOVERED record is durable; write_findings() lets it go.
    store.space_map_->free_held(entry.location.block(), run);
    findings_.push_back(finding);
    (dispensable ? store.recovery_.dropped_entries : store.recovery_.lost_entries)++;
    quarantine_.push_back(entry.location.block());
  }
  return Status();
}

Status Recovery::delete_incomplete() {
  std::vector<UuidBytes> incomplete;
  for (const Snapshot* snapshot : store_.snapshots_->all())
    if (snapshot->state == format::SnapshotState::CREATING) incomplete.push_back(snapshot->uuid);
  for (const UuidBytes& uuid : incomplete) {
    format::DeleteRecord record;
    std::memset(&record, 0, sizeof record);
    std::memcpy(record.uuid, uuid.data(), uuid.size());
    record.delete_serial = store_.superblock_.delete_serial + 1;
    store_.apply_delete(uuid, false, record.delete_serial);
    deletes_.push_back(record);
  }
  return Status();
}

// The verdict comes whole: as long as a RECOVERED record says that more follow, opening again
// verifies the rest once more.
Status Recovery::write_findings() {
  Store& store = store_;
  constexpr size_t kPerRecord = 256;
  RecordBatch batch;
  for (size_t next = 0; next < findings_.size();) {
    const size_t count = std::min(kPerRecord, findings_.size() - next);
    batch.add_entries(RecordKind::RECOVERED, std::span(findings_).subspan(next, count),
                      next + count < findings_.size());
    next += count;
  }
  for (const format::DeleteRecord& record : deletes_) batch.add_struct(RecordKind::DELETE, record);
  if (batch.empty()) return Status();
  if (!store.journal_->fits(store.journal_->append_bytes(batch), 0)) {
    checkpoint_due_ = true;
    return Status();
  }
  Result<Sequence> last = store.journal_->append(batch, end_.confirmed, store.sequence_in_use_);
  if (!last.ok()) return last.take_status();
  CSNAP_TRY(sync(store.device_));
  store.confirmed_ = last.value();
  return Status();
}

}  // namespace csnap
