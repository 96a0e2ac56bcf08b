// The copying of a group: old content from the origin into the group's buffer, from there to store
// chunks. Neighbours are read and written in one go, and the writes pass the page cache by where
// the device can do that: nobody reads a copy soon. Part of the committer.
//
//  W2  Nothing here is durable or recorded; record_group() makes it so.
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

std::byte* VolumeImpl::copy_of(const CopyOut& copy) const {
  return group_buffer_.get() + copy.slot * chunk_bytes_;
}

// `passes_over`: who finds no room is left out with NO_SPACE, and the others, whose room may be
// reserved, go on.
void VolumeImpl::copy_group(CopyGroup& group, bool passes_over) {
  if (group_buffer_ == nullptr) {
    void* memory = std::aligned_alloc(kBlockBytes, group_slots_ * chunk_bytes_);
    CSNAP_ASSERT(memory != nullptr);
    group_buffer_.reset(static_cast<std::byte*>(memory));
  }
  std::vector<CopyOut>& copies = group.copies;
  for (size_t i = 0; i < copies.size(); i++) copies[i].slot = i;
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
  group.placed = 0;
  for (; group.placed < copies.size(); group.placed++) {
    if (place(copies[group.placed])) continue;
    if (!passes_over) break;
    copies[group.placed].status = Status(Code::NO_SPACE, "");
  }
  write_copies({copies.data(), group.placed});
}

// Of neighbours, in bytes.
uint64_t VolumeImpl::length_of(std::span<const CopyOut> copies) const {
  return (copies.size() - 1) * chunk_bytes_ + chunk_length(copies.back().chunk());
}

// Neighbours of the origin, if that takes no waiting.
bool VolumeImpl::read_cached(std::span<CopyOut> copies) {
  if (!origin_.read_nowait(copies.front().chunk() * chunk_bytes_, copy_of(copies.front()),
                           length_of(copies)))
    return false;
  finish_read(copies);
  return true;
}

void VolumeImpl::finish_read(std::span<CopyOut> copies) {
  // The volume's last chunk may be short.
  const uint64_t last = chunk_length(copies.back().chunk());
  std::memset(copy_of(copies.back()) + last, 0, chunk_bytes_ - last);
  for (CopyOut& copy : copies) {
    copy.read = true;
    if (!read_failures_.empty()) read_failures_.erase(copy.chunk());
  }
}

// Neighbours of the origin. Where they can't be read together it shows which of them can't be.
void VolumeImpl::read_copies(std::span<CopyOut> copies) {
  Status read = origin_.read(copies.front().chunk() * chunk_bytes_, copy_of(copies.front()),
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

// Where the copy goes: what is zero nowhere, the rest to a store chunk, one that the staged table
// has reserved if there is. False: the store has no room.
bool VolumeImpl::place(CopyOut& copy) {
  if (!copy.status.ok() || copy.entry.location.kind() == format::LocationKind::LOST) return true;
  const std::byte* data = copy_of(copy);
  if (is_all_zero(data, chunk_bytes_)) {
    copy.entry.location = Location::of(format::LocationKind::ZERO);
    return true;
  }
  BlockNumber block = staged_->take_reserved(copy.chunk());
  if (block == 0) {
    Result<BlockNumber> allocated = store_->allocate_chunk();
    if (!allocated.ok()) return false;
    block = allocated.value();
  }
  copy.held = true;
  copy.entry.location = Location::data(block);
  copy.entry.crc = crc32c(data, chunk_bytes_);
  return true;
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
      writes.push_back({copy.entry.location.block() * kBlockBytes, copy_of(copy), chunk_bytes_});
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
  if (!staged_->give_reserved(copy.chunk(), other.value())) store_->abandon_chunk(other.value());
}

// A store chunk that was taken for nothing: back to the staged table, or free.
void VolumeImpl::give_up(CopyOut& copy) {
  if (!std::exchange(copy.held, false)) return;
  const BlockNumber block = copy.entry.location.block();
  if (!staged_->give_reserved(copy.chunk(), block)) store_->abandon_chunk(block);
}

}  // namespace csnap
