// FLUSH, FUA and mode sync. One sync of the journal and one of the origin serve all who asked
// before they began (W3): staged data and what was written in place is the only acknowledged data
// that may not be durable yet. A device that nobody wrote to since is left alone.
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
    Status status = store_->failed() ? store_->failure() : store_->sync_journal();
    bool origin = false;
    for (const IoRequest* request : group)
      origin = origin || request->op == IoOp::FLUSH || request->internal.in_place;
    // What is acknowledged before this look has set the mark before.
    if (status.ok() && origin && origin_dirty_.exchange(false, std::memory_order_acq_rel)) {
      status = origin_.sync();
      if (!status.ok()) fail(status, true);
    }
    for (IoRequest* request : group) {
      // W9: the volume may stop while others of the group are being answered.
      if (store_->failed()) status = store_->failure();
      finish(*request, status);
    }
  }
}

}  // namespace csnap
