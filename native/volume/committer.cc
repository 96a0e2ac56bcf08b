// The committer: copies out the chunks that are staged or that parked writes wait for, in origin
// order and in rounds, and makes a round's data and records durable with one sync. While one round
// is recorded a second thread copies the next.
//
//  W2  A round's waiters go on only after that sync; its bits are set only then.
#include <algorithm>
#include <iterator>

#include "volume/volume_impl.h"

namespace csnap {
namespace {

constexpr uint64_t kHeldRetryMs = 1000;
// So long what is staged waits for more that can share its sync.
constexpr uint64_t kGatherMs = 20;
// So many groups staged in that time are a burst.
constexpr uint64_t kBurstGroups = 4;
// So many records at least leave the journal for the two that a group of staged chunks takes.
constexpr uint32_t kPressedGroup = 32;
// A round that is smaller than this part of a full one is not copied ahead: it can share its sync
// with what comes meanwhile.
constexpr size_t kAheadPart = 4;

}  // namespace

void VolumeImpl::commit_loop() {
  MutexLock lock(pending_mutex_);
  while (true) {
    while (pending_.empty() && (staged_->owed_count() == 0 || store_->failed()) && !committer_stop_)
      pending_wake_.wait(lock);
    if (pending_.empty() && !may_copy_staged()) {
      if (committer_stop_) return;
      // What is staged can't be copied out now: the store is full, or doesn't take it.
      pending_wake_.wait_for(lock, kHeldRetryMs);
      continue;
    }
    if (pending_.empty() && !copies_now(0) &&
        (pending_wake_.wait_for(lock, kGatherMs) || (is_burst() && !is_staging_pressed())))
      continue;
    lock.unlock();
    committing_ = true;
    commit_rounds();
    committing_ = false;
    lock.lock();
  }
}

// Under pending_mutex_, the committer only.
bool VolumeImpl::may_copy_staged() {
  return staged_->owed_count() > 0 && !store_->failed() &&
         monotonic_ms() >= copying_held_until_ms_ && !committer_stop_;
}

// Rounds of what is parked and staged together, each copied while the one before is recorded, as
// long as there is enough to do. A round for which there is no room goes the long way.
void VolumeImpl::commit_rounds() {
  CopyRound round;
  choose_chunks(round, nullptr);
  if (round.chunks.empty()) return;
  begin_round(round);
  copy_round(round);
  while (true) {
    bool clean = round.status.ok() && round.placed == round.copies.size() && !store_->failed();
    // The others need not wait for what a device refuses: there may be some at any time.
    if (clean && drop_failed(round)) copying_held_until_ms_ = monotonic_ms() + kHeldRetryMs;
    clean = clean && round.starved.empty();
    CopyRound next;
    if (clean) {
      choose_chunks(next, &round);
      if (next.chunks.size() * kAheadPart >= group_slots_) {
        begin_round(next);
        copy_ahead(next);
      }
      clean = round.copies.empty() || record_round(round).ok();
      await_copied_ahead();
    }
    end_round(round);
    if (!clean) {
      give_up(next);
      commit_slowly(round);
      return;
    }
    release_waiters(round.done, Status());
    look_at_water();
    if (!next.state) return;
    round = std::move(next);
  }
}

// Recorded, as far as it is.
void VolumeImpl::end_round(CopyRound& round) {
  give_up(round);
  // Who waits for a staged chunk waits for the applier now, which looked too early.
  if (staged_->awaited()) wake_applier();
}

// What a round takes, in origin order: the chunks that parked writes wait for, and of what is
// staged as many as still fit, but for half of them at least there is room. None that is `busy`'s.
// An elevator over the origin: on from where the last round ended, then from the start.
void VolumeImpl::choose_chunks(CopyRound& round, const CopyRound* busy) {
  const auto is_busy = [&](ChunkIndex chunk) {
    return busy != nullptr && std::ranges::binary_search(busy->chunks, chunk);
  };
  size_t room = std::min<uint64_t>(store_->changes_max(), group_slots_);
  bool owes = false;
  {
    MutexLock lock(pending_mutex_);
    owes = may_copy_staged();
    const size_t parked = owes ? div_up(room, 2) : room;
    const auto take = [&](Queues::iterator at, Queues::iterator end) {
      for (; at != end && round.parked.size() < parked; ++at)
        if (!is_busy(at->first)) round.parked.push_back(at->first);
    };
    const auto start = pending_.lower_bound(commit_cursor_);
    take(start, pending_.end());
    if (!round.parked.empty()) commit_cursor_ = round.parked.back() + 1;
    take(pending_.begin(), start);
    if (busy != nullptr && round.parked.empty()) owes = owes && copies_now(busy->chunks.size());
  }
  std::ranges::sort(round.parked);
  round.chunks = round.parked;
  room -= round.parked.size();
  if (!owes || room == 0) return;
  const size_t most = room + round.parked.size() + (busy == nullptr ? 0 : busy->chunks.size());
  // The oldest first where the journal's tail waits for them.
  const bool pressed = is_staging_pressed();
  for (const ChunkIndex chunk :
       pressed ? staged_->oldest_owed(most) : staged_->owed_from(staged_cursor_, most)) {
    if (is_busy(chunk) || std::ranges::binary_search(round.parked, chunk)) continue;
    if (room-- == 0) break;
    round.chunks.push_back(chunk);
    if (!pressed) staged_cursor_ = chunk + 1;
  }
  std::ranges::sort(round.chunks);
}

// Again, each kind for itself, with an answer for whatever may be wrong.
void VolumeImpl::commit_slowly(const CopyRound& round) {
  commit_group(round.parked, false);
  std::vector<ChunkIndex> staged;
  std::ranges::set_difference(round.chunks, round.parked, std::back_inserter(staged));
  MutexLock lock(pending_mutex_);
  if (!may_copy_staged()) return;
  lock.unlock();
  if (!commit_group(staged, true)) copying_held_until_ms_ = monotonic_ms() + kHeldRetryMs;
}

// Whether what is staged, but for `busy` chunks of it, is to be copied out now: somebody waits for
// it, or it is enough for a round. The committer only.
bool VolumeImpl::copies_now(size_t busy) {
  return staged_->awaited() || copy_hurry_.load() > 0 ||
         (staged_->owed_count() >= busy + group_slots_ && (is_staging_pressed() || !is_burst()));
}

// Whether chunks are staged faster than they can be copied out: then who copies takes the
// processors from who writes, and might as well do it later. Not so where the same few chunks are
// written again and again: copied out and applied, they cost no journal. The committer only.
bool VolumeImpl::is_burst() {
  const uint64_t now = monotonic_ms();
  if (now >= burst_look_ms_ + kGatherMs) {
    // Ever; what was settled without a copy is missing.
    const uint64_t staged =
        staged_->owed_count() + counters_.copy_outs.load() + counters_.zero_chunks.load();
    const uint64_t fresh = staged - std::min(staged, burst_look_staged_);
    is_burst_ = fresh * kGatherMs >= kBurstGroups * group_slots_ * (now - burst_look_ms_);
    burst_look_ms_ = now;
    burst_look_staged_ = staged;
  }
  return is_burst_;
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

// Copies what is needed of `chunks` and releases all their waiters, in as many rounds as journal
// and store allow. `staged`: they are the staged table's, whose writes are acknowledged: they can't
// fail, only wait; else parked writes wait for them. False: some of those have to, for room or
// since a device failed, and are to be tried again.
bool VolumeImpl::commit_group(std::span<const ChunkIndex> chunks, bool staged) {
  bool held = false;
  while (!chunks.empty()) {
    if (store_->failed()) {
      release_waiters(chunks, store_->failure());
      return true;
    }
    CopyRound round;
    const size_t limit = std::min<uint64_t>(store_->changes_max(), group_slots_);
    const std::span<const ChunkIndex> first = chunks.first(std::min(chunks.size(), limit));
    round.chunks.assign(first.begin(), first.end());
    if (!staged) round.parked = round.chunks;
    begin_round(round);
    copy_round(round);
    Status status = std::move(round.status);
    bool full = false;
    if (status.ok()) {
      full = round.placed < round.copies.size();
      if (full) round.cut_at(round.copies[round.placed].at);
      held = drop_failed(round) || held;
      if (!round.copies.empty()) status = record_round(round);
    }
    end_round(round);
    if (status.code() == Code::WOULD_BLOCK) {
      copy_out_staged();
      apply_staged();
      continue;
    }
    if (status.code() == Code::NO_SPACE) {
      full = true;
      status = Status();
      // Nothing was recorded: all of this round is still to do.
      round.taken = 0;
    }
    release_waiters(round.taken == 0 ? std::span<const ChunkIndex>() : round.done, status);
    look_at_water();
    chunks = chunks.subspan(round.taken);
    if (!status.ok()) {
      release_waiters(chunks, status);
      return true;
    }
    // The reclaimer needs journal that staged writes may hold, and nobody else copies them out.
    if (full && !staged) {
      copy_out_staged();
      apply_staged();
    }
    if (!round.starved.empty()) {
      held = true;
      if (!wait_for_space(round.progress) && !store_->failed()) tell_full(round.starved, true);
    }
    if (full && !chunks.empty() && !wait_for_space(round.progress)) {
      if (store_->failed()) continue;  // no lack of space, then
      tell_full(chunks, staged);
      return !staged;
    }
  }
  return !held;
}

// What is staged could not leave, for now.
void VolumeImpl::note_held(const Status& why) {
  MutexLock lock(pending_mutex_);
  held_why_ = why;
}

// Nothing more can be done for these chunks: the store has no room. What is staged of them waits.
void VolumeImpl::tell_full(std::span<const ChunkIndex> chunks, bool staged) {
  const Status why(Code::NO_SPACE,
                   store_->device().name() + ": the snapshot store is full; delete snapshots");
  emit(VolumeEvent::Kind::STORE_FULL, nullptr,
       why.message() + (staged ? ": acknowledged writes wait in its journal" : ""));
  if (staged) note_held(why);
  release_applied(chunks, why);
  if (!staged) release_waiters(chunks, why);
}

// Takes those out that could not be copied and tells who waits for them. True: one of them is
// staged, stays so, and is to be tried again.
bool VolumeImpl::drop_failed(CopyRound& round) {
  bool held = false;
  const auto failed = [&](const CopyOut& copy) {
    if (copy.status.ok()) return false;
    std::erase(round.done, copy.chunk());
    if (copy.status.code() == Code::NO_SPACE) {
      round.starved.push_back(copy.chunk());
      return true;
    }
    if (staged_->owed({&copy.entry.key.chunk, 1}).front()) {
      emit(VolumeEvent::Kind::COPY_FAILED, nullptr,
           copy.status.message() + ": acknowledged writes wait in the snapshot store");
      note_held(copy.status);
      release_applied({&copy.entry.key.chunk, 1}, copy.status);
      held = true;
    }
    release_waiters({&copy.entry.key.chunk, 1}, copy.status);
    return true;
  };
  std::erase_if(round.copies, failed);
  return held;
}

// The chunks are owed to nobody that what is staged of them could hurt: they may be applied.
void VolumeImpl::settle_staged(std::span<const ChunkIndex> chunks) {
  if (chunks.empty()) return;
  for (const BlockNumber reserved : staged_->set_copied(chunks)) store_->abandon_chunk(reserved);
}

// Records a round's exceptions, keyed by the generation as the journal knows it: content that was
// read while its chunk was owed, and is owed still to a snapshot of then, is content of every
// snapshot up to now.
Status VolumeImpl::record_round(CopyRound& round) {
  GenerationState& state = *round.state;
  const bool staged = round.parked.empty();
  const uint64_t bytes = RecordBatch::entries_bytes(round.copies.size());
  Result<Store::Transaction> begun =
      store_->begin(staged ? Priority::STAGED : Priority::COPY, bytes, round.copies.size());
  if (staged && begun.status().code() == Code::WOULD_BLOCK)
    begun = store_->begin_checkpointed(round.copies.size());
  if (!begun.ok()) return begun.take_status();
  Store::Transaction transaction = begun.take();
  const Generation current = store_->superblock().generation;
  // Of the snapshots that were live when the content was read (W7): where the chunk is owed to none
  // of them any more it may have been overwritten since, and younger snapshots must not get what
  // was read. And an entry that nobody holds must not be made, as the reclaimer may be past it.
  const std::vector<Generation>& live = store_->snapshots().live(kOriginVolume);

  std::vector<CopyOut*> wanted;
  std::vector<Entry> entries;
  const std::vector<std::optional<StagedTable::Owed>> all_owed = staged_->owed(round.chunks);
  for (CopyOut& copy : round.copies) {
    // What is staged of the chunk is content of its own generation's snapshot already.
    const std::optional<StagedTable::Owed>& owed = all_owed[copy.at];
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
  std::vector<ChunkIndex> settled;
  for (const CopyOut& copy : round.copies)
    if (copy.settles) settled.push_back(copy.chunk());
  settle_staged(settled);
  {
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
