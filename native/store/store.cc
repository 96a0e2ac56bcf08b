#include "store/store.h"

#include <algorithm>
#include <cstring>

namespace csnap {

using format::Superblock;

namespace {

uint64_t tag_of(const Superblock& superblock) {
  uint64_t tag;
  std::memcpy(&tag, superblock.store_uuid, sizeof tag);
  return tag;
}

uint64_t block_count_of(const Superblock& superblock) {
  return superblock.store_bytes / kBlockBytes;
}

}  // namespace

std::vector<EpochTermInfo> chain_of(const Superblock& superblock) {
  std::vector<EpochTermInfo> chain;
  for (uint32_t i = 0; i < superblock.epoch_count; i++)
    chain.push_back({superblock.epochs[i].epoch, superblock.epochs[i].salt,
                     superblock.epochs[i].first_sequence});
  return chain;
}

Store::Store(StoreOptions options, const Superblock& superblock)
    : options_(std::move(options)),
      device_(*options_.store),
      superblock_(superblock),
      written_(superblock),
      sequence_in_use_(superblock.sequence),
      chain_(chain_of(superblock)),
      space_map_(std::make_unique<SpaceMap>(*this, block_count_of(superblock),
                                            superblock.chunk_bytes / kBlockBytes)),
      snapshots_(std::make_unique<SnapshotTable>(*this)),
      counters_(std::make_unique<SpaceCounters>(*this)),
      index_(std::make_unique<Index>(*this, options_.index)),
      journal_(std::make_unique<Journal>(device_, superblock.journal_bytes)) {}

Status Store::format(Device& device, Superblock& superblock) {
  StoreOptions options;
  options.store = &device;
  Store store(std::move(options), superblock);
  store.space_map_->format((format::kJournalOffset + superblock.journal_bytes) / kBlockBytes);
  MutexLock lock(store.transaction_);
  std::vector<SealedBlock> blocks;
  while (store.space_map_->pages().assign()) {
  }
  superblock.space_map = store.space_map_->pages().seal(blocks);
  CSNAP_TRY(store.write_sealed(blocks));
  CSNAP_TRY(device.sync());
  return write_first_superblocks(device, superblock);
}

// ---- Transactions ------------------------------------------------------------------------------

uint64_t Store::dirty_limit() const {
  return std::clamp<uint64_t>(space_map_->block_count() / 64, 48, 4096);
}

uint64_t Store::page_blocks_needed() const {
  auto whole = [](const PageArray& pages) { return pages.page_count() + pages.directory_blocks(); };
  return whole(space_map_->pages()) + whole(snapshots_->pages()) + whole(counters_->pages()) + 4;
}

uint64_t Store::reserve_blocks() const { return 3 * dirty_limit() + 2 * page_blocks_needed(); }

uint64_t Store::available_blocks() const {
  const uint64_t free = space_map_->free_blocks();
  const uint64_t reserve = reserve_blocks();
  return free > reserve ? free - reserve : 0;
}

// What an append leaves of the journal to others. The last of it is for exceptions that staged
// writes owe: with the oldest of them recorded and applied, the tail moves past as much as that
// took.
uint64_t Store::journal_reserve(Priority priority) const {
  const uint64_t size = journal_->size_bytes();
  switch (priority) {
    case Priority::DATA:
    case Priority::COPY:
      return std::max(size / 4, 6 * kBlockBytes);
    case Priority::RESERVED:
      return std::max(size / 8, 4 * kBlockBytes);
    case Priority::APPLIED:
      return std::max(size / 16, 2 * kBlockBytes);
    case Priority::STAGED:
      break;
  }
  return 0;
}

uint64_t Store::changes_max() {
  // Half of the limit: the index may grow before the caller begins, and somebody else's changes may
  // come in between.
  uint64_t changes = 1;
  while (changes < 4096 && index_->blocks_needed(changes * 2) <= dirty_limit() / 2) changes *= 2;
  return changes;
}

Result<Store::Transaction> Store::begin(Priority priority, uint64_t record_bytes,
                                        uint64_t index_changes) {
  const uint64_t append_bytes =
      round_up(record_bytes + 2 * sizeof(format::RecordHeader) + sizeof(format::CheckpointRecord) +
                   format::kRecordAlignBytes,
               journal_->append_unit_bytes());
  const bool is_data = priority == Priority::DATA || priority == Priority::COPY;
  for (int full = 0, attempt = 0;; attempt++) {
    bool journal_full = false;
    {
      MutexLock lock(transaction_);
      if (failed()) return failure();
      if (options_.look_only)
        return Status(Code::READ_ONLY, device_.name() + ": the volume is open for looking only");
      reserve_ = reserve_blocks();
      const uint64_t needed = index_changes == 0 ? 0 : index_->blocks_needed(index_changes);
      const uint64_t free = space_map_->free_blocks();
      // What is staged between here and the append leaves half of the journal (R6).
      CSNAP_ASSERT(append_bytes * 4 <= journal_->size_bytes());
      bool journal_fits;
      {
        MutexLock append(append_);
        journal_fits = journal_->fits(append_bytes, journal_reserve(priority));
        if (journal_fits) promised_bytes_ = append_bytes;
      }
      const bool dirty_fits = fresh_.empty() || fresh_.size() + needed <= dirty_limit();
      const bool space_fits =
          free >= needed + page_blocks_needed() && (!is_data || free >= reserve_blocks());
      if (journal_fits && dirty_fits && space_fits) {
        Transaction transaction{MutexLock(), std::move(lock), RecordBatch()};
        if (checkpoint_record_due_) {
          format::CheckpointRecord record;
          record.superblock_sequence = superblock_.sequence;
          record.tail_sequence = superblock_.tail_sequence;
          transaction.batch.add_struct(format::RecordKind::CHECKPOINT, record);
        }
        return transaction;
      }
      if (!space_fits) full++;
      journal_full = !journal_fits;
    }
    // Only space that checkpoints don't bring back means full. (A second one in a row can still
    // help: the first frees what the one before had held.) Where journal or dirty blocks are in the
    // way, others have used up meanwhile what the checkpoint made: their work got on, try again.
    if (full == 4 || attempt == 1000)
      return Status(Code::NO_SPACE,
                    device_.name() +
                        ": the snapshot store is full; delete snapshots or give it a "
                        "larger store");
    if (journal_full && attempt > 0 && (priority == Priority::COPY || priority == Priority::STAGED))
      return Status(Code::WOULD_BLOCK, device_.name() + ": the journal is full of staged writes");
    // The committer, whose priorities the others are, can't wait for itself.
    const bool waits = priority == Priority::DATA || priority == Priority::RESERVED;
    if (journal_full && relieve_) relieve_(waits);
    CSNAP_TRY(checkpoint());
  }
}

Result<Store::Transaction> Store::begin_checkpointed(uint64_t index_changes) {
  // What is dirty by now is not this one's.
  CSNAP_TRY(checkpoint());
  Transaction transaction;
  transaction.checkpoint = MutexLock(checkpoint_mutex_);
  transaction.lock = MutexLock(transaction_);
  if (failed()) return failure();
  if (space_map_->free_blocks() < index_->blocks_needed(index_changes) + page_blocks_needed())
    return Status(Code::NO_SPACE, device_.name() + ": no room for metadata");
  return transaction;
}

Status Store::finish(Transaction& transaction) {
  if (!transaction.checkpoint.owns_lock()) return Status();
  return write_state(false, nullptr, transaction.lock, true);
}

Status Store::commit(Transaction& transaction, const std::function<void()>& appended) {
  CSNAP_ASSERT(transaction.lock.owns_lock());
  if (failed()) return failure();
  CSNAP_ASSERT(!appended || !transaction.checkpoint.owns_lock());
  if (transaction.checkpoint.owns_lock()) return Status();
  Result<Sequence> last = append(transaction.batch);
  if (!last.ok()) return last.take_status();
  if (appended) appended();
  CSNAP_TRY(confirm(last.value()));
  checkpoint_record_due_ = false;
  return Status();
}

Result<Sequence> Store::append(RecordBatch& batch) {
  MutexLock lock(append_);
  promised_bytes_ = 0;
  Result<Sequence> last = journal_->append(batch, confirmed_, sequence_in_use_);
  if (last.ok()) return last;
  lock.unlock();
  fail(last.status(), false);
  return failure();
}

// Syncs: all records up to `upto`, which is appended, are then on stable storage.
Status Store::confirm(Sequence upto) {
  if (Status status = device_.sync(); !status.ok()) {
    fail(status, true);
    return failure();
  }
  // W9: somebody else's failure meanwhile; nothing is acknowledged any more.
  if (failed()) return failure();
  MutexLock lock(append_);
  confirmed_ = std::max(confirmed_, upto);
  return Status();
}

// ---- Staged writes -----------------------------------------------------------------------------

Status Store::append_staged(RecordBatch& batch, std::vector<RecordPlace>& places) {
  if (failed()) return failure();
  const uint64_t bytes = journal_->append_bytes(batch);
  if (!journal_->fits(bytes, journal_->size_bytes() / 2))
    return Status(Code::WOULD_BLOCK, device_.name() + ": the journal is half full");
  const size_t count = batch.record_count();
  Result<Sequence> last = journal_->append(batch, confirmed_, sequence_in_use_);
  if (!last.ok()) {
    fail(last.status(), false);
    return failure();
  }
  places.clear();
  for (size_t i = 0; i < count; i++)
    places.push_back({journal_->head() - bytes + batch.offset(i), last.value() - (count - 1) + i});
  return Status();
}

Status Store::sync_journal() {
  Sequence upto;
  {
    MutexLock lock(append_);
    upto = journal_->next_sequence() - 1;
    if (upto <= confirmed_) return failed() ? failure() : Status();
  }
  return confirm(upto);
}

Status Store::commit_applied(std::span<const Applied> groups) {
  RecordBatch batch;
  for (const Applied& group : groups) {
    std::byte* payload =
        batch.add(format::RecordKind::APPLIED,
                  sizeof(format::AppliedRecord) + group.chunks.size() * sizeof(le64));
    format::AppliedRecord record;
    record.sequence = group.upto;
    record.volume = kOriginVolume;
    record.count = static_cast<uint32_t>(group.chunks.size());
    std::memcpy(payload, &record, sizeof record);
    payload += sizeof record;
    for (const ChunkIndex chunk : group.chunks) {
      const le64 disk = chunk;
      std::memcpy(payload, &disk, sizeof disk);
      payload += sizeof disk;
    }
  }
  if (failed()) return failure();
  Result<Sequence> last = Sequence{0};
  {
    MutexLock lock(append_);
    if (!journal_->fits(journal_->append_bytes(batch),
                        std::max(promised_bytes_, journal_reserve(Priority::APPLIED))))
      return Status(Code::NO_SPACE, device_.name() + ": the journal is full");
    last = journal_->append(batch, confirmed_, sequence_in_use_);
  }
  if (!last.ok()) {
    fail(last.status(), false);
    return failure();
  }
  return confirm(last.value());
}

bool Store::chain_is_long() {
  MutexLock lock(transaction_);
  return chain_.size() + 4 > format::kEpochChainMax;
}

uint64_t Store::journal_used_bytes() {
  MutexLock lock(append_);
  return journal_->used_bytes();
}

// ---- Applying ----------------------------------------------------------------------------------

Status Store::check_location(const Entry& entry) const {
  const auto kind = entry.location.kind();
  const bool sane =
      entry.location == Location::of(format::LocationKind::ZERO) ||
      entry.location == Location::of(format::LocationKind::LOST) ||
      (kind == format::LocationKind::DATA && entry.location.raw != 0 &&
       entry.location.raw % space_map_->chunk_blocks() == 0 &&
       entry.location.raw * kBlockBytes >= format::kJournalOffset + superblock_.journal_bytes &&
       entry.location.raw + space_map_->chunk_blocks() <= space_map_->block_count());
  if (sane) return Status();
  return Status(Code::CORRUPT, device_.name() + ": the exception of chunk " +
                                   std::to_string(entry.key.chunk) + " points outside the store");
}

namespace {

// Who holds an entry with this key whose predecessor in the chunk has generation `previous`.
Holders holders_of(const SnapshotTable& table, const Key& key, Generation previous) {
  const std::vector<Generation>& live = table.live(key.volume);
  const Generation first = next_live(live, previous);
  const Generation last = last_live(live, key.generation);
  if (first == 0 || last == 0 || first > last) return {key.volume, 0, 0};
  return {key.volume, first, last};
}

}  // namespace

Status Store::apply_exceptions(const std::vector<Entry>& entries) {
  for (const Entry& entry : entries) {
    CSNAP_TRY(index_->insert(entry));
    if (!entry.location.is_data()) continue;
    Result<std::optional<Entry>> former = index_->before(entry.key);
    if (!former.ok()) return former.take_status();
    const bool has_former = former.value() && former.value()->key.same_chunk(entry.key);
    const Generation previous = has_former ? former.value()->key.generation : 0;
    space_map_->use_held(entry.location.block(), space_map_->chunk_blocks());
    counters_->add(holders_of(*snapshots_, entry.key, previous), 1);
  }
  return Status();
}

Status Store::apply_free(const std::vector<Entry>& entries) {
  for (const Entry& entry : entries) {
    bool erased = false;
    CSNAP_TRY(index_->erase(entry.key, erased));
    CSNAP_ASSERT(erased);
    if (!entry.location.is_data()) continue;
    CSNAP_TRY(check_location(entry));
    if (!space_map_->is_used(entry.location.block()))
      return Status(Code::CORRUPT, device_.name() + ": block " +
                                       std::to_string(entry.location.block()) + " is freed twice");
    space_map_->free_held(entry.location.block(), space_map_->chunk_blocks());
    counters_->add({entry.key.volume, 0, 0}, -1);
  }
  return Status();
}

void Store::apply_snapshot(const Snapshot& snapshot) {
  if (snapshot.volume == kOriginVolume && snapshot.generation >= superblock_.generation)
    superblock_.generation = snapshot.generation + 1;
  if (snapshot.serial > superblock_.snapshot_serial) superblock_.snapshot_serial = snapshot.serial;
  snapshots_->put(snapshot);
}

void Store::apply_delete(const UuidBytes& uuid, bool dropped, uint64_t delete_serial) {
  const Snapshot* found = snapshots_->find(uuid);
  CSNAP_ASSERT(found && found->live());
  CSNAP_RULE(W5, delete_serial > superblock_.delete_serial);
  Snapshot snapshot = *found;
  const std::vector<Generation>& live = snapshots_->live(snapshot.volume);
  counters_->snapshot_deleted(snapshot.volume, snapshot.generation,
                              last_live(live, snapshot.generation - 1),
                              next_live(live, snapshot.generation));
  snapshot.state = dropped ? format::SnapshotState::DROPPED : format::SnapshotState::DELETED;
  snapshot.delete_serial = delete_serial;
  superblock_.delete_serial = delete_serial;
  snapshots_->put(snapshot);
}

void Store::apply_reclaimed(uint64_t pass) {
  std::vector<UuidBytes> gone;
  for (const Snapshot* snapshot : snapshots_->all())
    if (snapshot->deleted() && snapshot->delete_serial <= pass) gone.push_back(snapshot->uuid);
  for (const UuidBytes& uuid : gone) snapshots_->erase(uuid);
  superblock_.reclaim_active = 0;
  superblock_.reclaim_cursor = {};
}

bool Store::may_follow(const format::Hold& hold) const {
  static const format::Hold kNone{};
  const auto none = [&](const format::Hold& one) {
    return std::memcmp(&one, &kNone, sizeof one) == 0;
  };
  return none(hold) || none(superblock_.hold);
}

void Store::apply_hold(const format::Hold& hold) {
  CSNAP_ASSERT(sane_hold(hold) && may_follow(hold));
  superblock_.hold = hold;
}

// ---- Space -------------------------------------------------------------------------------------

Result<BlockNumber> Store::allocate_chunk() {
  std::optional<BlockNumber> block = space_map_->allocate_chunk(reserve_.load());
  if (!block) return Status(Code::NO_SPACE, device_.name() + ": the snapshot store is full");
  return *block;
}

void Store::unhold_chunks(const std::vector<BlockNumber>& blocks) {
  MutexLock lock(transaction_);
  let_go(blocks, space_map_->chunk_blocks(), pinned_chunks_);
}

BlockNumber Store::allocate() {
  std::optional<BlockNumber> block = space_map_->allocate_block();
  CSNAP_ASSERT(block.has_value());  // begin() has made sure
  fresh_.insert(*block);
  return *block;
}

void Store::release(BlockNumber block) {
  if (!space_map_->is_used(block)) {
    fail(Status(Code::CORRUPT,
                device_.name() + ": block " + std::to_string(block) + " is in use but marked free"),
         false);
    return;
  }
  if (fresh_.erase(block)) {
    space_map_->free_now(block);
    return;
  }
  space_map_->free_held(block, 1);
  released_.push_back(block);
}

Status Store::read(BlockRef ref, format::BlockKind kind, uint8_t level, BlockImage& image) {
  if (ref.block * kBlockBytes < format::kJournalOffset + superblock_.journal_bytes ||
      ref.block >= space_map_->block_count())
    return Status(Code::CORRUPT, device_.name() + ": metadata points to block " +
                                     std::to_string(ref.block) + ", which is none");
  CSNAP_TRY(device_.read(ref.block * kBlockBytes, image.bytes.data(), image.bytes.size()));
  Status status = validate_block(image, ref, kind, level, sequence_in_use_, tag_of(superblock_));
  if (!status.ok()) return Status(status.code(), device_.name() + ": " + status.message());
  return status;
}

uint32_t Store::seal(BlockNumber block, BlockImage& image) {
  return seal_block(image, block, sequence_in_use_ + 1, tag_of(superblock_));
}

// ---- Failure -----------------------------------------------------------------------------------

Status Store::failure() {
  MutexLock lock(failure_mutex_);
  return failure_.ok() ? Status(Code::FAILED, "the volume has failed") : failure_;
}

void Store::fail(const Status& why, bool sync_failed) {
  {
    MutexLock lock(failure_mutex_);
    if (!failure_.ok()) return;
    const bool fenced = why.code() == Code::FENCED;
    failure_ = Status(fenced ? Code::FENCED : Code::FAILED, why.message(), why.error_number());
    // F2: no device has failed, and the store is another server's by now.
    if (fenced) sync_failed = false;
    failed_.store(true, std::memory_order_release);
  }
  if (sync_failed && !options_.look_only) {
    // W9: leave a mark where the device still takes it. The state stays that of the superblock in
    // use, so that nothing half done becomes valid.
    MutexLock lock(superblock_mutex_);
    Superblock marked = written_;
    marked.state = marked.state | format::kStateSyncFailed;
    if (write_superblock(device_, written_, marked).ok()) written_ = marked;
  }
  if (options_.on_failed) options_.on_failed(why);
}

}  // namespace csnap
