// The checkpoint: RAM's state to new places on the device, then the superblock flip. Part of Store.
#include <algorithm>
#include <cstring>

#include "store/store.h"

namespace csnap {

using format::Superblock;

bool Store::wants_checkpoint() {
  MutexLock lock(transaction_);
  if (failed()) return false;
  if (fresh_.size() * 2 >= dirty_limit()) return true;
  MutexLock append(append_);
  const uint64_t used = journal_->used_bytes();
  if (used * 4 < journal_->size_bytes()) return false;
  // What the tail would gain: a staged write may hold it.
  const std::optional<RecordPlace> oldest = oldest_ ? oldest_() : std::nullopt;
  const uint64_t gain = oldest ? oldest->position - superblock_.journal_tail : used;
  return gain * 32 >= journal_->size_bytes() || (gain > 0 && used * 2 >= journal_->size_bytes());
}

// Everything of the next superblock but the roots. All transactions so far are in the state being
// written (R1, R2), so the tail moves to the head, or to the first staged record that is still
// needed (R5).
void Store::fill_superblock(Superblock& next) {
  next = superblock_;
  {
    MutexLock append(append_);
    std::optional<RecordPlace> oldest;
    if (oldest_)
      oldest = oldest_();
    else if (!recovered_.empty())
      oldest = recovered_.front().place;
    next.journal_tail = oldest ? oldest->position : journal_->head();
    next.tail_sequence = oldest ? oldest->sequence : journal_->next_sequence();
    next.state_sequence = journal_->next_sequence() - 1;
    // This superblock follows the sync that makes them durable.
    next.confirmed_sequence = std::max<Sequence>(confirmed_, next.state_sequence);
  }
  next.exception_count = index_->stats().entries;
  next.snapshot_slots = snapshots_->slots();
  next.counter_slots = counters_->slots();
  if (counters_->estimated()) next.state = next.state | format::kStateCountersEstimated;
  // Terms that ended before the tail have no record left (W5: the chain stays bounded).
  std::vector<EpochTermInfo> chain;
  for (size_t i = 0; i < chain_.size(); i++)
    if (i + 1 == chain_.size() || chain_[i + 1].first_sequence > next.tail_sequence)
      chain.push_back(chain_[i]);
  std::memset(next.epochs, 0, sizeof next.epochs);
  next.epoch_count = static_cast<uint32_t>(chain.size());
  for (size_t i = 0; i < chain.size(); i++) {
    next.epochs[i].epoch = chain[i].epoch;
    next.epochs[i].salt = chain[i].salt;
    next.epochs[i].first_sequence = chain[i].first_sequence;
  }
}

Status Store::write_sealed(std::vector<SealedBlock>& blocks) {
  std::sort(blocks.begin(), blocks.end(),
            [](const SealedBlock& a, const SealedBlock& b) { return a.block < b.block; });
  // Neighbours go out in one write.
  constexpr size_t kRunMax = 64;
  std::vector<std::byte> run;
  for (size_t i = 0; i < blocks.size();) {
    const BlockNumber first = blocks[i].block;
    run.clear();
    while (i < blocks.size() && blocks[i].block == first + run.size() / kBlockBytes &&
           run.size() < kRunMax * kBlockBytes) {
      run.insert(run.end(), blocks[i].image->bytes.begin(), blocks[i].image->bytes.end());
      i++;
    }
    CSNAP_TRY(device_.write(first * kBlockBytes, run.data(), run.size()));
  }
  return Status();
}

Status Store::checkpoint(bool clean, const std::function<void(Superblock&)>& edit) {
  MutexLock one(checkpoint_mutex_);
  MutexLock lock(transaction_);
  if (failed()) return failure();
  if (options_.look_only)
    return Status(Code::READ_ONLY, device_.name() + ": the volume is open for looking only");
  const bool idle = journal_used_bytes() == 0 && fresh_.empty() && !index_->stats().dirty_nodes &&
                    !snapshots_->pages().dirty() && !counters_->pages().dirty() &&
                    released_.empty();
  if (idle && !clean && !edit) return Status();
  Status status = write_state(clean, edit, lock);
  if (status.ok()) checkpoint_count_.fetch_add(1, std::memory_order_relaxed);
  return status;
}

Status Store::check_term() {
  if (options_.look_only) return Status();
  Result<SuperblockFound> found = load_superblock(device_);
  if (!found.ok()) return Status();
  const auto epoch_of = [](const Superblock& sb) { return sb.epochs[sb.epoch_count - 1].epoch; };
  const Superblock& there = *found.value().superblock;
  Epoch own;
  {
    MutexLock lock(superblock_mutex_);
    own = epoch_of(written_);
    if (epoch_of(there) <= own ||
        std::memcmp(there.store_uuid, written_.store_uuid, sizeof there.store_uuid) != 0)
      return Status();
  }
  const Epoch newer = epoch_of(there);
  fail(Status(Code::FENCED, device_.name() + ": epoch " + std::to_string(newer) +
                                " has been stamped on the store, and this server has epoch " +
                                std::to_string(own) + ": another server has taken it over"),
       false);
  return failure();
}

Status Store::flip_superblock(Superblock& next, bool& sync_failed) {
  CSNAP_TRY(check_term());
  MutexLock lock(superblock_mutex_);
  if (failed()) return failure();  // R4
  CSNAP_TRY(write_superblock(device_, written_, next, &sync_failed));
  written_ = next;
  sequence_in_use_ = next.sequence;
  return Status();
}

Status Store::write_state(bool clean, const std::function<void(Superblock&)>& edit, MutexLock& lock,
                          bool hold) {
  if (space_map_->free_blocks() < page_blocks_needed())
    return Status(Code::NO_SPACE, device_.name() + ": no room for a checkpoint's metadata");
  // The cut: from here to unlock() nothing changes.
  std::vector<SealedBlock> blocks;
  const IndexRoot root = index_->freeze(blocks);
  while (snapshots_->pages().assign() || counters_->pages().assign() ||
         space_map_->pages().assign()) {
  }
  Superblock next;
  fill_superblock(next);
  next.index.block = root.ref.block;
  next.index.crc = root.ref.crc;
  next.index.level = root.level;
  next.snapshot_table = snapshots_->pages().seal(blocks);
  next.space_counters = counters_->pages().seal(blocks);
  next.space_map = space_map_->pages().seal(blocks);
  next.state = clean ? (next.state | format::kStateClean) : (next.state & ~format::kStateClean);
  if (clean) {
    CSNAP_ASSERT(next.tail_sequence == next.state_sequence + 1);  // nothing is staged
    next.incompat = next.incompat & ~format::kIncompatStaging;
  }
  if (edit) edit(next);
  if (pins_ > 0) {
    pinned_state_.resize(space_map_->block_count());
    space_map_->add_used_to(pinned_state_);
  }
  const uint64_t tail = next.journal_tail;
  std::vector<BlockNumber> released = std::move(released_);
  released_.clear();
  fresh_.clear();
  if (!hold) lock.unlock();

  // Data first, the superblock last (W4: only then may what it no longer refers to be reused).
  Status status = write_sealed(blocks);
  bool sync_failed = false;
  if (status.ok()) {
    status = device_.sync();
    sync_failed = !status.ok();
  }
  if (status.ok()) status = flip_superblock(next, sync_failed);
  if (!hold) lock.lock();
  if (!status.ok()) {
    fail(status, sync_failed);
    return failure();
  }
  if (failed()) return failure();
  index_->frozen_written();
  // What records have changed while the state was written stays as RAM has it.
  superblock_.sequence = next.sequence;
  superblock_.index = next.index;
  superblock_.space_map = next.space_map;
  superblock_.snapshot_table = next.snapshot_table;
  superblock_.space_counters = next.space_counters;
  superblock_.journal_tail = next.journal_tail;
  superblock_.tail_sequence = next.tail_sequence;
  superblock_.state_sequence = next.state_sequence;
  superblock_.state = next.state;
  superblock_.incompat = next.incompat;
  superblock_.epoch_count = next.epoch_count;
  std::memcpy(superblock_.epochs, next.epochs, sizeof next.epochs);
  chain_ = chain_of(next);
  {
    MutexLock append(append_);
    journal_->set_tail(tail);
  }
  checkpoint_record_due_ = true;
  let_go(released, 1, pinned_blocks_);
  return Status();
}

// Held runs become free, but for those that a pinned state refers to. Under the transaction lock.
void Store::let_go(const std::vector<BlockNumber>& blocks, uint64_t run,
                   std::vector<BlockNumber>& pinned) {
  for (BlockNumber block : blocks) {
    if (pins_ > 0 && pinned_state_[block])
      pinned.push_back(block);
    else
      space_map_->unhold(block, run);
  }
}

Result<Superblock> Store::pin_checkpoint() {
  MutexLock one(checkpoint_mutex_);
  MutexLock lock(transaction_);
  if (failed()) return failure();
  // The pin counts before the flip: what is released meanwhile belongs to the pinned state already.
  pins_++;
  Status status = write_state(false, nullptr, lock);
  if (!status.ok()) {
    lock.unlock();
    unpin_checkpoint();
    return status;
  }
  MutexLock written(superblock_mutex_);
  return written_;
}

void Store::unpin_checkpoint() {
  MutexLock lock(transaction_);
  CSNAP_ASSERT(pins_ > 0);
  if (--pins_ > 0) return;
  for (BlockNumber block : pinned_blocks_) space_map_->unhold(block, 1);
  for (BlockNumber block : pinned_chunks_) space_map_->unhold(block, space_map_->chunk_blocks());
  pinned_blocks_.clear();
  pinned_chunks_.clear();
  pinned_state_.clear();
  pins_revoked_ = false;
  unpinned_.notify_all();
}

bool Store::pinned() {
  MutexLock lock(transaction_);
  return pins_ > 0;
}

bool Store::revoke_pins() {
  MutexLock lock(transaction_);
  if (pins_ == 0) return false;
  pins_revoked_ = true;
  while (pins_ > 0) unpinned_.wait(lock);
  return true;
}

}  // namespace csnap
