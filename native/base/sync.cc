#include "base/sync.h"

#include <pthread.h>
#include <signal.h>
#include <time.h>

#include <chrono>

#include "base/assert.h"

namespace csnap {

uint64_t monotonic_ms() {
  if (current_scheduler) return current_scheduler->now_ms();
  timespec now;
  clock_gettime(CLOCK_BOOTTIME, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000 + static_cast<uint64_t>(now.tv_nsec) / 1000000;
}

void Mutex::lock() {
  if (!current_scheduler) return real_.lock();
  current_scheduler->yield();
  while (held_) current_scheduler->block(this, 0);
  held_ = true;
}

void Mutex::unlock() {
  if (!current_scheduler) return real_.unlock();
  CSNAP_ASSERT(held_);
  held_ = false;
  current_scheduler->wake_one(this);
}

bool Mutex::try_lock() {
  if (!current_scheduler) return real_.try_lock();
  if (held_) return false;
  held_ = true;
  return true;
}

namespace {

// The calls fail only where the program is wrong (EDEADLK, EINVAL).
void lock_or_die(int error_number) { CSNAP_ASSERT(error_number == 0); }

}  // namespace

SharedMutex::SharedMutex() {
  pthread_rwlockattr_t attributes;
  lock_or_die(pthread_rwlockattr_init(&attributes));
  lock_or_die(
      pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP));
  lock_or_die(pthread_rwlock_init(&real_, &attributes));
  lock_or_die(pthread_rwlockattr_destroy(&attributes));
}

SharedMutex::~SharedMutex() { lock_or_die(pthread_rwlock_destroy(&real_)); }

void SharedMutex::lock() {
  if (!current_scheduler) return lock_or_die(pthread_rwlock_wrlock(&real_));
  current_scheduler->yield();
  while (holders_ != 0) current_scheduler->block(this, 0);
  holders_ = -1;
}

void SharedMutex::unlock() {
  if (!current_scheduler) return lock_or_die(pthread_rwlock_unlock(&real_));
  CSNAP_ASSERT(holders_ == -1);
  holders_ = 0;
  current_scheduler->wake_all(this);
}

void SharedMutex::lock_shared() {
  if (!current_scheduler) return lock_or_die(pthread_rwlock_rdlock(&real_));
  current_scheduler->yield();
  while (holders_ < 0) current_scheduler->block(this, 0);
  holders_++;
}

void SharedMutex::unlock_shared() {
  if (!current_scheduler) return lock_or_die(pthread_rwlock_unlock(&real_));
  CSNAP_ASSERT(holders_ > 0);
  if (--holders_ == 0) current_scheduler->wake_all(this);
}

void CondVar::wait(MutexLock& lock) {
  if (!current_scheduler) return real_.wait(lock);
  // Simulated actors switch only inside the scheduler, so nothing comes between these two steps.
  lock.unlock();
  current_scheduler->block(this, 0);
  lock.lock();
}

bool CondVar::wait_for(MutexLock& lock, uint64_t timeout_ms) {
  if (!current_scheduler)
    return real_.wait_for(lock, std::chrono::milliseconds(timeout_ms)) ==
           std::cv_status::no_timeout;
  lock.unlock();
  const bool woken = current_scheduler->block(this, current_scheduler->now_ms() + timeout_ms);
  lock.lock();
  return woken;
}

void CondVar::notify_one() {
  if (!current_scheduler) return real_.notify_one();
  current_scheduler->wake_one(this);
}

void CondVar::notify_all() {
  if (!current_scheduler) return real_.notify_all();
  current_scheduler->wake_all(this);
}

Thread::~Thread() { CSNAP_ASSERT(!started_); }

void Thread::start(const char* name, std::function<void()> body) {
  CSNAP_ASSERT(!started_);
  started_ = true;
  if (current_scheduler) {
    simulated_ = current_scheduler->spawn(name, std::move(body));
    return;
  }
  // Signals belong to the main thread; a worker inherits the mask it is born with.
  sigset_t all;
  sigset_t former;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &former);
  real_ = std::thread(std::move(body));
  pthread_setname_np(real_.native_handle(), name);
  pthread_sigmask(SIG_SETMASK, &former, nullptr);
}

void Thread::join() {
  if (!started_) return;
  if (simulated_)
    current_scheduler->join(simulated_);
  else
    real_.join();
  simulated_ = nullptr;
  started_ = false;
}

}  // namespace csnap
