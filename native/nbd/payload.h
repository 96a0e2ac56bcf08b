// Memory of payloads: the buffers of one connection, and the budget that all connections share.
// Callers: Connection, ConnectionSet.
//
// Invariants
//  Y1  A connection's held bytes above kFloorBytes count against the budget, and the sum of these
//      never exceeds it. The floor is every connection's own, so that small requests never wait for
//      somebody else's large ones.
//  Y2  Who waits for the budget is woken when bytes come back. Bytes held for a client that neither
//      reads nor sends for a while (kStallMs) are freed by cutting that client, if somebody waits.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "base/sync.h"
#include "nbd/wire.h"

namespace csnap::nbd {

// ---- Buffers -----------------------------------------------------------------------------------

// One payload's bytes, aligned to 4 KiB. Empty when default-made.
struct PayloadBuffer {
  struct Free {
    void operator()(std::byte* bytes) const { std::free(bytes); }
  };
  std::unique_ptr<std::byte, Free> bytes;
  uint8_t size_class = 0;
};

// Buffers of one connection in power-of-two sizes, kept for the next request. One thread.
class BufferCache {
 public:
  PayloadBuffer take(size_t length);
  void give(PayloadBuffer buffer);
  // Frees all idle buffers.
  void trim();
  bool idle() const { return idle_bytes_ == 0; }

 private:
  static constexpr size_t kSmallestBytes = 4096;
  static constexpr size_t kClasses = 14;  // 4 KiB to 32 MiB
  static_assert(kSmallestBytes << (kClasses - 1) == kPayloadBytesMax);
  static constexpr size_t kIdleBytesMax = 8 << 20;

  std::array<std::vector<PayloadBuffer>, kClasses> idle_buffers_;
  size_t idle_bytes_ = 0;
};

// ---- Budget ------------------------------------------------------------------------------------

class PayloadBudget {
 public:
  static constexpr uint64_t kFloorBytes = 256 * 1024;
  static constexpr uint64_t kStallMs = 10000;
  // One largest request must fit beside another.
  static constexpr uint64_t kLimitBytesMin = 2 * uint64_t{kPayloadBytesMax};

  // A connection, as the budget sees it.
  class Member {
   public:
    // Something came back: try again. From any thread; must not block or call the budget.
    virtual void budget_wake() = 0;
    // Close, whatever is under way. As above.
    virtual void budget_evict() = 0;

   protected:
    ~Member() = default;

   private:
    friend class PayloadBudget;
    std::atomic<uint64_t> held_{0};
    std::atomic<uint64_t> stalled_since_ms_{0};  // 0: not stalled
    bool waiting_ = false;                       // under the budget's mutex
  };

  explicit PayloadBudget(uint64_t limit_bytes, uint64_t stall_ms = kStallMs);

  void join(Member& member);
  // The member holds nothing any more.
  void leave(Member& member);

  // False: not enough left. The member then waits: budget_wake() comes when bytes were given back.
  bool try_take(Member& member, uint64_t bytes);
  void give(Member& member, uint64_t bytes);
  uint64_t held(const Member& member) const { return member.held_.load(std::memory_order_relaxed); }
  // The client reads (or sends) nothing while bytes wait for it; moved: it does again.
  void stalled(Member& member);
  void moved(Member& member) {
    if (member.stalled_since_ms_.load(std::memory_order_relaxed) != 0)
      member.stalled_since_ms_.store(0, std::memory_order_relaxed);
  }
  // Called about once a second by whoever waits: evicts the largest holder that has stalled for
  // too long, if there is one (Y2).
  void relieve();

 private:
  static uint64_t charge(uint64_t held) { return held > kFloorBytes ? held - kFloorBytes : 0; }
  bool try_charge(uint64_t bytes);

  const uint64_t limit_bytes_;
  const uint64_t stall_ms_;
  std::atomic<uint64_t> charged_{0};
  std::atomic<uint32_t> waiting_count_{0};
  Mutex mutex_;
  std::vector<Member*> members_;
};

}  // namespace csnap::nbd
