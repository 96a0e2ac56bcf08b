// Small writes to chunks that may not be overwritten yet: into the journal and the staged table, so
// that they need not wait for a copy-out (design section 6).
//
//  W2  What is staged goes to the origin by the applier only.
//  W7  Nothing is staged in a generation whose beginning is not in the journal.
//  W8  A staged write is acknowledged only when all the journal before it is written, too: there is
//      one appender.
#include <algorithm>
#include <cstring>

#include "volume/volume_impl.h"

namespace csnap {

namespace {

// Staged pages in RAM, where the volume's settings don't say otherwise.
constexpr uint64_t kStagedBytesDefault = uint64_t{64} << 20;
// What may be owed in copies, through what may be staged.
constexpr uint64_t kOwedFactor = 16;
constexpr uint64_t kAllocatedLookBytes = uint64_t{1} << 30;

}  // namespace

uint64_t VolumeImpl::staged_limit_bytes() const {
  const uint64_t set = staged_limit_.load(std::memory_order_relaxed);
  return set == 0 ? kStagedBytesDefault : set;
}

// Room for a staged write in the origin's file: now the client can be told that its file system is
// full, later nobody could. Errors: the origin's.
Status VolumeImpl::allocate_origin(ChunkIndex chunk, uint64_t start, uint64_t length) {
  if (allocated_->test(chunk)) return Status();
  const uint64_t holes = holes_made_.load();
  const uint64_t base = chunk * chunk_bytes_;
  CSNAP_TRY(origin_.allocate(base + start, length));
  // Far ahead, so that this is asked for few chunks only.
  const DeviceExtent extent =
      origin_.extent_at(base, std::min(kAllocatedLookBytes, origin_bytes_ - base));
  if (extent.hole) return Status();
  const uint64_t end = base + extent.length_bytes;
  const uint64_t count = (end == origin_bytes_ ? div_up(end, chunk_bytes_) : chunk_of(end)) - chunk;
  for (ChunkIndex each = chunk; each < chunk + count; each++) allocated_->set(each);
  if (holes_made_.load() != holes)
    for (ChunkIndex each = chunk; each < chunk + count; each++) allocated_->clear(each);
  return Status();
}

// After a hole may have been made. Who looked before that finds the count changed, who sets its bit
// before that has it cleared.
void VolumeImpl::forget_allocated(uint64_t offset, uint64_t length) {
  holes_made_.fetch_add(1);
  for (ChunkIndex chunk = chunk_of(offset); chunk <= chunk_of(offset + length - 1); chunk++)
    if (allocated_->test(chunk)) allocated_->clear(chunk);
}

std::unique_ptr<VolumeImpl::StagingDesk> VolumeImpl::take_desk() {
  MutexLock lock(desks_mutex_);
  if (desks_.empty()) return std::make_unique<StagingDesk>();
  std::unique_ptr<StagingDesk> desk = std::move(desks_.back());
  desks_.pop_back();
  return desk;
}

void VolumeImpl::leave_desk(std::unique_ptr<StagingDesk> desk) {
  desk->parts.clear();
  desk->planned.clear();
  desk->batch.clear();
  MutexLock lock(desks_mutex_);
  desks_.push_back(std::move(desk));
}

// Whether what is staged has room for more.
bool VolumeImpl::may_stage() {
  return staged_->bytes() < staged_limit_bytes() &&
         staged_->uncopied_count() * chunk_bytes_ < kOwedFactor * staged_limit_bytes();
}

// Inside the writer section of `state`. NO: the write has to wait for its chunks instead, or goes
// in place. Unless YES nothing has happened. Errors: the origin's, NO_SPACE for a hole of it;
// FAILED.
Result<VolumeImpl::Staged> VolumeImpl::stage(const IoRequest& request, GenerationState& state,
                                             uint64_t offset, uint64_t length) {
  if (offset % kSectorBytes != 0 || length % kSectorBytes != 0 || length >= chunk_bytes_)
    return Staged::NO;
  if (!state.open.load(std::memory_order_acquire)) return Staged::LATER;  // W7
  if (!may_stage()) return Staged::NO;
  std::unique_ptr<StagingDesk> desk = take_desk();
  Result<bool> staged = plan(request, state, offset, length, *desk);
  if (staged.ok() && staged.value()) staged = enter(state, *desk);
  leave_desk(std::move(desk));
  if (!staged.ok()) return staged.take_status();
  return staged.value() ? Staged::YES : Staged::NO;
}

// Of writes that came together those that can be staged whole: in one append, where each of its own
// would end in a page of the journal that the next begins. Their progress says which they are.
void VolumeImpl::stage_together(std::span<IoRequest* const> requests) {
  Sections::Guard guard(writers_);
  GenerationState& state = *state_.load();
  if (!state.open.load(std::memory_order_acquire) || !may_stage()) return;  // W7
  std::unique_ptr<StagingDesk> desk = take_desk();
  std::vector<IoRequest*>& planned = desk->planned;
  for (IoRequest* request : requests) {
    const uint64_t offset = request->offset, length = request->length;
    if (offset % kSectorBytes != 0 || length % kSectorBytes != 0 || length == 0) continue;
    // What is longer than the rest of its chunk is left to its own turn, as is what goes in place.
    const ChunkIndex chunk = chunk_of(offset);
    if (length >= chunk_bytes_ || chunk_of(offset + length - 1) != chunk) continue;
    // In mode `sync`, too: who is not known to be copied would have a store chunk reserved.
    if (!staged_->has(chunk) && (state.copied(chunk) || learn_copied(state, chunk, chunk)) &&
        !sync_mode_)
      continue;
    Result<bool> may = plan(*request, state, offset, length, *desk);
    if (may.ok() && may.value()) planned.push_back(request);
  }
  Result<bool> entered = false;
  if (!planned.empty()) entered = enter(state, *desk);
  // Errors: the store has failed, as everybody will see.
  if (entered.ok() && entered.value())
    for (IoRequest* request : planned) request->internal.progress = request->length;
  leave_desk(std::move(desk));
}

// Adds what has to be done for the write to those at the desk. False: it can't be staged; then, and
// with an error, the desk is as before.
Result<bool> VolumeImpl::plan(const IoRequest& request, GenerationState& state, uint64_t offset,
                              uint64_t length, StagingDesk& desk) {
  std::vector<StagingDesk::Part>& parts = desk.parts;
  const size_t before = parts.size();
  const auto* data = static_cast<const std::byte*>(request.data) + (offset - request.offset);
  for (uint64_t done = 0; done < length;) {
    const uint64_t at = offset + done;
    StagingDesk::Part part{chunk_of(at), at % chunk_bytes_, 0, data + done, false, 0};
    part.length = std::min(length - done, chunk_bytes_ - part.start);
    part.copied = state.copied(part.chunk);
    if (Status status = allocate_origin(part.chunk, part.start, part.length); !status.ok()) {
      give_back(desk, before);
      return status;
    }
    StagedTable::Below below = StagedTable::Below::NOTHING;
    if (staged_->has(part.chunk)) below = staged_->below(part.chunk, state.generation);
    // What lies below belongs to a snapshot, whatever this one's chunk looks like when it is gone.
    if (below == StagedTable::Below::OLDER) part.copied = false;
    if (!part.copied && below != StagedTable::Below::SAME) {
      // Its copy-out must not fail for want of space once the write is acknowledged.
      Result<BlockNumber> block = store_->allocate_chunk();
      if (!block.ok()) {
        give_back(desk, before);
        return false;
      }
      part.reserved = block.value();
    }
    parts.push_back(part);
    done += part.length;
  }
  return true;
}

// The store chunks that the parts from there on hold and do not need.
void VolumeImpl::give_back(StagingDesk& desk, size_t from) {
  for (size_t i = from; i < desk.parts.size(); i++)
    if (desk.parts[i].reserved != 0) store_->abandon_chunk(desk.parts[i].reserved);
  desk.parts.resize(from);
}

// All that is at the desk, into the journal and the table. False: nothing of it, nothing has
// happened. Errors: FAILED.
Result<bool> VolumeImpl::enter(GenerationState& state, StagingDesk& desk) {
  std::vector<StagingDesk::Part>& parts = desk.parts;
  for (const StagingDesk::Part& part : parts) {
    format::DataRecord record;
    std::memset(&record, 0, sizeof record);
    record.volume = kOriginVolume;
    record.length_bytes = static_cast<uint32_t>(part.length);
    record.generation = state.generation;
    record.offset = part.chunk * chunk_bytes_ + part.start;
    std::byte* payload = desk.batch.add(format::RecordKind::DATA, sizeof record + part.length);
    std::memcpy(payload, &record, sizeof record);
    std::memcpy(payload + sizeof record, part.data, part.length);
  }

  bool wakes = false;
  {
    MutexLock append = store_->append_lock();
    bool may = true;
    for (const StagingDesk::Part& part : parts) {
      switch (staged_->below(part.chunk, state.generation)) {
        case StagedTable::Below::NOTHING:
          // If it was applied between the look above and here, what it needs is not known any more.
          may = may && (part.copied || part.reserved != 0);
          break;
        case StagedTable::Below::OLDER:
          CSNAP_ASSERT(!part.copied);
          break;
        case StagedTable::Below::SAME:
          break;
        case StagedTable::Below::WAITS:
          may = false;
      }
    }
    Status appended =
        may ? store_->append_staged(desk.batch, desk.places) : Status(Code::WOULD_BLOCK, "not now");
    if (!appended.ok()) {
      append.unlock();
      give_back(desk, 0);
      if (appended.code() != Code::WOULD_BLOCK) return appended;
      return false;
    }
    for (size_t i = 0; i < parts.size(); i++) {
      StagingDesk::Part& part = parts[i];
      const StagedTable::Put put =
          staged_->put(part.chunk, state.generation, part.start, part.data, part.length,
                       desk.places[i], part.copied, part.reserved);
      wakes = wakes || put.owes_first;
      if (put.took_reserved) part.reserved = 0;
    }
  }
  counters_.staged.fetch_add(std::max<size_t>(desk.planned.size(), 1), std::memory_order_relaxed);
  give_back(desk, 0);
  if (wakes) {
    MutexLock lock(pending_mutex_);
    pending_wake_.notify_one();
  }
  if (staged_->bytes() * 2 >= staged_limit_bytes()) wake_applier();
  return true;
}

// What a former term had staged and not applied: served from the table at once, applied behind.
Status VolumeImpl::load_recovered() {
  for (const RecoveredWrite& write : store_->take_recovered()) {
    const uint64_t offset = write.record.offset;
    const ChunkIndex chunk = chunk_of(offset);
    const StagedTable::Below below = staged_->below(chunk, write.record.generation);
    if (write.record.generation > store_->superblock().generation ||
        below == StagedTable::Below::WAITS)
      return Status(Code::CORRUPT, store_->device().name() + ": staged write " +
                                       std::to_string(write.place.sequence) +
                                       " is of an impossible generation");
    BlockNumber reserved = 0;
    if (below != StagedTable::Below::SAME && !options_.look_only) {
      // As when it was staged. Without, its copy-out waits for space.
      Result<BlockNumber> block = store_->allocate_chunk();
      if (block.ok()) reserved = block.value();
    }
    staged_->put(chunk, write.record.generation, offset % chunk_bytes_, write.data.data(),
                 write.data.size(), write.place, false, reserved);
  }
  return Status();
}

}  // namespace csnap
