// Requests out of a byte stream: the receive buffer, the framing, and the judgement of a header.
// Knows no socket, so that a test or a fuzzer can feed it bytes. Caller: Connection.
//
// Use: fill what receive_into() points at, report with received(); then, in turn, peek() a header,
// judge() it, consume() it, and say where its payload goes with take_payload() or skip_payload().
//
// Invariants
//  R1  Bytes are handed out in stream order: no header is seen while payload of an earlier one is
//      still missing.
//  R2  Nothing is allocated after construction.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "nbd/wire.h"

namespace csnap::nbd {

// What the handshake agreed on, as far as a request's judgement needs it.
struct ExportRules {
  uint64_t size_bytes = 0;
  bool read_only = true;
  bool structured_replies = false;
  bool block_status = false;  // base:allocation was negotiated
};

// One request header, judged.
struct Judgement {
  Error error = Error::NONE;
  const char* reason = "";     // for the ERROR chunk; static text
  uint32_t payload_bytes = 0;  // follow on the wire, whatever `error` says
};

// Every rule of the protocol for one header whose magic is right.
Judgement judge(const Request& request, const ExportRules& rules);

class RequestReader {
 public:
  static constexpr size_t kBufferBytes = 128 * 1024;

  // `initial`: bytes that came with the handshake; any length.
  explicit RequestReader(std::span<const uint8_t> initial);

  // Where the next bytes go: one or two pieces, never empty while peek() is null.
  int receive_into(iovec pieces[2]);
  void received(size_t bytes);

  // The next whole header, or null while payload or header bytes are missing.
  const Request* peek() const;
  void consume();
  // The next `length` bytes go to `target`, which stays valid until payload_missing() is 0.
  void take_payload(void* target, size_t length);
  void skip_payload(uint64_t length);
  // Payload bytes still to come.
  uint64_t payload_missing() const { return payload_missing_; }
  // Received and not yet handed out.
  size_t buffered() const { return end_ - start_; }

 private:
  // Behind a large payload only this much is received ahead: more would be the next payload's
  // bytes, which then had to be copied.
  static constexpr size_t kLookaheadBytes = 4096;
  static constexpr size_t kLargePayloadBytes = 32 * 1024;

  void feed_payload();

  size_t capacity_;
  std::unique_ptr<uint8_t[]> buffer_;
  size_t start_ = 0;
  size_t end_ = 0;
  uint8_t* payload_ = nullptr;  // null: skipped
  uint64_t payload_missing_ = 0;
};

}  // namespace csnap::nbd
