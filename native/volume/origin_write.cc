// Writes to the origin. A piece whose chunks are all copied and not staged goes in place, inside a
// writer section; else a small one is staged, and a large one parked on its chunks until the
// committer has copied them out (design section 6).
//
//  W2  Nothing is written in place unless, inside the same section, every chunk of it was seen
//  copied.
#include <algorithm>
#include <cstring>

#include "volume/volume_impl.h"

namespace csnap {
namespace {

// Zero and trim requests are worked off in pieces of this many chunks, so that neither the list of
// parked chunks nor a section grows with the request.
constexpr uint64_t kZeroPieceChunks = 256;
constexpr uint64_t kTrimPieceBytes = uint64_t{64} << 20;
constexpr uint64_t kWritePieceBytes = uint64_t{32} << 20;

}  // namespace

// Looks up chunks whose bit is not known; true if all are copied now. The bits go into the state
// that was read before the look-up (design section 7).
bool VolumeImpl::learn_copied(GenerationState& state, ChunkIndex first, ChunkIndex last) {
  for (ChunkIndex chunk = first; chunk <= last; chunk++) {
    const Generation newest = state.newest_live.load(std::memory_order_acquire);
    if (newest == 0) return true;
    if (state.copied_bits.test(chunk)) continue;
    Result<std::optional<Entry>> found = lookup(chunk, newest);
    if (!found.ok()) {
      fail(found.status(), false);
      return false;
    }
    if (!found.value()) return false;
    state.copied_bits.set(chunk);
  }
  return true;
}

VolumeImpl::Attempt VolumeImpl::attempt_write(IoRequest& request) {
  while (request.internal.progress < request.length) {
    if (store_->failed()) return after_write(request, store_->failure());
    const uint64_t offset = request.offset + request.internal.progress;
    uint64_t length = request.length - request.internal.progress;
    uint64_t piece_bytes = kWritePieceBytes;
    if (request.op == IoOp::TRIM) piece_bytes = kTrimPieceBytes;
    if (request.op == IoOp::WRITE_ZEROES) piece_bytes = kZeroPieceChunks * chunk_bytes_;
    // Pieces end at multiples of their size, so that a chunk is never cut in two.
    length = std::min(length, round_down(offset, piece_bytes) + piece_bytes - offset);
    const ChunkIndex first = chunk_of(offset);
    const ChunkIndex last = chunk_of(offset + length - 1);
    Status status;
    bool done = false;
    bool waits_for_open = false;
    std::shared_ptr<GenerationState> park_state;
    {
      Sections::Guard guard(writers_);
      GenerationState& state = *state_.load();
      if (request.op == IoOp::TRIM) {
        status = trim_piece(state, offset, length);
        done = true;
      } else {
        bool in_place = true;
        for (ChunkIndex chunk = first; chunk <= last && in_place; chunk++)
          in_place = state.copied(chunk);
        if (!in_place) in_place = learn_copied(state, first, last);
        // In this order: a chunk is staged before it can be seen copied (T2).
        for (ChunkIndex chunk = first; chunk <= last && in_place; chunk++)
          in_place = !staged_->has(chunk);
        if (request.op == IoOp::WRITE && (!in_place || sync_mode_)) {
          Result<Staged> staged = stage(request, state, offset, length);
          if (!staged.ok()) return after_write(request, staged.status());
          done = staged.value() == Staged::YES;
          waits_for_open = !in_place && staged.value() == Staged::LATER;
        }
        if (!done && in_place) {
          for (ChunkIndex chunk = first; chunk <= last; chunk++)
            CSNAP_RULE(W2, state.copied(chunk));
          status = write_piece(request, state, offset, length);
          done = true;
          request.internal.in_place = true;
          origin_dirty_.store(true, std::memory_order_release);
        }
      }
    }
    if (done) {
      if (!status.ok()) return after_write(request, status);
      request.internal.progress += length;
      continue;
    }
    if (store_->failed()) return after_write(request, store_->failure());
    if (request.fast_zero)
      return after_write(request, Status(Code::NOT_SUPPORTED, "zeroing needs a copy-out first"));
    park_state = generation_state();
    if (waits_for_open ? park_till_open(request, *park_state)
                       : park(request, *park_state, offset, length))
      return Attempt::PARKED;
  }
  return after_write(request, Status());
}

// The in-place I/O, inside a section.
Status VolumeImpl::write_piece(IoRequest& request, GenerationState&, uint64_t offset,
                               uint64_t length) {
  if (request.op == IoOp::WRITE_ZEROES) return zero_piece(request, offset, length);
  const auto* data = static_cast<const std::byte*>(request.data);
  return origin_.write(offset, data + (offset - request.offset), length);
}

Status VolumeImpl::zero_piece(IoRequest& request, uint64_t offset, uint64_t length) {
  Status status = origin_.zero(offset, length,
                               request.no_hole ? ZeroMode::KEEP_ALLOCATED : ZeroMode::ALLOW_HOLE);
  if (!request.no_hole) forget_allocated(offset, length);
  if (status.code() != Code::NOT_SUPPORTED || request.fast_zero) return status;
  static const std::vector<std::byte> zeros(uint64_t{1} << 18);
  for (uint64_t done = 0; done < length;) {
    const uint64_t now = std::min<uint64_t>(zeros.size(), length - done);
    CSNAP_TRY(origin_.write(offset + done, zeros.data(), now));
    done += now;
  }
  return Status();
}

// Chunks that are owed to a snapshot are left alone: a trim is a hint, and copying for it would
// copy the disk.
Status VolumeImpl::trim_piece(GenerationState& state, uint64_t offset, uint64_t length) {
  const uint64_t end = offset + length;
  uint64_t from = offset;
  while (from < end) {
    uint64_t upto = from;
    while (upto < end) {
      const ChunkIndex chunk = chunk_of(upto);
      if (!state.copied(chunk) || staged_->has(chunk)) break;
      upto = std::min(end, (chunk + 1) * chunk_bytes_);
    }
    if (upto > from) {
      Status status = origin_.discard(from, upto - from);
      forget_allocated(from, upto - from);
      if (!status.ok() && status.code() != Code::NOT_SUPPORTED) return status;
    }
    from = std::max(upto, std::min(end, (chunk_of(upto) + 1) * chunk_bytes_));
  }
  return Status();
}

// Puts the request into the queues of all its chunks that are not copied or are staged, in one
// step. False: there is none any more.
bool VolumeImpl::park(IoRequest& request, GenerationState& state, uint64_t offset,
                      uint64_t length) {
  MutexLock lock(pending_mutex_);
  request.internal.waits_for = 0;
  bool applies = false;
  for (ChunkIndex chunk = chunk_of(offset); chunk <= chunk_of(offset + length - 1); chunk++) {
    if (staged_->wait_for(chunk)) {
      applying_[chunk].push_back(&request);
      applies = true;
    } else if (!state.copied(chunk)) {
      pending_[chunk].push_back(&request);
    } else {
      continue;
    }
    request.internal.waits_for++;
  }
  if (request.internal.waits_for == 0) return false;
  counters_.parked.fetch_add(1, std::memory_order_relaxed);
  pending_wake_.notify_one();
  lock.unlock();
  if (applies) wake_applier();
  return true;
}

// Till the record of the snapshot that the request came after is in the journal: that is a matter
// of the writers before it, where its chunk's copy-out would be one of whole rounds. False: it is.
bool VolumeImpl::park_till_open(IoRequest& request, const GenerationState& state) {
  MutexLock lock(pending_mutex_);
  if (state.open.load(std::memory_order_acquire) || store_->failed()) return false;
  opening_.push_back(&request);
  counters_.parked.fetch_add(1, std::memory_order_relaxed);
  return true;
}

// After the generation has been opened, or the volume has failed.
void VolumeImpl::release_opened() {
  std::vector<IoRequest*> ready;
  {
    MutexLock lock(pending_mutex_);
    ready.swap(opening_);
  }
  for (IoRequest* request : ready) pool_->run([this, request] { resume(*request); });
}

// On a pool thread, when the last chunk that a parked request waited for is done.
void VolumeImpl::resume(IoRequest& request) {
  if (!request.status.ok()) {
    finish(request, request.status);
    return;
  }
  if (attempt_write(request) == Attempt::DONE) finish(request, request.status);
}

VolumeImpl::Attempt VolumeImpl::after_write(IoRequest& request, Status status) {
  request.status = std::move(status);
  // W9: what was under way when the volume stopped is not acknowledged.
  if (request.status.ok() && store_->failed()) request.status = store_->failure();
  if (request.status.ok() && (request.fua || sync_mode_)) {
    enqueue_flush(request);
    return Attempt::PARKED;
  }
  return Attempt::DONE;
}

}  // namespace csnap
