#include "io/aio_writer.h"

#include <errno.h>
#include <linux/aio_abi.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "base/assert.h"

namespace csnap {

std::unique_ptr<AioWriter> AioWriter::make(int fd, const std::string& name, bool is_block,
                                           bool is_cached) {
  aio_context_t context = 0;
  const bool waits = is_block && is_cached;
  if (!waits && syscall(SYS_io_setup, kDepth, &context) != 0) return nullptr;
  return std::unique_ptr<AioWriter>(new AioWriter(fd, name, context));
}

AioWriter::~AioWriter() {
  if (context_ != 0) syscall(SYS_io_destroy, context_);
}

Status AioWriter::write(std::span<const DeviceWrite> writes, Gate* gate) {
  if (context_ == 0) return write_each(writes, gate);
  std::vector<Piece> pieces;
  for (const DeviceWrite& write : writes)
    for (size_t done = 0; done < write.length; done += kPieceBytes)
      pieces.push_back({write.offset + done, static_cast<const char*>(write.data) + done,
                        std::min(write.length - done, kPieceBytes)});
  Status status;
  const auto note = [&](Status one) {
    if (status.ok()) status = std::move(one);
  };
  MutexLock lock(mutex_);
  size_t next = 0;
  for (size_t under_way = 0; under_way > 0 || (next < pieces.size() && status.ok());) {
    if (next < pieces.size() && status.ok() && gate != nullptr && !gate->admit()) {
      note(Status(Code::FENCED, name_));
      continue;
    }
    if (next < pieces.size() && status.ok() && under_way < kDepth) {
      iocb blocks[kDepth];
      iocb* list[kDepth];
      const size_t count = std::min<size_t>(kDepth - under_way, pieces.size() - next);
      for (size_t i = 0; i < count; i++) {
        memset(&blocks[i], 0, sizeof blocks[i]);
        blocks[i].aio_lio_opcode = IOCB_CMD_PWRITE;
        blocks[i].aio_fildes = static_cast<uint32_t>(fd_);
        blocks[i].aio_buf = reinterpret_cast<uint64_t>(pieces[next + i].data);
        blocks[i].aio_nbytes = pieces[next + i].length;
        blocks[i].aio_offset = static_cast<int64_t>(pieces[next + i].offset);
        blocks[i].aio_data = next + i;
        list[i] = &blocks[i];
      }
      long taken;
      do taken = syscall(SYS_io_submit, context_, count, list);
      while (taken < 0 && errno == EINTR);
      if (taken > 0) {
        next += static_cast<size_t>(taken);
        under_way += static_cast<size_t>(taken);
      } else if (under_way == 0) {
        // It takes nothing now: the plain way, which also finds the error.
        note(write_rest(pieces[next++]));
        continue;
      }
    }
    io_event events[kDepth];
    const long ended = syscall(SYS_io_getevents, context_, 1, kDepth, events, nullptr);
    if (ended < 0) CSNAP_ASSERT(errno == EINTR);
    for (long i = 0; i < ended; i++) note(finish(pieces[events[i].data], events[i].res, gate));
    if (ended > 0) under_way -= static_cast<size_t>(ended);
  }
  return status;
}

Status AioWriter::write_each(std::span<const DeviceWrite> writes, Gate* gate) {
  for (const DeviceWrite& write : writes) {
    if (gate != nullptr && !gate->admit()) return Status(Code::FENCED, name_);
    CSNAP_TRY(write_rest({write.offset, static_cast<const char*>(write.data), write.length}));
  }
  return Status();
}

Status AioWriter::finish(const Piece& piece, int64_t result, Gate* gate) {
  if (result == static_cast<int64_t>(piece.length)) return Status();
  if (result < 0) return error(piece, static_cast<int>(-result));
  if (gate != nullptr && !gate->admit()) return Status(Code::FENCED, name_);
  const auto done = static_cast<size_t>(result);
  return write_rest({piece.offset + done, piece.data + done, piece.length - done});
}

// What was cut short, or could not be submitted.
Status AioWriter::write_rest(Piece piece) {
  while (piece.length > 0) {
    const ssize_t n = pwrite(fd_, piece.data, piece.length, static_cast<off_t>(piece.offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return error(piece, n < 0 ? errno : EIO);
    piece = {piece.offset + static_cast<size_t>(n), piece.data + n,
             piece.length - static_cast<size_t>(n)};
  }
  return Status();
}

Status AioWriter::error(const Piece& piece, int error_number) const {
  return Status::from_errno(error_number, name_ + ": write of " + std::to_string(piece.length) +
                                              " bytes at " + std::to_string(piece.offset));
}

}  // namespace csnap
