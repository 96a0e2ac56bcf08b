// The committer: one thread that copies out the chunks which parked writes wait for, in origin
// order and in groups, and makes a group's data and records durable with one sync.
//
//  W2  A group's waiters go on only after that sync; its bits are set only then.
#include <algorithm>
#include <cstring>

#include "base/crc32c.h"
#include "volume/volume_impl.h"

namespace csnap {
namespace {

bool is_all_zero(const std::byte* data, size_t length) {
  // The first word is zero and every byte equals the one 8 before it.
  uint64_t first;
  if (length < sizeof first) return false;
  std::memcpy(&first, data, sizeof first);
  return first == 0 && std::memcmp(data, data + sizeof first, length - sizeof first) == 0;
}

}  // namespace

void VolumeImpl::commit_loop() {
  MutexLock lock(pending_mutex_);
  while (true) {
    while (pending_.empty() && !committer_stop_) pending_wake_.wait(lock);
    if (pending_.empty()) return;
    // An elevator over the origin: on from the last group's end, then from the start.
    auto at = pending_.lower_bound(commit_cursor_);
    if (at == pending_.end()) at = pending_.begin();
    std::vector<ChunkIndex> chunks;
    for (; at != pending_.end() && chunks.size() < options_.group_chunks_max; ++at)
      chunks.push_back(at->first);
    commit_cursor_ = chunks.back() + 1;
    lock.unlock();
    commit_group(chunks);
    lock.lock();
  }
}

// Copies what is needed of `chunks` and releases all their waiters, in as many goes as journal and
// store allow.
void VolumeImpl::commit_group(const std::vector<ChunkIndex>& chunks) {
  std::vector<std::byte> buffer(chunk_bytes_);
  size_t next = 0;
  while (next < chunks.size()) {
    if (store_->failed()) {
      release_waiters({chunks.begin() + static_cast<ptrdiff_t>(next), chunks.end()},
                      store_->failure());
      return;
    }
    const uint64_t progress = space_progress();
    std::shared_ptr<GenerationState> state;
    {
      // Under the lock no snapshot is at its barrier: a chunk that this state calls owed is written
      // by nobody, not even by a writer that came in under the former state and is still at it.
      MutexLock lock = store_->lock();
      state = generation_state();
    }
    const size_t limit = std::min<uint64_t>(chunks.size(), next + store_->changes_max());
    std::vector<CopyOut> group;
    std::vector<ChunkIndex> done;
    Status status;
    bool full = false;
    size_t taken = next;
    for (; taken < limit && status.ok() && !full; taken++) {
      const ChunkIndex chunk = chunks[taken];
      const Generation newest = state->newest_live.load();
      if (newest != 0 && !state->copied_bits.test(chunk)) {
        Result<std::optional<Entry>> found = lookup(chunk, newest);
        if (!found.ok()) {
          fail(found.status(), false);
          status = store_->failure();
          break;
        }
        if (!found.value()) {
          CopyOut copy;
          status = copy_out(chunk, buffer, copy);
          full = status.code() == Code::NO_SPACE && !copy.held;
          if (full) {
            status = Status();
            break;
          }
          if (!status.ok()) {
            // This chunk's waiters get the error; the others go on.
            release_waiters({chunk}, status);
            status = Status();
            continue;
          }
          group.push_back(copy);
        } else {
          state->copied_bits.set(chunk);
        }
      }
      done.push_back(chunk);
    }
    if (status.ok() && !group.empty()) status = record_group(group, *state);
    for (const CopyOut& copy : group)
      if (copy.held) store_->abandon_chunk(copy.entry.location.block());
    if (status.code() == Code::NO_SPACE) {
      full = true;
      status = Status();
      // Nothing was recorded: all of this round is still to do.
      taken = next;
      done.clear();
    }
    release_waiters(done, status);
    look_at_water();
    next = taken;
    if (!status.ok()) {
      release_waiters({chunks.begin() + static_cast<ptrdiff_t>(next), chunks.end()}, status);
      return;
    }
    if (full && next < chunks.size() && !wait_for_space(progress)) {
      if (store_->failed()) continue;  // no lack of space, then
      const Status why(Code::NO_SPACE,
                       store_->device().name() + ": the snapshot store is full; delete snapshots");
      emit(VolumeEvent::Kind::STORE_FULL, nullptr, why.message());
      release_waiters({chunks.begin() + static_cast<ptrdiff_t>(next), chunks.end()}, why);
      return;
    }
  }
}

// Reads a chunk's content and puts it into the store, not yet recorded. NO_SPACE with copy.held
// false: the store has no room.
Status VolumeImpl::copy_out(ChunkIndex chunk, std::vector<std::byte>& buffer, CopyOut& copy) {
  const uint64_t length = chunk_length(chunk);
  CSNAP_TRY(origin_.read(chunk * chunk_bytes_, buffer.data(), length));
  std::memset(buffer.data() + length, 0, chunk_bytes_ - length);
  copy.entry.key = {kOriginVolume, chunk, 0};  // the generation is set when it is recorded
  if (is_all_zero(buffer.data(), buffer.size())) {
    copy.entry.location = Location::of(format::LocationKind::ZERO);
    copy.entry.crc = 0;
    return Status();
  }
  Result<BlockNumber> block = store_->allocate_chunk();
  if (!block.ok()) return block.take_status();
  copy.entry.location = Location::data(block.value());
  copy.entry.crc = crc32c(buffer.data(), buffer.size());
  copy.held = true;
  Status status = store_->device().write(block.value() * kBlockBytes, buffer.data(), buffer.size());
  if (status.ok()) return status;
  store_->abandon_chunk(block.value());
  copy.held = false;
  if (status.code() == Code::FENCED) return status;  // F2
  return Status(Code::IO_ERROR, status.message(), status.error_number());
}

// Records a group's exceptions, keyed by the generation as the journal knows it: content that was
// read while its chunk was owed, and is owed still to a snapshot of then, is content of every
// snapshot up to now.
Status VolumeImpl::record_group(std::vector<CopyOut>& group, GenerationState& state) {
  const uint64_t bytes = RecordBatch::entries_bytes(group.size());
  Result<Store::Transaction> begun = store_->begin(Priority::DATA, bytes, group.size());
  if (!begun.ok()) return begun.take_status();
  Store::Transaction transaction = begun.take();
  const Generation generation = store_->superblock().generation - 1;
  // Of the snapshots that were live when the content was read (W7): where the chunk is owed to none
  // of them any more it may have been overwritten since, and younger snapshots must not get what
  // was read. And an entry that nobody holds must not be made, as the reclaimer may be past it.
  const Generation newest =
      last_live(store_->snapshots().live(kOriginVolume), state.generation - 1);

  std::vector<CopyOut*> wanted;
  std::vector<Entry> entries;
  for (CopyOut& copy : group) {
    copy.entry.key.generation = generation;
    if (newest == 0) continue;
    Result<std::optional<Entry>> there = lookup(copy.entry.key.chunk, newest);
    if (!there.ok()) {
      fail(there.status(), false);
      return store_->failure();
    }
    if (there.value()) continue;
    wanted.push_back(&copy);
    entries.push_back(copy.entry);
  }
  if (!entries.empty()) {
    CSNAP_ASSERT(newest <= generation);
    transaction.batch.add_entries(format::RecordKind::EXCEPTION, entries);
    CSNAP_TRY(store_->commit(transaction));
    if (Status status = store_->apply_exceptions(entries); !status.ok()) {
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
  // `state` was read before the look-ups; a newer one starts without these bits.
  for (const Entry& entry : entries) {
    const Generation owed = state.newest_live.load();
    if (owed != 0 && entry.key.generation >= owed) state.copied_bits.set(entry.key.chunk);
  }
  return Status();
}

void VolumeImpl::release_waiters(const std::vector<ChunkIndex>& chunks, const Status& status) {
  std::vector<IoRequest*> ready;
  {
    MutexLock lock(pending_mutex_);
    for (ChunkIndex chunk : chunks) {
      const auto at = pending_.find(chunk);
      if (at == pending_.end()) continue;
      for (IoRequest* request : at->second) {
        if (!status.ok() && request->status.ok()) request->status = status;
        CSNAP_ASSERT(request->internal.waits_for > 0);
        if (--request->internal.waits_for == 0) ready.push_back(request);
      }
      pending_.erase(at);
    }
  }
  for (IoRequest* request : ready) pool_->run([this, request] { resume(*request); });
}

}  // namespace csnap
