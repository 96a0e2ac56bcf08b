// What a connection does with requests: from header to slot, to the volume, to the answer.
#include <algorithm>

#include "nbd/connection.h"
#include "nbd/wire_error.h"

namespace csnap::nbd {
namespace {

const char* command_name(Command command) {
  switch (command) {
    case Command::READ:
      return "read";
    case Command::WRITE:
      return "write";
    case Command::DISC:
      return "disconnect";
    case Command::FLUSH:
      return "flush";
    case Command::TRIM:
      return "trim";
    case Command::CACHE:
      return "cache";
    case Command::WRITE_ZEROES:
      return "zeroing";
    case Command::BLOCK_STATUS:
      return "block status";
  }
  return "request";
}

IoOp op_of(Command command) {
  switch (command) {
    case Command::WRITE:
      return IoOp::WRITE;
    case Command::FLUSH:
      return IoOp::FLUSH;
    case Command::TRIM:
      return IoOp::TRIM;
    case Command::CACHE:
      return IoOp::CACHE;
    case Command::WRITE_ZEROES:
      return IoOp::WRITE_ZEROES;
    default:
      return IoOp::READ;
  }
}

// Counters have one writer, the connection's thread.
void bump(std::atomic<uint64_t>& counter, uint64_t by) {
  counter.store(counter.load(std::memory_order_relaxed) + by, std::memory_order_relaxed);
}

}  // namespace

// ---- From the wire -----------------------------------------------------------------------------

void Connection::dispatch() {
  blocked_ = false;
  freed_some_ = false;
  waits_for_budget_ = false;
  dispatch_received();
  submit_gathered();
}

void Connection::dispatch_received() {
  while (phase_ == Phase::OPEN) {
    if (reader_.payload_missing() > 0) return;
    if (receiving_ != nullptr) {
      submit(*std::exchange(receiving_, nullptr));
    } else {
      const Request* request = reader_.peek();
      if (request == nullptr) return;
      if (request->magic != kRequestMagic)
        return abandon("the client sent a request with a wrong magic number");
      if (!begin(*request)) {
        blocked_ = true;
        return;
      }
    }
    if (outbox_.count() >= kRepliesPerFlush || outbox_.bytes() >= kReplyBytesPerFlush) flush();
    take_orders_and_completions();
  }
}

// False: a bound is reached; the header stays where it is. N2
bool Connection::begin(const Request& request) {
  const uint16_t number = request.command;
  const Judgement judgement = judge(request, rules_);
  if (number == static_cast<uint16_t>(Command::DISC)) {
    reader_.consume();
    finish("the client disconnected");
    return true;
  }
  const bool has_data = number == static_cast<uint16_t>(Command::READ) ||
                        number == static_cast<uint16_t>(Command::WRITE);
  uint32_t bytes = 0;  // of payload memory
  if (judgement.error == Error::NONE && has_data) bytes = request.length;
  const uint64_t held = budget_.held(*this);
  if (free_slots_.empty() && slots_.size() == kSlotsMax) return false;
  if (bytes > 0 && held > 0 && held + bytes > kHeldBytesMax) return false;
  if (bytes > 0 && !budget_.try_take(*this, bytes)) {
    waits_for_budget_ = true;
    return false;
  }
  Slot* slot = take_slot();
  slot->held_bytes = bytes;
  if (bytes > 0) slot->buffer = buffers_.take(bytes);
  slot->cookie = request.cookie;
  slot->offset = request.offset;
  slot->length = request.length;
  slot->command = static_cast<Command>(number);
  slot->flags = request.flags;
  slot->refusal = judgement.error;
  slot->refusal_reason = judgement.reason;
  reader_.consume();
  bump(requests_, 1);
  begun_since_receive_++;
  if (judgement.payload_bytes == 0) {
    submit(*slot);
    return true;
  }
  // A refused request's payload is dropped, and answered after that: some clients take no answer to
  // a request that they are still sending.
  receiving_ = slot;
  if (judgement.error == Error::NONE)
    reader_.take_payload(slot->buffer.bytes.get(), bytes);
  else
    reader_.skip_payload(judgement.payload_bytes);
  return true;
}

Connection::Slot* Connection::take_slot() {
  if (free_slots_.empty()) {
    CSNAP_ASSERT(slots_.size() < kSlotsMax);
    slots_.push_back(std::make_unique<Slot>());
    free_slots_.reserve(kSlotsMax);
    free_slots_.push_back(slots_.back().get());
  }
  Slot* slot = free_slots_.back();
  free_slots_.pop_back();
  slot->connection = this;
  slot->reply.owner = slot;
  bump(in_flight_, 1);
  return slot;
}

void Connection::release_payload(Slot& slot) {
  if (slot.buffer.bytes != nullptr) buffers_.give(std::move(slot.buffer));
  if (slot.held_bytes > 0) budget_.give(*this, slot.held_bytes);
  slot.held_bytes = 0;
  freed_some_ = true;
}

void Connection::release(Slot& slot) {
  release_payload(slot);
  slot.reply.trim();
  slot.io.status = Status();
  slot.io.cached_file = -1;
  free_slots_.push_back(&slot);
  bump(in_flight_, ~uint64_t{0});
}

// ---- To the volume -----------------------------------------------------------------------------

void Connection::submit(Slot& slot) {
  if (!admitted()) return release(slot);
  if (slot.refusal != Error::NONE) return answer(slot);
  if (slot.command == Command::BLOCK_STATUS) return submit_block_status(slot);
  // Nothing to do, whatever it is.
  if (slot.length == 0 && slot.command != Command::FLUSH) return answer(slot);
  submit_io(slot);
}

void Connection::submit_io(Slot& slot) {
  IoRequest& io = slot.io;
  io.op = op_of(slot.command);
  io.fua = (slot.flags & kFlagFua) != 0 && io.op != IoOp::READ && io.op != IoOp::FLUSH;
  io.no_hole = (slot.flags & kFlagNoHole) != 0;
  io.fast_zero = (slot.flags & kFlagFastZero) != 0;
  io.view = view_.get();
  io.offset = io.op == IoOp::FLUSH ? 0 : slot.offset;
  io.length = io.op == IoOp::FLUSH ? 0 : slot.length;
  io.data = slot.buffer.bytes.get();
  io.takes_cached_file = slot.length >= kLentBytesMin;
  io.done = io_done;
  io.owner = &slot;
  io.internal = {};
  // Alone: waiting here spares a hand-over. Answers must not wait with it.
  const bool alone = under_way_ == 0 && gathered_.empty() && reader_.buffered() == 0;
  if (!alone && io.op == IoOp::WRITE && io.length <= kGatheredBytesMax) return gather(slot);
  submit_gathered();
  if (alone) flush();
  if (volume_.submit(io, alone && outbox_.empty()))
    answer(slot);
  else
    under_way_++;
}

// Writes that came together cost less together.
void Connection::gather(Slot& slot) {
  gathered_.push_back(&slot.io);
  if (gathered_.size() == kRepliesPerFlush) submit_gathered();
}

void Connection::submit_gathered() {
  if (gathered_.empty()) return;
  if (!admitted()) {  // N5
    for (IoRequest* io : gathered_) release(*static_cast<Slot*>(io->owner));
    return gathered_.clear();
  }
  under_way_ += gathered_.size();
  const uint64_t done = volume_.submit_writes(gathered_);
  for (size_t i = 0; i < gathered_.size(); i++) {
    if ((done >> i & 1) == 0) continue;
    under_way_--;
    answer(*static_cast<Slot*>(gathered_[i]->owner));
  }
  gathered_.clear();
}

void Connection::submit_block_status(Slot& slot) {
  under_way_++;
  volume_.run_on_pool([&slot] {
    Connection& connection = *slot.connection;
    slot.extents.clear();
    // More than one even for REQ_ONE: equal neighbours are merged.
    const size_t most = (slot.flags & kFlagReqOne) != 0 ? 64 : kExtentsPerReply;
    slot.io.status = connection.volume_.block_status(*connection.view_, slot.offset, slot.length,
                                                     most, slot.extents);
    connection.completed(slot);
  });
}

void Connection::io_done(IoRequest& io) {
  Slot& slot = *static_cast<Slot*>(io.owner);
  slot.connection->completed(slot);
}

// On a volume's thread. Nothing of the connection may be touched once the mutex is free again: its
// thread may have answered the last request and ended.
void Connection::completed(Slot& slot) {
  slot.next = nullptr;
  MutexLock lock(mutex_);
  if (completed_first_ == nullptr)
    completed_first_ = &slot;
  else
    completed_last_->next = &slot;
  completed_last_ = &slot;
  wake_locked();
}

// ---- To the wire -------------------------------------------------------------------------------

void Connection::answer(Slot& slot) {
  if (phase_ == Phase::CUT) return release(slot);
  Error error = slot.refusal;
  std::string message;
  if (error != Error::NONE) {
    message = slot.refusal_reason;
  } else if (!slot.io.status.ok()) {
    const WireError wire = wire_error(slot.io.status, slot.command);
    if (slot.io.status.code() != Code::SHUTTING_DOWN) report(slot, slot.io.status);
    if (wire.drop) {
      abandon(slot.io.status.message());
      return release(slot);
    }
    error = wire.error;
    message = slot.io.status.message();
  }
  if (error == Error::NONE && slot.command == Command::READ) bump(read_bytes_, slot.length);
  if (error == Error::NONE && slot.command == Command::WRITE) bump(write_bytes_, slot.length);
  if (error != Error::NONE || slot.command != Command::READ || slot.io.cached_file >= 0)
    release_payload(slot);
  build_reply(slot, error, message);
  outbox_.push(slot.reply);
}

void Connection::build_reply(Slot& slot, Error error, const std::string& message) {
  Reply& reply = slot.reply;
  if (error == Error::NONE && slot.command == Command::READ && slot.io.cached_file >= 0)
    return reply.read_file(slot.cookie, structured_replies_, slot.offset, slot.io.cached_file,
                           slot.length);
  if (!structured_replies_) {
    const bool data = error == Error::NONE && slot.command == Command::READ;
    return reply.simple(slot.cookie, error, data ? slot.buffer.bytes.get() : nullptr,
                        data ? slot.length : 0);
  }
  if (error != Error::NONE) return reply.error_chunk(slot.cookie, error, message);
  if (slot.command == Command::READ)
    return reply.read_chunks(slot.cookie, slot.offset, slot.buffer.bytes.get(), slot.length,
                             (slot.flags & kFlagDf) != 0);
  if (slot.command == Command::BLOCK_STATUS)
    return reply.block_status(slot.cookie, static_cast<uint32_t>(base_allocation_id_), slot.extents,
                              slot.length, (slot.flags & kFlagReqOne) != 0);
  reply.simple(slot.cookie, Error::NONE, nullptr, 0);
}

// The true cause, which the wire has no words for. A client may repeat a failing request as fast as
// it can, so what is told is bounded.
void Connection::report(const Slot& slot, const Status& status) {
  constexpr uint64_t kIntervalMs = 1000;
  const uint64_t now = monotonic_ms();
  if (slot.command == Command::WRITE_ZEROES && status.code() == Code::NOT_SUPPORTED) return;
  if (reported_ms_ != 0 && now < reported_ms_ + kIntervalMs) {
    unreported_++;
    return;
  }
  reported_ms_ = now;
  std::string line = std::string(command_name(slot.command)) + " of " +
                     std::to_string(slot.length) + " bytes at " + std::to_string(slot.offset) +
                     " failed: " + status.to_text();
  if (unreported_ > 0) line += " (and " + std::to_string(unreported_) + " more before)";
  unreported_ = 0;
  callbacks_.problem(id_, line);
}

ConnectionStats Connection::stats() const {
  ConnectionStats stats;
  stats.id = id_;
  stats.requests = requests_.load(std::memory_order_relaxed);
  stats.read_bytes = read_bytes_.load(std::memory_order_relaxed);
  stats.write_bytes = write_bytes_.load(std::memory_order_relaxed);
  stats.in_flight = in_flight_.load(std::memory_order_relaxed);
  return stats;
}

}  // namespace csnap::nbd
