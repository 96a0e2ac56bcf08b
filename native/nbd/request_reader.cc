#include "nbd/request_reader.h"

#include <algorithm>
#include <cstring>

#include "base/assert.h"

namespace csnap::nbd {
namespace {

// The flags that the protocol documents for a command. FUA is accepted on every one.
uint16_t flags_of(Command command, const ExportRules& rules) {
  switch (command) {
    case Command::READ:
      return rules.structured_replies ? kFlagFua | kFlagDf : kFlagFua;
    case Command::WRITE_ZEROES:
      return kFlagFua | kFlagNoHole | kFlagFastZero;
    case Command::BLOCK_STATUS:
      return kFlagFua | kFlagReqOne;
    default:
      return kFlagFua;
  }
}

bool writes(Command command) {
  return command == Command::WRITE || command == Command::TRIM || command == Command::WRITE_ZEROES;
}

}  // namespace

Judgement judge(const Request& request, const ExportRules& rules) {
  const uint16_t number = request.command;
  const auto command = static_cast<Command>(number);
  const uint64_t offset = request.offset;
  const uint32_t length = request.length;
  Judgement result;
  if (command == Command::WRITE) result.payload_bytes = length;
  const auto refuse = [&](Error error, const char* reason) {
    result.error = error;
    result.reason = reason;
    return result;
  };
  if (number > static_cast<uint16_t>(Command::BLOCK_STATUS))
    return refuse(Error::INVAL, "unknown command");
  if ((request.flags & ~flags_of(command, rules)) != 0)
    return refuse(Error::INVAL, "flag not defined for this command");
  // A flush covers everything, whatever range it names.
  if (command == Command::FLUSH || command == Command::DISC) return result;
  if (writes(command) && rules.read_only) return refuse(Error::PERM, "the export is read-only");
  if ((command == Command::READ || command == Command::WRITE) && length > kPayloadBytesMax)
    return refuse(Error::INVAL, "payload larger than 32 MiB");
  if (offset > rules.size_bytes || length > rules.size_bytes - offset) {
    const bool full = command == Command::WRITE || command == Command::WRITE_ZEROES;
    return refuse(full ? Error::NOSPC : Error::INVAL, "range ends beyond the export");
  }
  if (command == Command::BLOCK_STATUS && !rules.block_status)
    return refuse(Error::INVAL, "no metadata context was negotiated");
  if (command == Command::BLOCK_STATUS && length == 0)
    return refuse(Error::INVAL, "a block status of no bytes");
  return result;
}

RequestReader::RequestReader(std::span<const uint8_t> initial)
    : capacity_(std::max(kBufferBytes, initial.size())),
      buffer_(new uint8_t[capacity_]),
      end_(initial.size()) {
  if (!initial.empty()) std::memcpy(buffer_.get(), initial.data(), initial.size());
}

int RequestReader::receive_into(iovec pieces[2]) {
  if (start_ == end_) start_ = end_ = 0;
  if (start_ > 0 && capacity_ - end_ < capacity_ / 2) {
    std::memmove(buffer_.get(), buffer_.get() + start_, end_ - start_);
    end_ -= start_;
    start_ = 0;
  }
  const size_t room = capacity_ - end_;
  int count = 0;
  if (payload_missing_ > 0 && payload_ != nullptr) {
    CSNAP_ASSERT(start_ == end_);
    pieces[count++] = {payload_, static_cast<size_t>(payload_missing_)};
    const size_t ahead =
        payload_missing_ >= kLargePayloadBytes ? std::min(room, kLookaheadBytes) : room;
    pieces[count++] = {buffer_.get(), ahead};
    return count;
  }
  pieces[count++] = {buffer_.get() + end_, room};
  return count;
}

void RequestReader::received(size_t bytes) {
  if (payload_missing_ > 0 && payload_ != nullptr) {
    const size_t direct = static_cast<size_t>(std::min<uint64_t>(bytes, payload_missing_));
    payload_ += direct;
    payload_missing_ -= direct;
    bytes -= direct;
  }
  CSNAP_ASSERT(bytes <= capacity_ - end_);
  end_ += bytes;
  feed_payload();
}

const Request* RequestReader::peek() const {
  if (payload_missing_ > 0 || buffered() < sizeof(Request)) return nullptr;
  return reinterpret_cast<const Request*>(buffer_.get() + start_);
}

void RequestReader::consume() {
  CSNAP_ASSERT(peek() != nullptr);
  start_ += sizeof(Request);
}

void RequestReader::take_payload(void* target, size_t length) {
  CSNAP_ASSERT(payload_missing_ == 0);
  payload_ = static_cast<uint8_t*>(target);
  payload_missing_ = length;
  feed_payload();
}

void RequestReader::skip_payload(uint64_t length) {
  CSNAP_ASSERT(payload_missing_ == 0);
  payload_ = nullptr;
  payload_missing_ = length;
  feed_payload();
}

// Moves what the buffer already holds of the payload.
void RequestReader::feed_payload() {
  const size_t take = static_cast<size_t>(std::min<uint64_t>(payload_missing_, buffered()));
  if (take == 0) return;
  if (payload_ != nullptr) {
    std::memcpy(payload_, buffer_.get() + start_, take);
    payload_ += take;
  }
  start_ += take;
  payload_missing_ -= take;
}

}  // namespace csnap::nbd
