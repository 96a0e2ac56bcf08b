// Reads of the origin, and what is allocated in it.
#include <algorithm>

#include "volume/volume_impl.h"

namespace csnap {

Status VolumeImpl::read_origin(uint64_t offset, uint64_t length, void* data) {
  return origin_.read(offset, data, length);
}

Status VolumeImpl::origin_extents(uint64_t offset, uint64_t length, size_t max_extents,
                                  std::vector<BlockStatusExtent>& out) {
  const uint64_t end = offset + length;
  while (offset < end && out.size() < max_extents) {
    const DeviceExtent extent = origin_.extent_at(offset, end - offset);
    CSNAP_ASSERT(extent.length_bytes > 0 && extent.length_bytes <= end - offset);
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
  if (snapshot.generation == 0) return origin_extents(offset, length, max_extents, out);

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
    Result<std::optional<Entry>> found = lookup(chunk, snapshot.generation);
    if (!found.ok()) return found.take_status();
    bool more = true;
    if (found.value()) {
      const bool zero = found.value()->location.kind() == format::LocationKind::ZERO;
      more = add(upto - at, zero, zero);
    } else {
      // Without an entry the origin holds it; but only what a second look-up confirms may be called
      // zero (the origin's hole can have been made after the chunk was copied out).
      std::vector<BlockStatusExtent> extents;
      if (upto <= origin_bytes_) CSNAP_TRY(origin_extents(at, upto - at, 64, extents));
      found = lookup(chunk, snapshot.generation);
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
