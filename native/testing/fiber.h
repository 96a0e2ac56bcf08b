// A fiber: a stack with a point at which to go on, switched by hand on one real thread. Known to
// ASan and TSan where they are compiled in. Caller: scheduler.cc.
//
// Invariants
//  I1  A fiber that ended or was abandoned is never switched to again before prepare().
//  I2  Its stack is kept for the next prepare(): nothing on an abandoned stack is unwound, so what
//  its
//      frames own is lost. Only runs that failed end this way.
#pragma once

#include <ucontext.h>

#include <cstddef>

// Elsewhere, or with -DCSNAP_FIBER_UCONTEXT, the C library switches: slower by a system call.
#if defined(__x86_64__) && !defined(CSNAP_FIBER_UCONTEXT)
#define CSNAP_FIBER_ASSEMBLY
#endif

namespace csnap {

class Fiber {
 public:
  // Without a stack: stands for whoever calls switch_to() from outside (the home of a run).
  Fiber() = default;
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next switch to this fiber calls entry(argument), which must never return.
  void prepare(void (*entry)(void*), void* argument);
  // Suspends `from`, on which the caller runs, and goes on in `to`. With `from_ends`, never
  // returns.
  static void switch_to(Fiber& from, Fiber& to, bool from_ends);
  // Frees what the sanitizers keep about a fiber that will not be switched to again.
  void retire();

 private:
  static void start(void* self);
  static void start_split(unsigned low, unsigned high);
  void arrived();

  void* mapping_ = nullptr;
  char* stack_bottom_ = nullptr;
  size_t stack_bytes_ = 0;
  void* stack_pointer_ = nullptr;  // x86-64
#if !defined(CSNAP_FIBER_ASSEMBLY)
  ucontext_t context_;
#endif
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  Fiber* came_from_ = nullptr;
  void* fake_stack_ = nullptr;  // ASan
  void* tsan_fiber_ = nullptr;  // TSan
  bool owns_tsan_fiber_ = false;
};

}  // namespace csnap
