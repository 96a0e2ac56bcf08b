// The connection's thread: socket, sleep and stop. What requests mean is in connection_requests.cc.
#include "nbd/connection.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <chrono>

namespace csnap::nbd {

Connection::Connection(uint64_t id, Volume& volume, PayloadBudget& budget, Callbacks callbacks,
                       ConnectionOptions options)
    : id_(id),
      volume_(volume),
      gate_(volume.gate()),
      budget_(budget),
      callbacks_(std::move(callbacks)),
      view_(std::move(options.view)),
      structured_replies_(options.structured_replies),
      base_allocation_id_(options.structured_replies ? options.base_allocation_id : -1),
      reader_(options.initial_bytes),
      socket_(std::move(options.socket)) {
  rules_.size_bytes = view_->size_bytes;
  rules_.read_only = options.read_only || view_->read_only;
  rules_.structured_replies = structured_replies_;
  rules_.block_status = base_allocation_id_ >= 0;
}

Connection::~Connection() { thread_.join(); }

Status Connection::start() {
  wake_fd_ = UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_fd_) return Status::from_errno(errno, "a connection can't be started");
  // Non-blocking: sendfile() has no flag for one call.
  const int flags = fcntl(socket_.get(), F_GETFL);
  if (flags < 0 || fcntl(socket_.get(), F_SETFL, flags | O_NONBLOCK) != 0)
    return Status::from_errno(errno, "a connection can't be started");
  const int on = 1;
  // Fails on a unix socket, which needs it not, but has a buffer that is small and does not grow:
  // who sends large answers sleeps until three quarters of it are read.
  if (setsockopt(socket_.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0 &&
      setsockopt(socket_.get(), SOL_SOCKET, SO_SNDBUFFORCE, &kUnixSendBytes,
                 sizeof kUnixSendBytes) != 0)
    setsockopt(socket_.get(), SOL_SOCKET, SO_SNDBUF, &kUnixSendBytes, sizeof kUnixSendBytes);
  budget_.join(*this);
  thread_.start("csnap-nbd", [this] { run(); });
  return Status();
}

void Connection::run() {
  while (true) {
    take_orders_and_completions();
    dispatch();
    flush();
    if (under_way_ == 0 && phase_ == Phase::CUT) break;
    if (under_way_ == 0 && phase_ == Phase::FINISHING && outbox_.empty()) break;
    receive_or_wait();
  }
  close_socket();
  if (receiving_ != nullptr) release(*std::exchange(receiving_, nullptr));
  while (!outbox_.empty()) release(*static_cast<Slot*>(outbox_.pop()->owner));
  CSNAP_ASSERT(free_slots_.size() == slots_.size());
  budget_.leave(*this);
  view_.reset();
  callbacks_.closed(id_, reason_);
}

// ---- Ending ------------------------------------------------------------------------------------

void Connection::drain() {
  MutexLock lock(mutex_);
  if (order_ != Order::NONE) return;
  order_ = Order::DRAIN;
  wake_locked();
}

void Connection::cut(const std::string& reason) {
  MutexLock lock(mutex_);
  if (order_ == Order::CUT) return;
  order_ = Order::CUT;
  order_reason_ = reason;
  // The thread may sit in a wait for this socket alone.
  if (socket_) shutdown(socket_.get(), SHUT_RDWR);
  wake_locked();
}

void Connection::budget_evict() {
  cut("the client neither read nor sent while others waited for the memory that it held");
}

void Connection::budget_wake() {
  MutexLock lock(mutex_);
  wake_locked();
}

// No more requests; what was read whole gets its answer.
void Connection::finish(const std::string& reason) {
  if (phase_ != Phase::OPEN) return;
  phase_ = Phase::FINISHING;
  reason_ = reason;
  // N1: what has not arrived whole does nothing.
  if (receiving_ != nullptr) release(*std::exchange(receiving_, nullptr));
}

void Connection::abandon(const std::string& reason) {
  if (phase_ == Phase::CUT) return;
  if (phase_ == Phase::OPEN) reason_ = reason;
  phase_ = Phase::CUT;
  shutdown(socket_.get(), SHUT_RDWR);
}

// N5. The grant may be the next server's by now, and so is this client.
bool Connection::admitted() {
  if (gate_ == nullptr || gate_->admit()) [[likely]]
    return true;
  abandon("the server's grant has ended");
  return false;
}

// Closing a TCP socket that holds unread bytes sends a reset, which would destroy answers on their
// way: so the end is announced, and what still comes in is read and dropped for a moment.
void Connection::close_socket() {
  if (phase_ == Phase::FINISHING && shutdown(socket_.get(), SHUT_WR) == 0) {
    char dropped[4096];
    const uint64_t deadline = monotonic_ms() + kLingerMs;
    for (uint64_t now = monotonic_ms(); now < deadline; now = monotonic_ms()) {
      pollfd socket = {socket_.get(), POLLIN, 0};
      if (poll(&socket, 1, static_cast<int>(deadline - now)) <= 0 && errno != EINTR) break;
      const ssize_t n = recv(socket_.get(), dropped, sizeof dropped, MSG_DONTWAIT);
      if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) break;
    }
  }
  MutexLock lock(mutex_);
  socket_.reset();
}

// ---- Sleeping and waking -----------------------------------------------------------------------

void Connection::wake_locked() {
  attention_.store(true, std::memory_order_relaxed);
  if (!sleeping_ || woken_) return;
  woken_ = true;
  const uint64_t one = 1;
  const ssize_t n = write(wake_fd_.get(), &one, sizeof one);
  CSNAP_ASSERT(n == sizeof one);
}

void Connection::take_orders_and_completions() {
  if (!attention_.load(std::memory_order_relaxed)) return;
  Slot* completed;
  Order order;
  std::string reason;
  {
    MutexLock lock(mutex_);
    attention_.store(false, std::memory_order_relaxed);
    completed = std::exchange(completed_first_, nullptr);
    completed_last_ = nullptr;
    order = order_;
    reason = order_reason_;
  }
  if (order == Order::DRAIN) finish("drained");
  if (order == Order::CUT) abandon(reason);
  while (completed != nullptr) {
    Slot& slot = *completed;
    completed = slot.next;
    under_way_--;
    answer(slot);
  }
}

void Connection::wait(bool want_in, bool want_out) {
  {
    MutexLock lock(mutex_);
    if (attention_.load(std::memory_order_relaxed)) return;
    sleeping_ = true;
  }
  int timeout_ms = buffers_.idle() ? -1 : kIdleTrimMs;
  if (waits_for_budget_) timeout_ms = kBudgetPollMs;
  // A socket that nothing is wanted of is left out: its hang-up would end every wait at once.
  pollfd fds[2] = {{wake_fd_.get(), POLLIN, 0}, {socket_.get(), 0, 0}};
  if (want_in) fds[1].events |= POLLIN;
  if (want_out) fds[1].events |= POLLOUT;
  const int ready = poll(fds, want_in || want_out ? 2 : 1, timeout_ms);
  if (ready == 0 && waits_for_budget_) budget_.relieve();
  if (ready == 0 && !waits_for_budget_) buffers_.trim();
  if ((fds[1].revents & ~POLLIN) != 0) socket_full_ = false;
  if ((fds[1].revents & ~POLLOUT) != 0) readable_ = true;
  MutexLock lock(mutex_);
  sleeping_ = false;
  if (!woken_) return;
  woken_ = false;
  uint64_t count;
  (void)!read(wake_fd_.get(), &count, sizeof count);
}

// ---- Socket ------------------------------------------------------------------------------------

void Connection::flush() {
  if (outbox_.empty() || phase_ == Phase::CUT || socket_full_) return;
  const uint64_t before = outbox_.bytes();
  const ReplyQueue::Sent sent = outbox_.flush(
      socket_.get(), [this] { return admitted(); },
      [this](Reply& reply) { release(*static_cast<Slot*>(reply.owner)); });
  if (outbox_.bytes() < before) budget_.moved(*this);
  socket_full_ = sent == ReplyQueue::Sent::WOULD_BLOCK;
  if (sent == ReplyQueue::Sent::BROKEN)
    abandon(std::string("the client is gone: ") + strerror(errno));
  // Its content was cached when the answer began, and has had to be read again. The client asks
  // once more, and is told.
  if (sent == ReplyQueue::Sent::UNREADABLE)
    abandon(std::string("a read failed when its answer had begun: ") + strerror(errno));
}

void Connection::receive_or_wait() {
  if (phase_ == Phase::CUT) return wait(false, false);
  const bool want_in = phase_ == Phase::OPEN && !blocked_;
  const bool want_out = !outbox_.empty();
  if (begun_since_receive_ > 0)
    singles_in_a_row_ =
        begun_since_receive_ == 1 ? std::min(singles_in_a_row_ + 1, kSinglesToSpin) : 0;
  // Slots that came free by sending let dispatch() go on first.
  if (blocked_ && freed_some_) return;
  // After a single request the client most likely waits for its answer: then polling at once spares
  // a receive that finds nothing.
  if (want_in && (readable_ || begun_since_receive_ > 1) && receive()) return;
  if (phase_ == Phase::CUT) return;
  if (want_in && !want_out && singles_in_a_row_ >= kSinglesToSpin && spin()) return;
  if (want_out || (want_in && receiving_ != nullptr)) budget_.stalled(*this);
  wait(want_in, want_out);
}

// Looks for the next request for a moment before the thread goes to sleep: a client that sends one
// when it has the answer to the last is back sooner than a halted core is woken. Given up, but for
// a try now and then, where that is in vain: the client takes its time, or needs this core. False:
// nothing came.
bool Connection::spin() {
  if (spin_credit_ == 0 && ++waits_since_spin_ < kWaitsPerSpinTry) return false;
  waits_since_spin_ = 0;
  const auto end = std::chrono::steady_clock::now() + kSpinTime;
  do {
    // The client may be waiting for this core.
    sched_yield();
    if (attention_.load(std::memory_order_relaxed) || receive()) {
      spin_credit_ = std::min(spin_credit_ + 1, kSpinCreditMax);
      return true;
    }
  } while (std::chrono::steady_clock::now() < end);
  spin_credit_ /= 2;
  return false;
}

// False: nothing there.
bool Connection::receive() {
  iovec pieces[2];
  const int count = reader_.receive_into(pieces);
  size_t room = 0;
  for (int i = 0; i < count; i++) room += pieces[i].iov_len;
  begun_since_receive_ = 0;
  msghdr message = {};
  message.msg_iov = pieces;
  message.msg_iovlen = static_cast<size_t>(count);
  ssize_t n;
  do n = recvmsg(socket_.get(), &message, MSG_DONTWAIT);
  while (n < 0 && errno == EINTR);
  if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
    readable_ = false;
    return false;
  }
  if (n < 0) {
    abandon(std::string("the client is gone: ") + strerror(errno));
  } else if (n == 0) {
    finish(receiving_ != nullptr || reader_.buffered() > 0
               ? "the client closed in the middle of a request"
               : "the client closed");
  } else {
    reader_.received(static_cast<size_t>(n));
    budget_.moved(*this);
    readable_ = static_cast<size_t>(n) == room;
  }
  return true;
}

}  // namespace csnap::nbd
