// A round of the committer, up to where it can be recorded: which chunks need copying; their old
// content from the origin into the round's buffer, from there to store chunks. Neighbours are read
// and written in one go, and the writes pass the page cache by where the device can do that: nobody
// reads a copy soon. By the committer or, ahead of it, by the copier; never by both at once.
//
//  W2  Nothing here is durable or recorded; record_round() makes it so.
#include <algorithm>
#include <cstring>

#include "base/crc32c.h"
#include "volume/volume_impl.h"

namespace csnap {
namespace {

// Of a chunk of the origin that can't be read, before it counts as lost.
constexpr int kReadTries = 10;
constexpr uint64_t kReadTryMs = 1000;

bool is_all_zero(const std::byte* data, size_t length) {
  // The first word is zero and every byte equals the one 8 before it.
  uint64_t first;
  if (length < sizeof first) return false;
  std::memcpy(&first, data, sizeof first);
  return first == 0 && std::memcmp(data, data + sizeof first, length - sizeof first) == 0;
}

}  // namespace

// What a round has to know before its chunks are copied. The committer only.
void VolumeImpl::begin_round(CopyRound& round) {
  round.progress = space_progress();
  // Under the lock no snapshot is at its barrier: a chunk that this state calls owed is written by
  // nobody, not even by a writer that came in under the former state and is still at it.
  MutexLock lock = store_->lock();
  round.state = generation_state();
  round.live = store_->snapshots().live(kOriginVolume);
  // Here, so that nothing is of a generation that the state knows nothing of (W7).
  round.owed = staged_->owed(round.chunks);
}

// Has the copier copy a round, until await_copied_ahead().
void VolumeImpl::copy_ahead(CopyRound& round) {
  {
    MutexLock lock(ahead_mutex_);
    copying_ahead_ = true;
  }
  copier_->run([this, &round] {
    copy_round(round);
    MutexLock lock(ahead_mutex_);
    copying_ahead_ = false;
    copied_ahead_.notify_one();
  });
}

void VolumeImpl::await_copied_ahead() {
  MutexLock lock(ahead_mutex_);
  while (copying_ahead_) copied_ahead_.wait(lock);
}

void VolumeImpl::copy_round(CopyRound& round) {
  round.status = choose(round);
  if (round.status.ok() && !round.copies.empty()) copy_group(round);
}

// Which of its chunks need copying, and which are done without. Errors: the volume has failed.
Status VolumeImpl::choose(CopyRound& round) {
  GenerationState& state = *round.state;
  std::vector<ChunkIndex> settled;
  for (const ChunkIndex chunk : round.chunks) {
    const Generation newest = state.newest_live.load();
    const bool is_parked = std::ranges::binary_search(round.parked, chunk);
    bool copies = false;
    if (const std::optional<StagedTable::Owed>& owed = round.owed[round.taken]) {
      CSNAP_ASSERT(owed->generation <= state.generation);
      // Owed to those who are older than what is staged, unless they have it: recovery knows only
      // that the chunk was staged.
      const Generation last = last_live(round.live, owed->generation - 1);
      Result<std::optional<Entry>> found = std::optional<Entry>();
      if (newest != 0 && last != 0) found = lookup(chunk, last);
      if (!found.ok()) {
        fail(found.status(), false);
        return store_->failure();
      }
      copies = newest != 0 && last != 0 && !found.value();
      if (!copies) settled.push_back(chunk);
    } else if (is_parked && !staged_->has(chunk) && newest != 0 && !state.copied_bits.test(chunk)) {
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
      CopyOut& copy = round.copies.emplace_back();
      copy.entry.key = {kOriginVolume, chunk, 0};  // the generation is set when it is recorded
      copy.at = round.taken;
    }
    round.done.push_back(chunk);
    round.taken++;
  }
  settle_staged(settled);
  if (!read_failures_.empty())
    for (const ChunkIndex chunk : settled) read_failures_.erase(chunk);
  return Status();
}

void VolumeImpl::copy_group(CopyRound& round) {
  if (round_buffer_ == nullptr) {
    void* memory = std::aligned_alloc(kBlockBytes, group_slots_ * chunk_bytes_);
    CSNAP_ASSERT(memory != nullptr);
    round_buffer_.reset(static_cast<std::byte*>(memory));
  }
  std::vector<CopyOut>& copies = round.copies;
  for (size_t i = 0; i < copies.size(); i++)
    copies[i].content = round_buffer_.get() + i * chunk_bytes_;
  std::vector<std::span<CopyOut>> runs;
  for (size_t first = 0, end; first < copies.size(); first = end) {
    for (end = first + 1; end < copies.size(); end++)
      if (copies[end].chunk() != copies[end - 1].chunk() + 1) break;
    runs.emplace_back(&copies[first], end - first);
  }
  // What is to come from the medium is asked for before the first of it is waited for: a disk does
  // many reads in the time of one.
  for (const std::span<CopyOut> run : runs)
    if (!read_cached(run)) origin_.will_read(run.front().chunk() * chunk_bytes_, length_of(run));
  for (const std::span<CopyOut> run : runs)
    if (!run.front().read) read_copies(run);
  place(round);
  write_copies({copies.data(), round.placed});
}

// Of neighbours, in bytes.
uint64_t VolumeImpl::length_of(std::span<const CopyOut> copies) const {
  return (copies.size() - 1) * chunk_bytes_ + chunk_length(copies.back().chunk());
}

// Neighbours of the origin, if that takes no waiting.
bool VolumeImpl::read_cached(std::span<CopyOut> copies) {
  if (!origin_.read_nowait(copies.front().chunk() * chunk_bytes_, copies.front().content,
                           length_of(copies)))
    return false;
  finish_read(copies);
  return true;
}

void VolumeImpl::finish_read(std::span<CopyOut> copies) {
  // The volume's last chunk may be short.
  const uint64_t last = chunk_length(copies.back().chunk());
  std::memset(copies.back().content + last, 0, chunk_bytes_ - last);
  for (CopyOut& copy : copies) {
    copy.read = true;
    if (!read_failures_.empty()) read_failures_.erase(copy.chunk());
  }
}

// Neighbours of the origin. Where they can't be read together it shows which of them can't be.
void VolumeImpl::read_copies(std::span<CopyOut> copies) {
  Status read = origin_.read(copies.front().chunk() * chunk_bytes_, copies.front().content,
                             length_of(copies));
  if (read.ok()) {
    finish_read(copies);
  } else if (copies.size() > 1) {
    for (CopyOut& copy : copies) read_copies({&copy, 1});
  } else {
    // The first write waits for a better time; one that is acknowledged can't wait for ever.
    CopyOut& copy = copies.front();
    if (read.code() != Code::IO_ERROR || !staged_->has(copy.chunk()) ||
        !is_lost(read_failures_[copy.chunk()])) {
      copy.status = std::move(read);
      return;
    }
    read_failures_.erase(copy.chunk());
    // W1: nobody is left to be told but those who read it.
    emit(VolumeEvent::Kind::CHECKSUM_ERROR, nullptr,
         read.message() + "; the chunk is lost to the snapshots that share it");
    copy.entry.location = Location::of(format::LocationKind::LOST);
  }
}

// Counts a failure, one a second at most: who asks more often learns nothing new.
bool VolumeImpl::is_lost(ReadFailures& failures) {
  const uint64_t now = monotonic_ms();
  if (failures.count > 0 && now < failures.last_ms + kReadTryMs) return false;
  failures = {failures.count + 1, now};
  return failures.count >= kReadTries;
}

// Where the copies go: what is zero nowhere, the rest to store chunks, those that the staged table
// has reserved if there are. Where the store has no room the round ends; of staged chunks who finds
// none is left out with NO_SPACE, and the others, whose room may be reserved, go on.
void VolumeImpl::place(CopyRound& round) {
  std::vector<ChunkIndex> wanting;
  for (CopyOut& copy : round.copies) {
    if (!copy.status.ok() || copy.entry.location.kind() == format::LocationKind::LOST) continue;
    if (is_all_zero(copy.content, chunk_bytes_))
      copy.entry.location = Location::of(format::LocationKind::ZERO);
    else
      wanting.push_back(copy.chunk());
  }
  const std::vector<BlockNumber> reserved = staged_->take_reserved(wanting);
  size_t next = 0;
  for (CopyOut& copy : round.copies) {
    if (next < wanting.size() && wanting[next] == copy.chunk()) {
      BlockNumber block = reserved[next++];
      if (block == 0) {
        Result<BlockNumber> allocated = store_->allocate_chunk();
        if (allocated.ok()) block = allocated.value();
      }
      if (block != 0) {
        copy.held = true;
        copy.entry.location = Location::data(block);
        copy.entry.crc = crc32c(copy.content, chunk_bytes_);
      } else if (round.parked.empty()) {
        copy.status = Status(Code::NO_SPACE, "");
      } else {
        break;
      }
    }
    round.placed++;
  }
  for (; next < wanting.size(); next++)
    if (reserved[next] != 0) give_back(wanting[next], reserved[next]);
}

// To the store chunks, neighbours in one write. Where they can't be written together it shows which
// of them can't be.
void VolumeImpl::write_copies(std::span<CopyOut> copies) {
  const BlockNumber run = store_->space_map().chunk_blocks();
  std::vector<DeviceWrite> writes;
  const CopyOut* former = nullptr;
  for (const CopyOut& copy : copies) {
    if (!copy.held) continue;
    if (former != nullptr && former + 1 == &copy &&
        former->entry.location.block() + run == copy.entry.location.block())
      writes.back().length += chunk_bytes_;
    else
      writes.push_back({copy.entry.location.block() * kBlockBytes, copy.content, chunk_bytes_});
    former = &copy;
  }
  if (writes.empty()) return;
  Status status = store_->device().write_uncached(writes, nullptr);
  if (status.ok()) return;
  if (copies.size() > 1) {
    for (CopyOut& copy : copies) write_copies({&copy, 1});
    return;
  }
  replace_bad_chunk(copies.front());
  // F2: what the gate refused is no error of the store's.
  copies.front().status = status.code() == Code::FENCED
                              ? status
                              : Status(Code::IO_ERROR, status.message(), status.error_number());
}

// The next try is at another place, if there is one: this one may never take a write.
void VolumeImpl::replace_bad_chunk(CopyOut& copy) {
  Result<BlockNumber> other = store_->allocate_chunk();
  if (!other.ok()) return give_up(copy);
  copy.held = false;
  store_->abandon_chunk(copy.entry.location.block());
  give_back(copy.chunk(), other.value());
}

void VolumeImpl::give_up(CopyRound& round) {
  for (CopyOut& copy : round.copies) give_up(copy);
}

void VolumeImpl::give_up(CopyOut& copy) {
  if (std::exchange(copy.held, false)) give_back(copy.chunk(), copy.entry.location.block());
}

// A store chunk that was taken for nothing: back to the staged table, or free.
void VolumeImpl::give_back(ChunkIndex chunk, BlockNumber block) {
  if (!staged_->give_reserved(chunk, block)) store_->abandon_chunk(block);
}

}  // namespace csnap
