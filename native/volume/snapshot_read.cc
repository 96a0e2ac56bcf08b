// Reads of a snapshot, without locks: look up; where the origin still holds the chunk, read it and
// look up again, as an overwrite is always preceded by an entry in the index.
//
//  W1  What the index says is in a store chunk is checked against its checksum at the chunk's first
//      read after open; a mismatch is an error, never other content.
//  W4  A store chunk is read inside a reader section, so it is not reused meanwhile.
//
// What RAM can answer is read by the connection's thread itself, the rest by the pool's.
#include <algorithm>
#include <cstring>

#include "base/crc32c.h"
#include "volume/volume_impl.h"

namespace csnap {

Result<std::optional<Entry>> VolumeImpl::lookup(ChunkIndex chunk, Generation generation) {
  const Key key{kOriginVolume, chunk, generation};
  Result<std::optional<Entry>> found = store_->index().at_or_after(key);
  if (found.ok() && found.value() && !found.value()->key.same_chunk(key))
    return std::optional<Entry>();
  if (found.ok() && found.value()) CSNAP_TRY(store_->check_location(*found.value()));
  return found;
}

Result<std::optional<Entry>> VolumeImpl::lookup_for_read(ChunkIndex chunk, Generation generation) {
  Result<std::optional<Entry>> found = store_->index().covering({kOriginVolume, chunk, generation});
  if (found.ok() && found.value()) CSNAP_TRY(store_->check_location(*found.value()));
  return found;
}

Status VolumeImpl::read_snapshot(VolumeView& view, uint64_t offset, uint64_t length, void* data) {
  auto* out = static_cast<std::byte*>(data);
  Status status;
  {
    Sections::Guard guard(readers_);
    for (uint64_t done = 0; done < length && status.ok();) {
      const uint64_t at = offset + done;
      const ChunkIndex chunk = chunk_of(at);
      const uint64_t start = at - chunk * chunk_bytes_;
      const uint64_t now = std::min(length - done, chunk_bytes_ - start);
      status = read_snapshot_piece(view, chunk, start, now, out + done);
      done += now;
    }
  }
  // Last of all: what was read may have been freed, and reused, only if the snapshot is gone.
  if (view.deleted.load()) return Status(Code::SNAPSHOT_DELETED, "the snapshot was deleted");
  return status;
}

Status VolumeImpl::read_snapshot_piece(VolumeView& view, ChunkIndex chunk, uint64_t start,
                                       uint64_t length, std::byte* data) {
  const std::vector<StagedTable::Piece> staged =
      staged_->take(chunk * chunk_bytes_ + start, length, view.generation);
  Result<std::optional<Entry>> found = lookup_for_read(chunk, view.generation);
  if (!found.ok()) return found.take_status();
  if (found.value()) return read_entry(*found.value(), start, length, data);
  CSNAP_TRY(origin_.read(chunk * chunk_bytes_ + start, data, length));
  found = lookup_for_read(chunk, view.generation);
  if (!found.ok()) return found.take_status();
  if (found.value()) return read_entry(*found.value(), start, length, data);
  StagedTable::overlay(staged, data);
  return Status();
}

// What RAM alone can answer: the index's remembered answers, checked store chunks, the page cache.
// False: nothing is said, an error neither; read_snapshot() finds out.
bool VolumeImpl::read_snapshot_nowait(VolumeView& view, uint64_t offset, uint64_t length,
                                      void* data) {
  auto* out = static_cast<std::byte*>(data);
  Sections::Guard guard(readers_);
  for (uint64_t done = 0; done < length;) {
    const ChunkIndex chunk = chunk_of(offset + done);
    const uint64_t start = offset + done - chunk * chunk_bytes_;
    const uint64_t now = std::min(length - done, chunk_bytes_ - start);
    if (!read_snapshot_piece_nowait(view, chunk, start, now, out + done)) return false;
    done += now;
  }
  return !view.deleted.load();
}

bool VolumeImpl::read_snapshot_piece_nowait(const VolumeView& view, ChunkIndex chunk,
                                            uint64_t start, uint64_t length, std::byte* data) {
  // Before the look-up, as for every read of a snapshot.
  if (staged_->has_any(chunk, chunk)) return false;
  const Key key{kOriginVolume, chunk, view.generation};
  std::optional<Entry> entry;
  if (!store_->index().covering_nowait(key, entry)) return false;
  if (!entry)
    return origin_.read_nowait(chunk * chunk_bytes_ + start, data, length) &&
           store_->index().covering_nowait(key, entry) && !entry;
  if (!store_->check_location(*entry).ok()) return false;
  if (entry->location.kind() == format::LocationKind::ZERO) {
    std::memset(data, 0, length);
    return true;
  }
  if (entry->location.kind() != format::LocationKind::DATA) return false;
  const BlockNumber block = entry->location.block();
  return verified_->test(block / store_->space_map().chunk_blocks()) &&
         store_->device().read_nowait(block * kBlockBytes + start, data, length);
}

Status VolumeImpl::read_entry(const Entry& entry, uint64_t start, uint64_t length,
                              std::byte* data) {
  switch (entry.location.kind()) {
    case format::LocationKind::ZERO:
      std::memset(data, 0, length);
      return Status();
    case format::LocationKind::DATA:
      break;
    default:
      return Status(Code::IO_ERROR, "chunk " + std::to_string(entry.key.chunk) +
                                        " of this snapshot was lost in a crash (W1)");
  }
  const BlockNumber block = entry.location.block();
  const uint64_t run = block / store_->space_map().chunk_blocks();
  if (verified_->test(run)) return store_->device().read(block * kBlockBytes + start, data, length);
  std::vector<std::byte> whole(chunk_bytes_);
  CSNAP_TRY(store_->device().read(block * kBlockBytes, whole.data(), whole.size()));
  if (crc32c(whole.data(), whole.size()) != entry.crc) {
    counters_.checksum_errors.fetch_add(1, std::memory_order_relaxed);
    Status status(Code::CORRUPT, store_->device().name() + ": the stored copy of chunk " +
                                     std::to_string(entry.key.chunk) +
                                     " does not match its checksum");
    emit(VolumeEvent::Kind::CHECKSUM_ERROR, nullptr, status.message());
    return status;
  }
  verified_->set(run);
  std::memcpy(data, whole.data() + start, length);
  return Status();
}

}  // namespace csnap
