// FLUSH, FUA and mode sync. One sync of the origin serves all who asked before it began (W3):
// in-place data is the only acknowledged data that may not be durable yet, as exceptions are synced
// before anything is overwritten.
#include "volume/volume_impl.h"

namespace csnap {

void VolumeImpl::enqueue_flush(IoRequest& request) {
  MutexLock lock(flush_mutex_);
  flush_waiting_.push_back(&request);
  if (flush_running_) return;
  flush_running_ = true;
  pool_->run([this] { flush_round(); });
}

void VolumeImpl::flush_round() {
  while (true) {
    std::vector<IoRequest*> group;
    {
      MutexLock lock(flush_mutex_);
      if (flush_waiting_.empty()) {
        flush_running_ = false;
        return;
      }
      group.swap(flush_waiting_);
    }
    Status status = store_->failed() ? store_->failure() : origin_.sync();
    if (!status.ok()) fail(status, true);
    for (IoRequest* request : group) {
      // W9: the volume may stop while others of the group are being answered.
      if (store_->failed()) status = store_->failure();
      finish(*request, status);
    }
  }
}

}  // namespace csnap
