#include "volume/io_pool.h"

namespace csnap {

IoPool::IoPool(const char* name, uint32_t threads) {
  for (uint32_t i = 0; i < threads; i++) {
    threads_.push_back(std::make_unique<Thread>());
    threads_.back()->start(name, [this] { work(); });
  }
}

IoPool::~IoPool() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    wake_.notify_all();
  }
  for (auto& thread : threads_) thread->join();
}

void IoPool::run(std::function<void()> task) {
  MutexLock lock(mutex_);
  tasks_.push_back(std::move(task));
  wake_.notify_one();
}

void IoPool::work() {
  MutexLock lock(mutex_);
  while (true) {
    while (tasks_.empty() && !stopping_) wake_.wait(lock);
    if (tasks_.empty()) return;
    std::function<void()> task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    task();
    task = nullptr;
    lock.lock();
  }
}

}  // namespace csnap
