// Sections: "everybody who was inside has left". Writers of the origin and readers of store chunks
// enter one for the length of an I/O; synchronize() waits for all who entered before it. Entering
// and leaving cost one atomic exchange each and never wait.
//
// Invariants
//  N1  When synchronize() returns, no guard made before it was called is alive.
//  N2  Who enters after synchronize() began sees everything its caller stored before it.
#pragma once

#include <atomic>
#include <cstddef>

#include "base/sync.h"

namespace csnap {

class Sections {
 public:
  class Guard {
   public:
    explicit Guard(Sections& sections) : sections_(sections), slot_(sections.enter()) {}
    ~Guard() { sections_.leave(slot_); }
    Guard(const Guard&) = delete;

   private:
    Sections& sections_;
    const size_t slot_;
  };

  void synchronize();

 private:
  static constexpr size_t kSlots = 256;
  struct alignas(64) Slot {
    std::atomic<uint64_t> phase{0};  // 0: empty
  };

  size_t enter();
  void leave(size_t slot);
  bool left(const Slot& slot, uint64_t phase) const;

  Slot slots_[kSlots];
  std::atomic<uint64_t> phase_{1};
  std::atomic<bool> waiting_{false};
  Mutex synchronize_mutex_;
  Mutex mutex_;
  CondVar all_left_;
};

}  // namespace csnap
