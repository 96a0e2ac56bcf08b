// Fuzz target: the bytes of a client in transmission. The first byte chooses the export's rules,
// the second how the rest is cut into receives; the rest goes through RequestReader and judge() the
// way a connection drives them, and every accepted READ is answered out of the input itself.
// Whatever comes: no crash, no request beyond the export, no memory before the judgement, no byte
// lost.
#include <algorithm>
#include <cstring>
#include <vector>

#include "base/assert.h"
#include "nbd/reply.h"
#include "nbd/request_reader.h"

namespace csnap::nbd {
namespace {

constexpr uint64_t kExportBytes = 1 << 20;

class FuzzedConnection {
 public:
  FuzzedConnection(const uint8_t* data, size_t length, uint8_t rules, uint8_t cut)
      : data_(data), length_(length), cut_(cut), initial_(std::min<size_t>(length, cut * 16)) {
    rules_.size_bytes = kExportBytes;
    rules_.read_only = (rules & 1) != 0;
    rules_.structured_replies = (rules & 2) != 0;
    rules_.block_status = (rules & 6) == 6;
  }

  void run() {
    RequestReader reader({data_, initial_});
    size_t fed = initial_;
    uint64_t taken = 0;  // bytes of the stream that came out
    while (true) {
      while (step(reader, taken)) {
      }
      if (broken_ || fed == length_) break;
      fed += feed(reader, fed);
    }
    if (broken_) return;
    // What is missing of a payload never came; all else came out or is a part of a header.
    CSNAP_ASSERT(taken - reader.payload_missing() + reader.buffered() == length_);
    CSNAP_ASSERT(reader.payload_missing() > 0 || reader.buffered() < sizeof(Request));
  }

 private:
  size_t feed(RequestReader& reader, size_t fed) {
    iovec pieces[2];
    const int count = reader.receive_into(pieces);
    size_t room = 0;
    for (int i = 0; i < count; i++) room += pieces[i].iov_len;
    CSNAP_ASSERT(room > 0);
    const size_t bytes = std::min({length_ - fed, room, size_t{1} + cut_ * size_t{97}});
    size_t done = 0;
    for (int i = 0; i < count; i++) {
      const size_t part = std::min(bytes - done, pieces[i].iov_len);
      if (part > 0) std::memcpy(pieces[i].iov_base, data_ + fed + done, part);
      done += part;
    }
    reader.received(bytes);
    return bytes;
  }

  // One request; false when bytes are missing or the stream is broken.
  bool step(RequestReader& reader, uint64_t& taken) {
    const Request* request = broken_ ? nullptr : reader.peek();
    if (request == nullptr) return false;
    if (request->magic != kRequestMagic) {
      broken_ = true;
      return false;
    }
    const Judgement judgement = judge(*request, rules_);
    const auto command = static_cast<Command>(uint16_t{request->command});
    const uint64_t offset = request->offset;
    const uint32_t length = request->length;
    const uint16_t flags = request->flags;
    CSNAP_ASSERT(judgement.payload_bytes == (command == Command::WRITE ? length : 0));
    reader.consume();
    taken += sizeof(Request) + judgement.payload_bytes;
    const bool ranged = command != Command::FLUSH && command != Command::DISC;
    if (judgement.error == Error::NONE && ranged) {
      CSNAP_ASSERT(offset <= kExportBytes);
      CSNAP_ASSERT(length <= kExportBytes - offset);
    }
    if (judgement.payload_bytes > 0) {
      if (judgement.error == Error::NONE) {
        payload_.resize(length);
        reader.take_payload(payload_.data(), length);
      } else {
        reader.skip_payload(judgement.payload_bytes);
      }
    } else if (judgement.error == Error::NONE && command == Command::READ) {
      answer(offset, length, (flags & kFlagDf) != 0);
    }
    return true;
  }

  // Content out of the input, so that the fuzzer chooses where zeros lie.
  void answer(uint64_t offset, uint32_t length, bool one_chunk) {
    std::vector<uint8_t> content(length);
    for (size_t done = 0; done < length && length_ > 0;) {
      const size_t part = std::min<size_t>(length - done, length_);
      std::memcpy(content.data() + done, data_, part);
      done += part;
    }
    Reply reply;
    reply.read_chunks(1, offset, content.data(), content.size(), one_chunk);
    iovec pieces[3 * Reply::kRunsMax];
    bool in_file;
    const size_t count = reply.gather(pieces, 3 * Reply::kRunsMax, in_file);
    uint64_t bytes = 0;
    for (size_t i = 0; i < count; i++) bytes += pieces[i].iov_len;
    CSNAP_ASSERT(bytes == reply.bytes_left());
    CSNAP_ASSERT(bytes <= length + Reply::kRunsMax * sizeof(OffsetHole));
    reply.sent(bytes);
    CSNAP_ASSERT(reply.bytes_left() == 0);
  }

  const uint8_t* const data_;
  const size_t length_;
  const uint8_t cut_;
  const size_t initial_;
  ExportRules rules_;
  std::vector<uint8_t> payload_;
  bool broken_ = false;
};

}  // namespace
}  // namespace csnap::nbd

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t length) {
  if (length < 2) return 0;
  csnap::nbd::FuzzedConnection(data + 2, length - 2, data[0], data[1]).run();
  return 0;
}
