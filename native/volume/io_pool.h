// A few threads for what would make a connection wait. Callers: VolumeImpl.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "base/sync.h"

namespace csnap {

class IoPool {
 public:
  // `name`: of the threads.
  IoPool(const char* name, uint32_t threads);
  // Runs what is queued, then ends the threads.
  ~IoPool();

  void run(std::function<void()> task);

 private:
  void work();

  Mutex mutex_;
  CondVar wake_;
  std::deque<std::function<void()>> tasks_;
  bool stopping_ = false;
  std::vector<std::unique_ptr<Thread>> threads_;
};

}  // namespace csnap
