// Replies as bytes: what one request is answered with, and the queue of answers on their way to the
// socket. Caller: Connection (its thread only).
//
// Invariants
//  P1  A reply's pieces are sent whole and in order, one reply after the other.
//  P2  Once structured replies are negotiated, a READ is answered by chunks only: read_chunks() or
//      error_chunk(), never simple(). The connection asserts it.
//  P3  Chunks of one reply don't overlap, lie inside the request and cover it; the last one is
//  DONE. P4  Data is not copied: it must stay as it is until the reply has been sent. What lies in
//  a
//      file goes from its page cache to the socket; the file must stay open.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "nbd/wire.h"
#include "volume/volume.h"

namespace csnap::nbd {

class Reply {
 public:
  // Each builds the whole reply, replacing what was there. `data` may be empty.
  void simple(uint64_t cookie, Error error, const void* data, size_t data_bytes);
  // Success without content.
  void none_chunk(uint64_t cookie);
  // `message` is cut to kMessageBytesMax.
  void error_chunk(uint64_t cookie, Error error, std::string_view message);
  // Content of a READ: zero runs of 4 KiB and up (or a read that is zero altogether) become holes;
  // with `one_chunk` (DF) there is a single chunk.
  void read_chunks(uint64_t cookie, uint64_t offset, const void* data, size_t data_bytes,
                   bool one_chunk);
  // Content of a READ that lies in a file at `offset`: one piece.
  void read_file(uint64_t cookie, bool structured, uint64_t offset, int file, size_t data_bytes);
  // `extents` start at the request's offset, are merged where equal and cut to `length`; with `one`
  // (REQ_ONE) only the first is sent. At least one extent.
  void block_status(uint64_t cookie, uint32_t context, std::span<const BlockStatusExtent> extents,
                    uint64_t length, bool one);

  // Bytes not sent yet.
  uint64_t bytes_left() const { return bytes_left_; }
  // Appends what is left to `out`, at most `max` entries, up to what lies in a file; returns how
  // many. `file_next`: the file is what comes then.
  size_t gather(iovec* out, size_t max, bool& file_next) const;
  // What is to be sent next lies in a file: where. False: it does not.
  struct FilePart {
    int file;
    uint64_t offset;
    size_t bytes;
  };
  bool next_in_file(FilePart& part) const;
  // `bytes` more have been sent.
  void sent(uint64_t bytes);
  // Gives back memory that an unusually large reply needed.
  void trim();

  Reply* next = nullptr;  // of the queue
  void* owner = nullptr;

  static constexpr size_t kMessageBytesMax = 256;
  static constexpr size_t kRunsMax = 1024;  // content chunks of one reply
  static constexpr size_t kZeroRunBytes = 4096;

 private:
  // A header and the data behind it.
  struct Piece {
    uint32_t head_start;
    uint32_t head_bytes;
    const uint8_t* data;  // null with data_bytes: in the file
    size_t data_bytes;
  };
  struct Run {
    size_t start;
    size_t bytes;
    bool zero;
  };

  void clear();
  template <typename Head>
  Head& add(const void* data, size_t data_bytes);
  void find_runs(uint64_t offset, const uint8_t* data, size_t data_bytes);

  std::vector<uint8_t> heads_;
  std::vector<Piece> pieces_;
  std::vector<Run> runs_;
  size_t first_piece_ = 0;  // not sent whole
  size_t piece_sent_ = 0;   // bytes of it that were
  uint64_t bytes_left_ = 0;
  int file_ = -1;  // of a reply with one piece, whose data is there
  uint64_t file_offset_ = 0;
};

// Replies in the order in which they are sent.
class ReplyQueue {
 public:
  enum class Sent { ALL, WOULD_BLOCK, BROKEN, UNREADABLE };

  void push(Reply& reply);
  bool empty() const { return first_ == nullptr; }
  size_t count() const { return count_; }
  uint64_t bytes() const { return bytes_; }
  Reply* pop();

  // Sends until the queue is empty, the socket takes no more, or `may_send`, which is asked before
  // every system call, says no. Replies that are gone are handed to `done`, which may reuse them.
  // BROKEN: errno says why. UNREADABLE: content that lies in a file
  // could not be read from there, for errno, when its reply had begun.
  template <typename MaySend, typename Done>
  Sent flush(int socket, MaySend may_send, Done done) {
    Sent result = Sent::ALL;
    while (!empty() && result == Sent::ALL && may_send()) {
      result = send_some(socket);
      while (!empty() && first_->bytes_left() == 0) done(*pop());
    }
    return result;
  }

 private:
  static constexpr size_t kPiecesMax = 64;  // of one system call
  static constexpr size_t kFileBytesMax = size_t{1} << 20;

  Sent send_some(int socket);
  Sent send_file(int socket, const Reply::FilePart& part);

  Reply* first_ = nullptr;
  Reply* last_ = nullptr;
  size_t count_ = 0;
  uint64_t bytes_ = 0;
};

}  // namespace csnap::nbd
