#include "nbd/reply.h"

#include <errno.h>
#include <sys/sendfile.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "base/assert.h"
#include "base/is_zero.h"
#include "base/units.h"

namespace csnap::nbd {
namespace {

Chunk chunk_head(uint64_t cookie, ChunkType type, size_t length, bool done) {
  Chunk head;
  head.magic = kChunkMagic;
  head.flags = done ? kChunkFlagDone : uint16_t{0};
  head.type = static_cast<uint16_t>(type);
  head.cookie = cookie;
  head.length = static_cast<uint32_t>(length);
  return head;
}

}  // namespace

// ---- Building ----------------------------------------------------------------------------------

void Reply::clear() {
  heads_.clear();
  pieces_.clear();
  first_piece_ = 0;
  piece_sent_ = 0;
  bytes_left_ = 0;
  file_ = -1;
}

// The reference is good until the next add().
template <typename Head>
Head& Reply::add(const void* data, size_t data_bytes) {
  const size_t start = heads_.size();
  heads_.resize(start + sizeof(Head));
  pieces_.push_back(
      {static_cast<uint32_t>(start), sizeof(Head), static_cast<const uint8_t*>(data), data_bytes});
  bytes_left_ += sizeof(Head) + data_bytes;
  return *reinterpret_cast<Head*>(heads_.data() + start);
}

void Reply::simple(uint64_t cookie, Error error, const void* data, size_t data_bytes) {
  CSNAP_ASSERT(error == Error::NONE || data_bytes == 0);
  clear();
  auto& head = add<SimpleReply>(data, data_bytes);
  head.magic = kSimpleReplyMagic;
  head.error = static_cast<uint32_t>(error);
  head.cookie = cookie;
}

void Reply::none_chunk(uint64_t cookie) {
  clear();
  add<Chunk>(nullptr, 0) = chunk_head(cookie, ChunkType::NONE, 0, true);
}

void Reply::error_chunk(uint64_t cookie, Error error, std::string_view message) {
  CSNAP_ASSERT(error != Error::NONE);
  clear();
  message = message.substr(0, kMessageBytesMax);
  auto& head = add<ErrorHead>(nullptr, 0);
  head.chunk = chunk_head(cookie, ChunkType::ERROR,
                          sizeof(ErrorHead) - sizeof(Chunk) + message.size(), true);
  head.error = static_cast<uint32_t>(error);
  head.message_bytes = static_cast<uint16_t>(message.size());
  heads_.insert(heads_.end(), message.begin(), message.end());
  pieces_.back().head_bytes += static_cast<uint32_t>(message.size());
  bytes_left_ += message.size();
}

// Cuts the data at multiples of 4 KiB of the export; zero pieces that follow each other make a run.
void Reply::find_runs(uint64_t offset, const uint8_t* data, size_t data_bytes) {
  runs_.clear();
  for (size_t start = 0; start < data_bytes;) {
    const uint64_t boundary = round_up(offset + start + 1, kZeroRunBytes);
    const auto end = static_cast<size_t>(std::min<uint64_t>(data_bytes, boundary - offset));
    const bool zero = is_zero(data + start, end - start);
    if (!runs_.empty() && runs_.back().zero == zero)
      runs_.back().bytes += end - start;
    else
      runs_.push_back({start, end - start, zero});
    start = end;
  }
  if (runs_.size() == 1) return;
  // Zero runs that are too short count as data, as does all that lies beyond the bound.
  size_t kept = 0;
  for (Run run : runs_) {
    run.zero = run.zero && run.bytes >= kZeroRunBytes && kept + 1 < kRunsMax;
    if (kept > 0 && !run.zero && !runs_[kept - 1].zero)
      runs_[kept - 1].bytes += run.bytes;
    else
      runs_[kept++] = run;
  }
  runs_.resize(kept);
}

void Reply::read_chunks(uint64_t cookie, uint64_t offset, const void* data, size_t data_bytes,
                        bool one_chunk) {
  if (data_bytes == 0) return none_chunk(cookie);
  clear();
  const auto* bytes = static_cast<const uint8_t*>(data);
  if (one_chunk)
    runs_.assign(1, {0, data_bytes, is_zero(data, data_bytes)});
  else
    find_runs(offset, bytes, data_bytes);
  CSNAP_ASSERT(runs_.size() <= kRunsMax);
  for (size_t i = 0; i < runs_.size(); i++) {
    const Run& run = runs_[i];
    const bool done = i + 1 == runs_.size();
    if (run.zero) {
      auto& head = add<OffsetHole>(nullptr, 0);
      head.chunk = chunk_head(cookie, ChunkType::OFFSET_HOLE, 12, done);
      head.offset = offset + run.start;
      head.size = static_cast<uint32_t>(run.bytes);
    } else {
      auto& head = add<OffsetData>(bytes + run.start, run.bytes);
      head.chunk = chunk_head(cookie, ChunkType::OFFSET_DATA, 8 + run.bytes, done);
      head.offset = offset + run.start;
    }
  }
}

void Reply::read_file(uint64_t cookie, bool structured, uint64_t offset, int file,
                      size_t data_bytes) {
  CSNAP_ASSERT(data_bytes > 0);
  if (structured) {
    clear();
    auto& head = add<OffsetData>(nullptr, data_bytes);
    head.chunk = chunk_head(cookie, ChunkType::OFFSET_DATA, 8 + data_bytes, true);
    head.offset = offset;
  } else {
    simple(cookie, Error::NONE, nullptr, data_bytes);
  }
  file_ = file;
  file_offset_ = offset;
}

void Reply::block_status(uint64_t cookie, uint32_t context,
                         std::span<const BlockStatusExtent> extents, uint64_t length, bool one) {
  CSNAP_ASSERT(!extents.empty());
  clear();
  add<BlockStatusHead>(nullptr, 0);
  size_t count = 0;
  uint64_t covered = 0;
  uint64_t last_bytes = 0;
  uint32_t last_flags = 0;
  const auto put = [&] {
    Extent extent;
    extent.length = static_cast<uint32_t>(last_bytes);
    extent.flags = last_flags;
    const auto* raw = reinterpret_cast<const uint8_t*>(&extent);
    heads_.insert(heads_.end(), raw, raw + sizeof extent);
    count++;
  };
  for (const BlockStatusExtent& extent : extents) {
    const uint64_t bytes = std::min(extent.length, length - covered);
    if (bytes == 0) continue;  // clients abort on an empty extent
    const uint32_t flags = (extent.hole ? kExtentHole : 0) | (extent.zero ? kExtentZero : 0);
    if (last_bytes > 0 && flags != last_flags) {
      if (one) break;
      put();
      last_bytes = 0;
    }
    last_flags = flags;
    last_bytes += bytes;
    covered += bytes;
  }
  CSNAP_ASSERT(last_bytes > 0);
  put();
  auto& head = *reinterpret_cast<BlockStatusHead*>(heads_.data());
  head.chunk =
      chunk_head(cookie, ChunkType::BLOCK_STATUS, sizeof(be32) + count * sizeof(Extent), true);
  head.context = context;
  pieces_.back().head_bytes = static_cast<uint32_t>(heads_.size());
  bytes_left_ = heads_.size();
}

// ---- Sending -----------------------------------------------------------------------------------

bool Reply::next_in_file(FilePart& part) const {
  if (file_ < 0 || first_piece_ > 0 || piece_sent_ < pieces_[0].head_bytes) return false;
  const size_t done = piece_sent_ - pieces_[0].head_bytes;
  part = {file_, file_offset_ + done, pieces_[0].data_bytes - done};
  return true;
}

size_t Reply::gather(iovec* out, size_t max, bool& file_next) const {
  size_t count = 0;
  file_next = false;
  size_t skip = piece_sent_;
  for (size_t i = first_piece_; i < pieces_.size() && count < max; i++) {
    const Piece& piece = pieces_[i];
    if (skip < piece.head_bytes) {
      auto* head = const_cast<uint8_t*>(heads_.data() + piece.head_start + skip);
      out[count++] = {head, piece.head_bytes - skip};
      skip = 0;
    } else {
      skip -= piece.head_bytes;
    }
    if (piece.data_bytes > skip) {
      file_next = file_ >= 0;
      if (count == max || file_next) break;
      out[count++] = {const_cast<uint8_t*>(piece.data) + skip, piece.data_bytes - skip};
    }
    skip = 0;
  }
  return count;
}

void Reply::sent(uint64_t bytes) {
  CSNAP_ASSERT(bytes <= bytes_left_);
  bytes_left_ -= bytes;
  while (bytes > 0) {
    const Piece& piece = pieces_[first_piece_];
    const uint64_t left = piece.head_bytes + piece.data_bytes - piece_sent_;
    if (bytes < left) {
      piece_sent_ += static_cast<size_t>(bytes);
      return;
    }
    bytes -= left;
    first_piece_++;
    piece_sent_ = 0;
  }
}

void Reply::trim() {
  constexpr size_t kKeptBytes = 1024;
  if (heads_.capacity() <= kKeptBytes && runs_.capacity() <= 64) return;
  clear();
  heads_.shrink_to_fit();
  pieces_.shrink_to_fit();
  runs_.clear();
  runs_.shrink_to_fit();
}

void ReplyQueue::push(Reply& reply) {
  reply.next = nullptr;
  if (last_ != nullptr)
    last_->next = &reply;
  else
    first_ = &reply;
  last_ = &reply;
  count_++;
  bytes_ += reply.bytes_left();
}

Reply* ReplyQueue::pop() {
  Reply* reply = first_;
  CSNAP_ASSERT(reply != nullptr);
  first_ = reply->next;
  if (first_ == nullptr) last_ = nullptr;
  count_--;
  bytes_ -= reply->bytes_left();
  return reply;
}

ReplyQueue::Sent ReplyQueue::send_some(int socket) {
  iovec pieces[kPiecesMax];
  size_t count = 0;
  uint64_t offered = 0;
  if (Reply::FilePart part; first_->next_in_file(part)) return send_file(socket, part);
  bool file_next = false;
  for (const Reply* reply = first_; reply != nullptr && count < kPiecesMax && !file_next;
       reply = reply->next)
    count += reply->gather(pieces + count, kPiecesMax - count, file_next);
  for (size_t i = 0; i < count; i++) offered += pieces[i].iov_len;
  msghdr message = {};
  message.msg_iov = pieces;
  message.msg_iovlen = count;
  ssize_t n;
  const int more = file_next ? MSG_MORE : 0;
  do n = sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL | more);
  while (n < 0 && errno == EINTR);
  if (n < 0) return errno == EAGAIN || errno == EWOULDBLOCK ? Sent::WOULD_BLOCK : Sent::BROKEN;
  auto left = static_cast<uint64_t>(n);
  bytes_ -= left;
  for (Reply* reply = first_; left > 0; reply = reply->next) {
    const uint64_t part = std::min(left, reply->bytes_left());
    reply->sent(part);
    left -= part;
  }
  return static_cast<uint64_t>(n) < offered ? Sent::WOULD_BLOCK : Sent::ALL;
}

// The socket is in non-blocking mode, or this waits.
ReplyQueue::Sent ReplyQueue::send_file(int socket, const Reply::FilePart& part) {
  auto offset = static_cast<off_t>(part.offset);
  ssize_t n;
  do n = sendfile(socket, part.file, &offset, std::min(part.bytes, kFileBytesMax));
  while (n < 0 && errno == EINTR);
  if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return Sent::WOULD_BLOCK;
  if (n == 0) errno = ENODATA;  // the file has become shorter
  // A socket says neither.
  if (n == 0 || (n < 0 && errno == EIO)) return Sent::UNREADABLE;
  if (n < 0) return Sent::BROKEN;
  bytes_ -= static_cast<uint64_t>(n);
  first_->sent(static_cast<uint64_t>(n));
  return Sent::ALL;
}

}  // namespace csnap::nbd
