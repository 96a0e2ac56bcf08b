// The applier: takes staged content whose exceptions are durable to its place in the origin (the
// "checkpoint" of design section 6). One thread, in rounds: in-place writes in order, one sync of
// the origin, one APPLIED record; then the chunks leave the staged table.
//
//  W2  Only chunks are applied whose copy-out is durable or that are owed to nobody.
//  W8  A chunk leaves the table only after the record that keeps replay from undoing later writes.
#include <algorithm>
#include <cstring>

#include "volume/volume_impl.h"

namespace csnap {

namespace {

constexpr uint64_t kRoundBytes = uint64_t{4} << 20;
constexpr uint64_t kIdleMs = 500;  // staged content waits no longer than about this
constexpr uint64_t kNoSpaceRetryMs = 1000;
constexpr uint64_t kProgressMs = 50;

}  // namespace

void VolumeImpl::wake_applier() {
  MutexLock lock(apply_mutex_);
  apply_kicked_ = true;
  apply_wake_.notify_one();
}

void VolumeImpl::apply_loop() {
  MutexLock lock(apply_mutex_);
  while (true) {
    bool idle = false;
    while (!apply_kicked_ && !apply_stop_ && !idle) idle = !apply_wake_.wait_for(lock, kIdleMs);
    if (apply_stop_) break;
    if (store_->failed()) {
      apply_kicked_ = false;
      apply_done_.notify_all();
      lock.unlock();
      fail_waiting();
      lock.lock();
      if (apply_stop_) break;
      continue;
    }
    const bool all = idle || apply_all_;
    apply_kicked_ = false;
    // Whoever finds the volume's failure out holds the append lock and comes for ours.
    lock.unlock();
    Result<bool> more = apply_round(all || is_staging_pressed());
    if (!more.ok()) note_held(more.status());
    lock.lock();
    apply_rounds_++;
    apply_done_.notify_all();
    // Want of room, in the origin's file system or the journal, holds what is staged; tried again.
    if (!more.ok() && !store_->failed() && !apply_stop_)
      apply_wake_.wait_for(lock, kNoSpaceRetryMs);
    if (!more.ok() || more.value()) apply_kicked_ = true;
  }
}

// Half of what staging may take is taken.
bool VolumeImpl::is_staging_pressed() {
  return staged_->bytes() * 2 >= staged_limit_bytes() ||
         store_->journal_used_bytes() * 4 >= store_->journal_bytes();
}

// One round. True: there was something to apply.
Result<bool> VolumeImpl::apply_round(bool all) {
  std::vector<StagedTable::Content> contents = staged_->applicable(kRoundBytes, all);
  if (contents.empty()) return false;
  // Who saw such a chunk before it was staged, and writes it in place, has left by then; nobody
  // comes after it. Else that write might land on what is applied, behind the table's back.
  writers_.synchronize();
  // Of each generation apart: what is staged above a chunk comes after all of an older generation,
  // but not after all of its own.
  std::map<Generation, Store::Applied> groups;
  Status no_space;
  for (StagedTable::Content& content : contents) {
    Status status = put_in_place(content);
    if (status.code() == Code::NO_SPACE) {
      // It stays; the others need not wait for it.
      no_space = std::move(status);
      content.pieces.clear();
      continue;
    }
    if (!status.ok()) {
      fail(status, false);
      return store_->failure();
    }
    Store::Applied& group = groups[content.generation];
    group.upto = std::max(group.upto, content.last);
    group.chunks.push_back(content.chunk);
  }
  if (no_space.ok() == origin_full_told_) {
    origin_full_told_ = !no_space.ok();
    if (origin_full_told_)
      emit(VolumeEvent::Kind::ORIGIN_FULL, nullptr,
           origin_.name() +
               ": no room for acknowledged writes, which stay in the snapshot "
               "store until there is: make room on its file system",
           Code::NO_SPACE);
  }
  if (groups.empty()) return no_space;
  std::erase_if(contents, [](const StagedTable::Content& one) { return one.pieces.empty(); });
  if (Status status = origin_.sync(); !status.ok()) {
    fail(status, true);
    return store_->failure();
  }
  staged_->set_in_place(contents);
  std::vector<Store::Applied> applied;
  for (auto& [generation, group] : groups) applied.push_back(std::move(group));
  Status status = store_->commit_applied(applied);
  if (status.code() == Code::NO_SPACE) {
    // The tail moves past what is in place, and makes room, unless older writes are still owed.
    status = store_->checkpoint();
    if (status.ok()) status = store_->commit_applied(applied);
    if (status.code() == Code::NO_SPACE) return status;
  }
  if (!status.ok()) {
    fail(status, false);
    return store_->failure();
  }
  size_t promoted = 0;
  const std::vector<ChunkIndex> left = staged_->applied(contents, &promoted);
  counters_.applied.fetch_add(left.size() + promoted, std::memory_order_relaxed);
  if (promoted > 0) {
    MutexLock lock(pending_mutex_);
    pending_wake_.notify_one();
  }
  release_applied(left, Status());
  if (!no_space.ok()) return no_space;
  return true;
}

// Pieces that touch go in one write.
Status VolumeImpl::put_in_place(const StagedTable::Content& content) {
  const std::vector<StagedTable::Piece>& pieces = content.pieces;
  const uint64_t base = content.chunk * chunk_bytes_;
  for (size_t first = 0, end; first < pieces.size(); first = end) {
    const uint64_t start = pieces[first].at;
    uint64_t stop = start + pieces[first].length;
    for (end = first + 1; end < pieces.size() && pieces[end].at == stop; end++)
      stop += pieces[end].length;
    const std::byte* data = pieces[first].data;
    if (end > first + 1) {
      apply_buffer_.resize(chunk_bytes_);
      for (size_t i = first; i < end; i++)
        std::memcpy(apply_buffer_.data() + (pieces[i].at - start), pieces[i].data,
                    pieces[i].length);
      data = apply_buffer_.data();
    }
    CSNAP_TRY(origin_.write(base + start, data, stop - start));
  }
  return Status();
}

// Requests that waited for these chunks to leave the table try again, or fail: where they can't
// leave, what is acknowledged stays in the journal, and what is not need not wait for it.
void VolumeImpl::release_applied(std::span<const ChunkIndex> chunks, const Status& status) {
  release(applying_, chunks, status);
}

// Everything that is staged now and copied out goes to its place. For the checkpoint thread, before
// it moves the tail.
void VolumeImpl::apply_staged() {
  MutexLock lock(apply_mutex_);
  if (!staged_->any() || store_->failed()) return;
  const uint64_t seen = apply_rounds_;
  apply_all_ = true;
  // The round under way may have begun before; the one after it takes all there is up to its size.
  while (apply_rounds_ < seen + 2 && !store_->failed() && !apply_stop_) {
    apply_kicked_ = true;
    apply_wake_.notify_one();
    apply_done_.wait_for(lock, kProgressMs);
  }
  apply_all_ = false;
}

// Waits until nothing is staged, as long as that gets on, and moves the tail. `patiently`: what the
// committer is at gets on, however long a device takes for it.
Status VolumeImpl::drain(bool patiently) {
  constexpr int kIdleMax = 40;
  const Hurry hurry(copy_hurry_);
  {
    MutexLock lock(pending_mutex_);
    pending_wake_.notify_one();
  }
  for (int idle = 0; staged_->any() && !store_->failed() && idle < kIdleMax;) {
    const uint64_t applied = counters_.applied.load();
    const uint64_t owed = staged_->owed_count();
    apply_staged();
    if (counters_.applied.load() > applied || staged_->owed_count() < owed) {
      idle = 0;
      continue;
    }
    if (!patiently || !committing_.load()) idle++;
    MutexLock lock(apply_mutex_);
    apply_done_.wait_for(lock, kProgressMs);
  }
  return store_->checkpoint();
}

// After a failure (W9): who waits for chunks is told.
void VolumeImpl::fail_waiting() {
  std::vector<IoRequest*> ready;
  {
    MutexLock lock(pending_mutex_);
    for (auto& [chunk, requests] : applying_)
      for (IoRequest* request : requests) {
        if (request->status.ok()) request->status = store_->failure();
        if (--request->internal.waits_for == 0) ready.push_back(request);
      }
    applying_.clear();
  }
  for (IoRequest* request : ready) pool_->run([this, request] { resume(*request); });
}

}  // namespace csnap
