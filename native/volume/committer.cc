// The committer: one thread that copies out the chunks that are staged or that parked writes wait
// for, in origin order and in groups, and makes a group's data and records durable with one sync.
//
//  W2  A group's waiters go on only after that sync; its bits are set only then.
#include <algorithm>

#include "volume/volume_impl.h"

namespace csnap {
namespace {

constexpr uint64_t kHeldRetryMs = 1000;
// So long what is staged waits for more that can share its sync.
constexpr uint64_t kGatherMs = 20;
// So many records at least leave the journal for the two that a group of staged chunks takes.
constexpr uint32_t kPressedGroup = 32;

}  // namespace

void VolumeImpl::commit_loop() {
  MutexLock lock(pending_mutex_);
  bool staged_turn = false;
  uint64_t held_until_ms = 0;
  ChunkIndex staged_cursor = 0;
  while (true) {
    while (pending_.empty() && (staged_->owed_count() == 0 || store_->failed()) && !committer_stop_)
      pending_wake_.wait(lock);
    const bool owes = staged_->owed_count() > 0 && !store_->failed() &&
                      monotonic_ms() >= held_until_ms && (!committer_stop_ || committer_drain_);
    if (pending_.empty() && !owes) {
      if (committer_stop_) return;
      // What is staged can't be copied out now: the store is full, or doesn't take it.
      pending_wake_.wait_for(lock, kHeldRetryMs);
      continue;
    }
    if (pending_.empty() && !is_copying_urgent() && pending_wake_.wait_for(lock, kGatherMs))
      continue;
    // An elevator over the origin: on from the last group's end, then from the start. What is
    // staged and what is waited for take turns.
    if (owes && (pending_.empty() || !staged_turn)) {
      staged_turn = true;
      lock.unlock();
      // The oldest first where the journal's tail waits for them.
      const bool pressed = is_staging_pressed();
      const std::vector<ChunkIndex> chunks =
          pressed ? staged_->oldest_owed(std::max(kPressedGroup, options_.group_chunks_max))
                  : staged_->owed_from(staged_cursor, options_.group_chunks_max);
      if (!chunks.empty()) {
        if (!pressed) staged_cursor = chunks.back() + 1;
        if (!commit_group(chunks, true)) held_until_ms = monotonic_ms() + kHeldRetryMs;
      }
      lock.lock();
      continue;
    }
    staged_turn = false;
    auto at = pending_.lower_bound(commit_cursor_);
    if (at == pending_.end()) at = pending_.begin();
    std::vector<ChunkIndex> chunks;
    for (; at != pending_.end() && chunks.size() < options_.group_chunks_max; ++at)
      chunks.push_back(at->first);
    commit_cursor_ = chunks.back() + 1;
    lock.unlock();
    commit_group(chunks, false);
    lock.lock();
  }
}

// Whether what is staged is to be copied out now: enough for a group, or somebody waits for it.
bool VolumeImpl::is_copying_urgent() {
  return committer_stop_ || staged_->owed_count() >= group_slots_ || staged_->awaited() ||
         copy_hurry_.load() > 0;
}

// The journal is too full for a transaction: what is staged has to leave it. For any thread but the
// committer, holding no lock.
void VolumeImpl::relieve_journal() {
  constexpr int kTries = 20;
  constexpr uint64_t kTryMs = 10;
  {
    const Hurry hurry(copy_hurry_);
    MutexLock lock(pending_mutex_);
    const uint64_t before = staged_->owed_count();
    for (int tries = 0; tries < kTries && before > 0 && staged_->owed_count() >= before; tries++) {
      pending_wake_.notify_one();
      copied_.wait_for(lock, kTryMs);
    }
  }
  apply_staged();
}

// All that staged writes owe now, as far as it can be. The committer only, between two groups.
void VolumeImpl::copy_out_staged() {
  for (bool held = false; !held && !store_->failed();) {
    const std::vector<ChunkIndex> chunks = staged_->oldest_owed(kPressedGroup);
    if (chunks.empty()) break;
    held = !commit_group(chunks, true);
  }
}

// Copies what is needed of `chunks` and releases all their waiters, in as many goes as journal and
// store allow. `staged`: they are the staged table's, whose writes are acknowledged: they can't
// fail, only wait. False: some of those have to, for room or since a device failed, and are to be
// tried again.
bool VolumeImpl::commit_group(std::span<const ChunkIndex> chunks, bool staged) {
  bool held = false;
  while (!chunks.empty()) {
    if (store_->failed()) {
      release_waiters(chunks, store_->failure());
      return true;
    }
    const uint64_t progress = space_progress();
    std::shared_ptr<GenerationState> state;
    std::vector<Generation> live;
    {
      // Under the lock no snapshot is at its barrier: a chunk that this state calls owed is written
      // by nobody, not even by a writer that came in under the former state and is still at it.
      MutexLock lock = store_->lock();
      state = generation_state();
      live = store_->snapshots().live(kOriginVolume);
    }
    CopyGroup group;
    const uint64_t limit = std::min<uint64_t>(store_->changes_max(), group_slots_);
    Status status =
        choose(chunks.first(std::min(chunks.size(), limit)), *state, live, staged, group);
    bool full = false;
    if (status.ok() && !group.copies.empty()) {
      copy_group(group, staged);
      full = group.placed < group.copies.size();
      if (full) group.cut_at(group.copies[group.placed].at);
      held = drop_failed(group) || held;
      if (!group.copies.empty()) status = record_group(group.copies, *state, staged);
    }
    for (CopyOut& copy : group.copies) give_up(copy);
    // Who waits for a staged chunk waits for the applier now, which looked too early.
    if (staged_->awaited()) wake_applier();
    if (status.code() == Code::WOULD_BLOCK) {
      copy_out_staged();
      apply_staged();
      continue;
    }
    if (status.code() == Code::NO_SPACE) {
      full = true;
      status = Status();
      // Nothing was recorded: all of this round is still to do.
      group.taken = 0;
    }
    release_waiters(group.taken == 0 ? std::span<const ChunkIndex>() : group.done, status);
    look_at_water();
    chunks = chunks.subspan(group.taken);
    if (!status.ok()) {
      release_waiters(chunks, status);
      return true;
    }
    // The reclaimer needs journal that staged writes may hold, and nobody else copies them out.
    if (full && !staged) {
      copy_out_staged();
      apply_staged();
    }
    if (!group.starved.empty()) {
      held = true;
      if (!wait_for_space(progress) && !store_->failed()) tell_full(group.starved, true);
    }
    if (full && !chunks.empty() && !wait_for_space(progress)) {
      if (store_->failed()) continue;  // no lack of space, then
      tell_full(chunks, staged);
      return !staged;
    }
  }
  return !held;
}

// Nothing more can be done for these chunks: the store has no room. What is staged of them waits.
void VolumeImpl::tell_full(std::span<const ChunkIndex> chunks, bool staged) {
  const Status why(Code::NO_SPACE,
                   store_->device().name() + ": the snapshot store is full; delete snapshots");
  emit(VolumeEvent::Kind::STORE_FULL, nullptr,
       why.message() + (staged ? ": acknowledged writes wait in its journal" : ""));
  release_applied(chunks, why);
  if (!staged) release_waiters(chunks, why);
}

// Which of `chunks` need copying, and which are done without. Errors: the volume has failed.
// `live`: the origin's snapshots, as of `state`.
Status VolumeImpl::choose(std::span<const ChunkIndex> chunks, GenerationState& state,
                          const std::vector<Generation>& live, bool staged, CopyGroup& group) {
  for (const ChunkIndex chunk : chunks) {
    const Generation newest = state.newest_live.load();
    bool copies = false;
    if (const std::optional<StagedTable::Owed> owed = staged_->owed(chunk)) {
      // Staged after a snapshot that this state knows nothing of: the next round's does (W7).
      if (owed->generation > state.generation) break;
      // Owed to those who are older than what is staged, unless they have it: recovery knows only
      // that the chunk was staged.
      const Generation last = last_live(live, owed->generation - 1);
      Result<std::optional<Entry>> found = std::optional<Entry>();
      if (newest != 0 && last != 0) found = lookup(chunk, last);
      if (!found.ok()) {
        fail(found.status(), false);
        return store_->failure();
      }
      copies = newest != 0 && last != 0 && !found.value();
      if (!copies) settle_staged(chunk);
    } else if (!staged && !staged_->has(chunk) && newest != 0 && !state.copied_bits.test(chunk)) {
      // What is staged was copied out: whoever waits finds out that it has to wait for the applier.
      Result<std::optional<Entry>> found = lookup(chunk, newest);
      if (!found.ok()) {
        fail(found.status(), false);
        return store_->failure();
      }
      copies = !found.value();
      if (!copies) state.copied_bits.set(chunk);
    }
    if (copies) {
      CopyOut& copy = group.copies.emplace_back();
      copy.entry.key = {kOriginVolume, chunk, 0};  // the generation is set when it is recorded
      copy.at = group.taken;
    }
    group.done.push_back(chunk);
    group.taken++;
  }
  return Status();
}

// Takes those out that could not be copied and tells who waits for them. True: one of them is
// staged, stays so, and is to be tried again.
bool VolumeImpl::drop_failed(CopyGroup& group) {
  bool held = false;
  const auto failed = [&](const CopyOut& copy) {
    if (copy.status.ok()) return false;
    std::erase(group.done, copy.chunk());
    if (copy.status.code() == Code::NO_SPACE) {
      group.starved.push_back(copy.chunk());
      return true;
    }
    if (staged_->owed(copy.chunk())) {
      emit(VolumeEvent::Kind::STORE_FULL, nullptr, copy.status.message());
      release_applied({&copy.entry.key.chunk, 1}, copy.status);
      held = true;
    }
    release_waiters({&copy.entry.key.chunk, 1}, copy.status);
    return true;
  };
  std::erase_if(group.copies, failed);
  return held;
}

// The chunk is owed to nobody that what is staged of it could hurt: it may be applied.
void VolumeImpl::settle_staged(ChunkIndex chunk) {
  if (const BlockNumber reserved = staged_->set_copied(chunk)) store_->abandon_chunk(reserved);
  read_failures_.erase(chunk);
}

// Records a group's exceptions, keyed by the generation as the journal knows it: content that was
// read while its chunk was owed, and is owed still to a snapshot of then, is content of every
// snapshot up to now.
Status VolumeImpl::record_group(std::vector<CopyOut>& group, GenerationState& state, bool staged) {
  const uint64_t bytes = RecordBatch::entries_bytes(group.size());
  Result<Store::Transaction> begun =
      store_->begin(staged ? Priority::STAGED : Priority::COPY, bytes, group.size());
  if (staged && begun.status().code() == Code::WOULD_BLOCK)
    begun = store_->begin_checkpointed(group.size());
  if (!begun.ok()) return begun.take_status();
  Store::Transaction transaction = begun.take();
  const Generation current = store_->superblock().generation;
  // Of the snapshots that were live when the content was read (W7): where the chunk is owed to none
  // of them any more it may have been overwritten since, and younger snapshots must not get what
  // was read. And an entry that nobody holds must not be made, as the reclaimer may be past it.
  const std::vector<Generation>& live = store_->snapshots().live(kOriginVolume);

  std::vector<CopyOut*> wanted;
  std::vector<Entry> entries;
  for (CopyOut& copy : group) {
    // What is staged of the chunk is content of its own generation's snapshot already.
    const std::optional<StagedTable::Owed> owed = staged_->owed(copy.chunk());
    const Generation upto = owed ? owed->generation : current;
    copy.entry.key.generation = upto - 1;
    // Read under a former generation, its content need not be that of snapshots taken since, unless
    // the chunk turns out to have been owed all along. Then it is copied once more.
    copy.settles = owed && owed->generation <= state.generation;
    const Generation newest = last_live(live, std::min(upto, state.generation) - 1);
    if (newest == 0) continue;
    Result<std::optional<Entry>> there = lookup(copy.chunk(), newest);
    if (!there.ok()) {
      fail(there.status(), false);
      return store_->failure();
    }
    if (there.value()) continue;
    CSNAP_ASSERT(newest <= copy.entry.key.generation);
    copy.settles = owed.has_value();
    wanted.push_back(&copy);
    entries.push_back(copy.entry);
  }
  if (!entries.empty()) {
    transaction.batch.add_entries(format::RecordKind::EXCEPTION, entries);
    CSNAP_TRY(store_->commit(transaction));
    if (Status status = store_->apply_exceptions(entries); !status.ok()) {
      fail(status, false);
      return store_->failure();
    }
    // Till then nobody takes such a chunk for copied, as it is staged.
    if (Status status = store_->finish(transaction); !status.ok()) {
      fail(status, false);
      return store_->failure();
    }
    for (CopyOut* copy : wanted) {
      copy->held = false;
      (copy->entry.location.is_data() ? counters_.copy_outs : counters_.zero_chunks)
          .fetch_add(1, std::memory_order_relaxed);
    }
    counters_.commits.fetch_add(1, std::memory_order_relaxed);
  }
  for (const CopyOut& copy : group) {
    if (!copy.settles) continue;
    settle_staged(copy.chunk());
  }
  if (staged) {
    MutexLock lock(pending_mutex_);
    copied_.notify_all();
  }
  // `state` was read before the look-ups; a newer one starts without these bits.
  for (const Entry& entry : entries) {
    const Generation owed = state.newest_live.load();
    if (owed != 0 && entry.key.generation >= owed) state.copied_bits.set(entry.key.chunk);
  }
  return Status();
}

void VolumeImpl::release_waiters(std::span<const ChunkIndex> chunks, const Status& status) {
  release(pending_, chunks, status);
}

// Takes the chunks out of the queues; who waits for none any more goes on, or fails.
void VolumeImpl::release(Queues& queues, std::span<const ChunkIndex> chunks, const Status& status) {
  std::vector<IoRequest*> ready;
  {
    MutexLock lock(pending_mutex_);
    for (ChunkIndex chunk : chunks) {
      const auto at = queues.find(chunk);
      if (at == queues.end()) continue;
      for (IoRequest* request : at->second) {
        if (!status.ok() && request->status.ok()) request->status = status;
        CSNAP_ASSERT(request->internal.waits_for > 0);
        if (--request->internal.waits_for == 0) ready.push_back(request);
      }
      queues.erase(at);
    }
  }
  for (IoRequest* request : ready) pool_->run([this, request] { resume(*request); });
}

}  // namespace csnap
