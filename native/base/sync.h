// Mutex, SharedMutex, CondVar, Thread and the clock: the only places where the core waits. Normally
// thin wrappers of the standard ones. When the calling thread runs under a simulation
// (testing/scheduler.h sets `current_scheduler`), every wait and hand-over becomes a step that the
// scheduler's seed decides, so that a whole volume runs single-stepped and repeatable.
//
// Invariants
//  I1  Core code waits only through these types, so a simulated run can never block the real
//  thread. I2  An object is used either always under a simulation or never.
#pragma once

#include <pthread.h>

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <thread>

namespace csnap {

// What a simulation must provide. Keys are addresses of the object waited for.
class Scheduler {
 public:
  virtual ~Scheduler() = default;
  // Lets the seed run any other actor first.
  virtual void yield() = 0;
  // Sleeps until woken by `key`; false if simulated time passed `deadline_ms` (0: no deadline)
  // first.
  virtual bool block(const void* key, uint64_t deadline_ms) = 0;
  virtual void wake_one(const void* key) = 0;
  virtual void wake_all(const void* key) = 0;
  // Starts an actor. The returned token is the key that join() blocks on.
  virtual void* spawn(const char* name, std::function<void()> body) = 0;
  virtual void join(void* actor) = 0;
  virtual uint64_t now_ms() = 0;
};

inline thread_local constinit Scheduler* current_scheduler = nullptr;

// A point at which another thread may get in between. Free outside a simulation.
inline void yield_point() {
  if (current_scheduler) [[unlikely]]
    current_scheduler->yield();
}

// Milliseconds of CLOCK_BOOTTIME (or of simulated time); never goes back.
uint64_t monotonic_ms();

class Mutex {
 public:
  void lock();
  void unlock();
  bool try_lock();

 private:
  friend class CondVar;
  std::mutex real_;
  bool held_ = false;  // under a simulation only
};

// Shared and exclusive. A waiting exclusive locker goes before new shared ones (std::shared_mutex
// lets readers starve it for ever), so nobody may take it shared twice.
class SharedMutex {
 public:
  SharedMutex();
  ~SharedMutex();
  SharedMutex(const SharedMutex&) = delete;
  void lock();
  void unlock();
  void lock_shared();
  void unlock_shared();

 private:
  pthread_rwlock_t real_;
  int holders_ = 0;  // under a simulation only: -1 exclusive, else the number of readers
};

using MutexLock = std::unique_lock<Mutex>;
using ExclusiveLock = std::unique_lock<SharedMutex>;
using SharedLock = std::shared_lock<SharedMutex>;

class CondVar {
 public:
  void wait(MutexLock& lock);
  // False on time-out. `timeout_ms` > 0.
  bool wait_for(MutexLock& lock, uint64_t timeout_ms);
  void notify_one();
  void notify_all();

 private:
  std::condition_variable_any real_;
};

// A joined-before-destruction thread; blocks all signals in the new thread.
class Thread {
 public:
  Thread() = default;
  ~Thread();
  Thread(Thread&&) = delete;
  void start(const char* name, std::function<void()> body);
  void join();
  bool started() const { return started_; }

 private:
  std::thread real_;
  void* simulated_ = nullptr;
  bool started_ = false;
};

}  // namespace csnap
