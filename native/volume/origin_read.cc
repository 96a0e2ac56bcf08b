// Reads of the origin, and what is allocated in it.
#include <algorithm>

#include "base/is_zero.h"
#include "volume/volume_impl.h"

namespace csnap {

Status VolumeImpl::read_origin(uint64_t offset, uint64_t length, void* data) {
  // Taken first: what is applied and leaves the table meanwhile is in what is read then.
  const std::vector<StagedTable::Piece> staged = staged_->take(offset, length, kHeadGeneration);
  CSNAP_TRY(origin_.read(offset, data, length));
  StagedTable::overlay(staged, static_cast<std::byte*>(data));
  return Status();
}

// What the page cache holds and no staged write changes. False: nothing is said.
bool VolumeImpl::read_origin_nowait(uint64_t offset, uint64_t length, void* data) {
  return !staged_->has_any(chunk_of(offset), chunk_of(offset + length - 1)) &&
         origin_.read_nowait(offset, data, length);
}

// The same without reading it, for who sends it on. What begins with zeros is read all the same: a
// reply says so of zeros instead of sending them.
bool VolumeImpl::lend_origin(IoRequest& request) {
  if (staged_->has_any(chunk_of(request.offset), chunk_of(request.offset + request.length - 1)))
    return false;
  const int file = origin_.cached_file(request.offset, request.length);
  const uint64_t sample = std::min(request.length, kBlockBytes);
  if (file < 0 || !origin_.read(request.offset, request.data, sample).ok() ||
      is_zero(request.data, sample))
    return false;
  request.cached_file = file;
  return true;
}

// With what is staged in generations up to `upto`.
Status VolumeImpl::origin_extents(uint64_t offset, uint64_t length, Generation upto,
                                  size_t max_extents, std::vector<BlockStatusExtent>& out) {
  const uint64_t end = offset + length;
  // Taken first, as for reads. What is staged is data, whatever the origin has there.
  const std::vector<ChunkIndex> staged =
      staged_->find(chunk_of(offset), chunk_of(end - 1) - chunk_of(offset) + 1, 0, upto);
  auto next = staged.begin();
  while (offset < end && out.size() < max_extents) {
    while (next != staged.end() && *next < chunk_of(offset)) ++next;
    const bool is_staged = next != staged.end() && *next == chunk_of(offset);
    uint64_t most = end - offset;
    if (next != staged.end())
      most = std::min(most, (*next + (is_staged ? 1 : 0)) * chunk_bytes_ - offset);
    DeviceExtent extent{most, false};
    if (!is_staged) extent = origin_.extent_at(offset, most);
    CSNAP_ASSERT(extent.length_bytes > 0 && extent.length_bytes <= most);
    out.push_back({extent.length_bytes, extent.hole, extent.hole});
    offset += extent.length_bytes;
  }
  return Status();
}

Status VolumeImpl::block_status(View& view, uint64_t offset, uint64_t length, size_t max_extents,
                                std::vector<BlockStatusExtent>& out) {
  CSNAP_ASSERT(length > 0 && offset + length <= view.size_bytes && max_extents > 0);
  auto& snapshot = static_cast<VolumeView&>(view);
  out.clear();
  if (snapshot.generation == 0)
    return origin_extents(offset, length, kHeadGeneration, max_extents, out);

  // At most this many look-ups a call; the client asks on from where the answer ends.
  constexpr uint64_t kChunksMax = 16384;
  const uint64_t end =
      std::min(offset + length, round_down(offset, chunk_bytes_) + kChunksMax * chunk_bytes_);
  auto add = [&](uint64_t bytes, bool hole, bool zero) {
    if (!out.empty() && out.back().hole == hole && out.back().zero == zero)
      out.back().length += bytes;
    else if (out.size() < max_extents)
      out.push_back({bytes, hole, zero});
    else
      return false;
    return true;
  };
  for (uint64_t at = offset; at < end;) {
    const ChunkIndex chunk = chunk_of(at);
    const uint64_t upto = std::min(end, (chunk + 1) * chunk_bytes_);
    Result<std::optional<Entry>> found = lookup_for_read(chunk, snapshot.generation);
    if (!found.ok()) return found.take_status();
    bool more = true;
    if (found.value()) {
      const bool zero = found.value()->location.kind() == format::LocationKind::ZERO;
      more = add(upto - at, zero, zero);
    } else {
      // Without an entry the origin holds it; but only what a second look-up confirms may be called
      // zero (the origin's hole can have been made after the chunk was copied out).
      std::vector<BlockStatusExtent> extents;
      if (upto <= origin_bytes_)
        CSNAP_TRY(origin_extents(at, upto - at, snapshot.generation, 64, extents));
      found = lookup_for_read(chunk, snapshot.generation);
      if (!found.ok()) return found.take_status();
      uint64_t told = 0;
      if (!found.value())
        for (const BlockStatusExtent& extent : extents) {
          if (!(more = add(extent.length, extent.hole, extent.zero))) break;
          told += extent.length;
        }
      if (more && told < upto - at) more = add(upto - at - told, false, false);
    }
    if (!more) break;
    at = upto;
  }
  if (snapshot.deleted.load()) return Status(Code::SNAPSHOT_DELETED, "the snapshot was deleted");
  return Status();
}

}  // namespace csnap
