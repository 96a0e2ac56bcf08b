// One NBD connection in its transmission phase: a thread that reads requests from a stream socket,
// has the volume run them, and sends the answers. Made by ConnectionSet.
//
// All socket I/O and all bookkeeping is the connection thread's. Other threads touch only what
// mutex_ guards: completed requests, the order to stop, and the wake-up descriptor.
//
// Invariants
//  N1  Every request that was read whole is answered exactly once, unless the connection is cut; a
//      WRITE whose payload did not arrive whole does nothing.
//  N2  Memory is bounded: kSlotsMax requests, kHeldBytesMax of payload, the budget of all
//      connections. At a bound no more is read from the socket.
//  N3  The thread ends only when no request is under way at the volume, so `view` and the buffers
//      outlive every use.
//  N4  Answers wait for no further request: they are sent after every kRepliesPerFlush, and
//      whenever no whole request is left in the receive buffer. So are small writes submitted,
//      which are gathered until then.
//  N5  F2: nothing is submitted while the volume's gate is closed, and no byte of an answer, a
//      refusal included, is sent then: the connection is cut.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/sync.h"
#include "io/unique_fd.h"
#include "nbd/payload.h"
#include "nbd/reply.h"
#include "nbd/request_reader.h"
#include "volume/volume.h"

namespace csnap::nbd {

struct ConnectionOptions {
  UniqueFd socket;  // connected stream socket; may be in either blocking mode
  std::shared_ptr<View> view;
  bool read_only = true;  // besides what the view allows
  bool structured_replies = false;
  int64_t base_allocation_id = -1;  // of the metadata context; -1: not negotiated
  std::vector<uint8_t> initial_bytes;
};

struct ConnectionStats {
  uint64_t id = 0;
  uint64_t requests = 0;
  uint64_t read_bytes = 0;
  uint64_t write_bytes = 0;
  uint64_t in_flight = 0;
};

class Connection final : private PayloadBudget::Member {
 public:
  // Called on the connection's thread; must not block for long.
  struct Callbacks {
    // A request failed for a reason worth a line; at most one a second.
    std::function<void(uint64_t id, const std::string& message)> problem;
    // The connection has ended: the socket is closed, nothing is under way.
    std::function<void(uint64_t id, const std::string& reason)> closed;
  };

  // `volume` and `budget` outlive the connection.
  Connection(uint64_t id, Volume& volume, PayloadBudget& budget, Callbacks callbacks,
             ConnectionOptions options);
  // Waits for the thread.
  ~Connection();
  // Errors: IO_ERROR (no descriptors left).
  Status start();

  // From any thread. Stops reading, finishes what is under way, answers it, closes.
  void drain();
  // From any thread. Cuts the socket at once; issued requests finish, unanswered.
  void cut(const std::string& reason);
  ConnectionStats stats() const;

 private:
  static constexpr size_t kSlotsMax = 256;
  static constexpr uint64_t kHeldBytesMax = uint64_t{64} << 20;
  static constexpr size_t kRepliesPerFlush = 4;
  static constexpr uint64_t kReplyBytesPerFlush = 64 * 1024;
  static constexpr uint32_t kGatheredBytesMax = 16 * 1024;  // of a write
  static constexpr uint32_t kLentBytesMin = 128 * 1024;     // below, two copies cost less
  static constexpr size_t kExtentsPerReply = 8192;
  static constexpr int kUnixSendBytes = 2 << 20;
  static constexpr int kLingerMs = 1000;
  static constexpr int kBudgetPollMs = 1000;
  static constexpr int kIdleTrimMs = 2000;
  static constexpr std::chrono::microseconds kSpinTime{50};
  static constexpr int kSpinCreditMax = 16;
  static constexpr int kWaitsPerSpinTry = 64;
  static constexpr int kSinglesToSpin = 8;
  static_assert(kHeldBytesMax >= kPayloadBytesMax);

  // A request from header to answer.
  struct Slot {
    IoRequest io;
    Connection* connection = nullptr;
    uint64_t cookie = 0;
    uint64_t offset = 0;
    uint32_t length = 0;
    Command command = Command::READ;
    uint16_t flags = 0;
    Error refusal = Error::NONE;  // by judge()
    const char* refusal_reason = "";
    uint32_t held_bytes = 0;  // of the budget
    PayloadBuffer buffer;
    std::vector<BlockStatusExtent> extents;
    Reply reply;
    Slot* next = nullptr;  // in completed_
  };

  enum class Phase {
    OPEN,
    FINISHING,  // no more requests; what is under way is answered
    CUT,        // no more socket I/O; what is under way is waited for
  };
  enum class Order { NONE, DRAIN, CUT };

  // connection.cc: the thread and the socket
  void run();
  void take_orders_and_completions();
  void flush();
  void receive_or_wait();
  bool receive();
  bool spin();
  void wait(bool want_in, bool want_out);
  bool admitted();
  void close_socket();
  void finish(const std::string& reason);
  void abandon(const std::string& reason);
  void wake_locked();
  void budget_wake() override;
  void budget_evict() override;

  // connection_requests.cc: requests and answers
  void dispatch();
  bool begin(const Request& request);
  Slot* take_slot();
  void release(Slot& slot);
  void release_payload(Slot& slot);
  void submit(Slot& slot);
  void submit_io(Slot& slot);
  void gather(Slot& slot);
  void submit_gathered();
  void dispatch_received();
  void submit_block_status(Slot& slot);
  static void io_done(IoRequest& io);
  void completed(Slot& slot);
  void answer(Slot& slot);
  void build_reply(Slot& slot, Error error, const std::string& message);
  void report(const Slot& slot, const Status& status);

  const uint64_t id_;
  Volume& volume_;
  Gate* const gate_;  // may be null
  PayloadBudget& budget_;
  const Callbacks callbacks_;
  std::shared_ptr<View> view_;
  const bool structured_replies_;
  const int64_t base_allocation_id_;
  ExportRules rules_;
  Thread thread_;

  // The thread's own.
  RequestReader reader_;
  ReplyQueue outbox_;
  BufferCache buffers_;
  std::vector<std::unique_ptr<Slot>> slots_;
  std::vector<Slot*> free_slots_;
  Slot* receiving_ = nullptr;  // a WRITE (or a refused one) whose payload is on its way
  Phase phase_ = Phase::OPEN;
  std::string reason_;                // why it ended
  size_t under_way_ = 0;              // at the volume
  std::vector<IoRequest*> gathered_;  // empty but in dispatch()
  bool blocked_ = false;              // a header waits for a slot, for bytes or for the budget
  bool freed_some_ = false;           // of slots or bytes, since dispatch() looked last
  bool waits_for_budget_ = false;
  bool readable_ = true;  // the socket may hold more
  size_t begun_since_receive_ = 0;
  int spin_credit_ = kSpinCreditMax;  // grows with every spin that was worth it
  int waits_since_spin_ = 0;
  int singles_in_a_row_ = 0;  // receives that brought one request, up to kSinglesToSpin
  bool socket_full_ = false;
  uint64_t reported_ms_ = 0;
  uint64_t unreported_ = 0;

  std::atomic<uint64_t> requests_{0};
  std::atomic<uint64_t> read_bytes_{0};
  std::atomic<uint64_t> write_bytes_{0};
  std::atomic<uint64_t> in_flight_{0};

  // Guarded by mutex_.
  mutable Mutex mutex_;
  UniqueFd socket_;  // closed under the mutex; the thread reads it without
  UniqueFd wake_fd_;
  bool sleeping_ = false;
  bool woken_ = false;  // wake_fd_ has been written since the thread went to sleep
  Slot* completed_first_ = nullptr;
  Slot* completed_last_ = nullptr;
  Order order_ = Order::NONE;
  std::string order_reason_;
  // A hint that one of the two above is there.
  std::atomic<bool> attention_{false};
};

}  // namespace csnap::nbd
