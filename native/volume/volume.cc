// Which path a request takes; failure, events, info.
#include <algorithm>
#include <cstring>

#include "volume/volume_impl.h"

namespace csnap {

using format::Superblock;

// ---- Requests ----------------------------------------------------------------------------------

uint64_t VolumeImpl::chunk_length(ChunkIndex chunk) const {
  return std::min(chunk_bytes_, origin_bytes_ - chunk * chunk_bytes_);
}

std::shared_ptr<GenerationState> VolumeImpl::generation_state() {
  MutexLock lock(state_mutex_);
  return state_owner_;
}

std::shared_ptr<View> VolumeImpl::open_origin() { return origin_view_; }

Result<std::shared_ptr<View>> VolumeImpl::open_snapshot(const Uuid& uuid) {
  UuidBytes bytes;
  std::memcpy(bytes.data(), uuid.bytes, bytes.size());
  MutexLock views(views_mutex_);
  const auto snapshot = openable_.find(bytes);
  if (snapshot == openable_.end()) return Status(Code::NOT_FOUND, "no such snapshot");
  if (const auto at = views_.find(bytes); at != views_.end())
    if (std::shared_ptr<VolumeView> view = at->second.lock()) return std::shared_ptr<View>(view);
  auto view = std::make_shared<VolumeView>();
  view->size_bytes = snapshot->second.size_bytes;
  view->read_only = true;
  view->uuid = uuid;
  view->generation = snapshot->second.generation;
  views_[bytes] = view;
  return std::shared_ptr<View>(view);
}

void VolumeImpl::finish(IoRequest& request, Status status) {
  request.status = std::move(status);
  request.done(request);
}

// From here on a hand-over costs less than what it makes wait.
constexpr uint64_t kLargeWriteBytes = 256 * 1024;

// False: the volume has failed, which the request's status says.
bool VolumeImpl::begin_submit(IoRequest& request) {
  request.status = Status();
  request.internal = {};
  request.cached_file = -1;
  CSNAP_ASSERT(request.offset + request.length <= view_of(request).size_bytes);
  if (!store_->failed()) return true;
  request.status = store_->failure();
  return false;
}

void VolumeImpl::count_write(const IoRequest& request) {
  counters_.writes.fetch_add(1, std::memory_order_relaxed);
  counters_.write_bytes.fetch_add(request.length, std::memory_order_relaxed);
}

bool VolumeImpl::submit(IoRequest& request, bool may_block) {
  if (!begin_submit(request)) return true;
  VolumeView& view = view_of(request);
  const bool origin = view.generation == 0;
  switch (request.op) {
    case IoOp::READ:
      counters_.reads.fetch_add(1, std::memory_order_relaxed);
      counters_.read_bytes.fetch_add(request.length, std::memory_order_relaxed);
      if (request.length == 0) return true;
      if (origin && request.takes_cached_file && lend_origin(request)) return true;
      if (origin ? read_origin_nowait(request.offset, request.length, request.data)
                 : read_snapshot_nowait(view, request.offset, request.length, request.data))
        return true;
      break;
    case IoOp::CACHE:
      return true;  // a hint; the page cache does without
    case IoOp::FLUSH:
      counters_.flushes.fetch_add(1, std::memory_order_relaxed);
      if (!origin) return true;
      enqueue_flush(request);
      return false;
    case IoOp::WRITE:
    case IoOp::TRIM:
    case IoOp::WRITE_ZEROES:
      CSNAP_ASSERT(origin && !options_.look_only);
      count_write(request);
      // A write waits for nothing but the page cache, but a large one keeps its connection from
      // taking the next payload meanwhile; zeroing and trimming work on the file's map.
      if ((request.op == IoOp::WRITE && request.length < kLargeWriteBytes) || may_block)
        return attempt_write(request) == Attempt::DONE;
      pool_->run([this, &request] {
        if (attempt_write(request) == Attempt::DONE) finish(request, request.status);
      });
      return false;
  }
  const auto read = [this, &request, &view, origin] {
    return origin ? read_origin(request.offset, request.length, request.data)
                  : read_snapshot(view, request.offset, request.length, request.data);
  };
  if (may_block || !pool_) {
    request.status = read();
    return true;
  }
  pool_->run([this, &request, read] { finish(request, read()); });
  return false;
}

uint64_t VolumeImpl::submit_writes(std::span<IoRequest* const> requests) {
  CSNAP_ASSERT(requests.size() <= kWritesTogetherMax && !options_.look_only);
  bool failed = false;
  for (IoRequest* request : requests) {
    CSNAP_ASSERT(request->op == IoOp::WRITE && view_of(*request).generation == 0);
    failed = !begin_submit(*request) || failed;
    count_write(*request);
  }
  if (!failed) stage_together(requests);
  uint64_t done = 0;
  // What is staged is through with all but its sync.
  for (size_t i = 0; i < requests.size(); i++)
    if (attempt_write(*requests[i]) == Attempt::DONE) done |= uint64_t{1} << i;
  // W9: the volume may have stopped behind the first of them.
  if (store_->failed())
    for (size_t i = 0; i < requests.size(); i++)
      if (done >> i & 1 && requests[i]->status.ok()) requests[i]->status = store_->failure();
  return done;
}

Status VolumeImpl::run(IoRequest& request) {
  struct Waiter {
    Mutex mutex;
    CondVar done;
    bool finished = false;
  } waiter;
  request.owner = &waiter;
  request.done = [](IoRequest& finished) {
    auto* owner = static_cast<Waiter*>(finished.owner);
    MutexLock lock(owner->mutex);
    owner->finished = true;
    owner->done.notify_one();
  };
  if (submit(request, true)) return request.status;
  MutexLock lock(waiter.mutex);
  while (!waiter.finished) waiter.done.wait(lock);
  return request.status;
}

void VolumeImpl::run_on_pool(std::function<void()> task) { pool_->run(std::move(task)); }

// ---- Failure, events, info ---------------------------------------------------------------------

// F2, W9: before what is no device's reply is acknowledged.
Status VolumeImpl::still_granted() {
  if (store_->failed()) return store_->failure();
  if (!options_.gate || options_.gate->admit()) return Status();
  fail(Status(Code::FENCED, store_device_.name() +
                                ": the grant of this server's epoch has ended; it writes and "
                                "acknowledges nothing more"),
       false);
  return store_->failure();
}

void VolumeImpl::fail(const Status& why, bool sync_failed) { store_->fail(why, sync_failed); }

// The volume has stopped (W9), whoever found out.
void VolumeImpl::on_failed(const Status& why) {
  emit(VolumeEvent::Kind::FAILED, nullptr, "the volume has stopped: " + why.message(),
       why.code() == Code::FENCED ? Code::FENCED : Code::FAILED);
  {
    MutexLock lock(space_mutex_);
    space_changed_.notify_all();
  }
  wake_applier();
}

void VolumeImpl::emit(VolumeEvent::Kind kind, const Snapshot* snapshot, std::string message,
                      Code code) {
  if (!options_.on_event) return;
  VolumeEvent event;
  event.kind = kind;
  if (snapshot) {
    std::memcpy(event.snapshot.bytes, snapshot->uuid.data(), snapshot->uuid.size());
    event.name = snapshot->name;
  }
  event.message = std::move(message);
  event.code = code;
  options_.on_event(event);
}

void VolumeImpl::fill_info(VolumeInfo& info) {
  {
    const Superblock& sb = store_->superblock();
    info.name = field_text(sb.volume_name);
    std::memcpy(info.volume_uuid.bytes, sb.volume_uuid, 16);
    std::memcpy(info.store_uuid.bytes, sb.store_uuid, 16);
    std::memcpy(info.durability_id.bytes, sb.durability_id, 16);
    info.epoch = store_->epoch();
    info.superblock_sequence = sb.sequence;
    info.durability = static_cast<format::DurabilityMode>(sb.durability_mode);
    info.on_full = static_cast<format::OnFull>(sb.on_full);
    info.origin_bytes = sb.origin_bytes;
    info.store_bytes = sb.store_bytes;
    info.chunk_bytes = sb.chunk_bytes;
    info.journal_bytes = sb.journal_bytes;
    info.origin_path = field_text(sb.origin_path);
    info.origin_identity = field_text(sb.origin_identity);
    info.created_ns = sb.created_ns;
    info.generation = sb.generation;
    info.hold = hold_info();
    info.sync_failed = sb.state & format::kStateSyncFailed;
    info.suspect = sb.suspect_serial > 0;
    info.reclaim_active = store_->snapshots().deleted_count() > 0;
    info.reclaim_rate_bytes = sb.reclaim_rate_bytes;
    info.staged_limit_bytes = sb.staged_limit_bytes;
    info.cache_limit_bytes = sb.cache_limit_bytes;
    info.snapshots_live = static_cast<uint32_t>(store_->snapshots().live_count());
    info.snapshots_deleting = static_cast<uint32_t>(store_->snapshots().deleted_count());
    info.journal_used_bytes = store_->journal_used_bytes();
    info.blocks_total = store_->space_map().block_count();
    info.blocks_free = store_->space_map().free_blocks();
    info.blocks_reserve = store_->reserve_blocks();
    uint64_t data = 0;
    for (const auto& [holders, count] : store_->counters().buckets()) data += count;
    info.blocks_data = data * store_->space_map().chunk_blocks();
    const uint64_t used = store_->space_map().used_blocks();
    const uint64_t head = (format::kJournalOffset + sb.journal_bytes) / kBlockBytes;
    info.blocks_metadata = used - std::min(used, info.blocks_data + head);
  }
}

VolumeInfo VolumeImpl::info() {
  VolumeInfo info;
  {
    MutexLock lock = store_->lock();
    fill_info(info);
  }
  add_counters(info);
  return info;
}

VolumeInfo VolumeImpl::recent_info() {
  constexpr int kTriesMax = 10;
  VolumeInfo info;
  {
    MutexLock last(info_mutex_);
    for (int tries = 0; tries < kTriesMax; tries++) {
      if (MutexLock lock = store_->try_lock(); lock.owns_lock()) {
        last_info_ = VolumeInfo();
        fill_info(last_info_);
        break;
      }
      info_pause_.wait_for(last, 1);
    }
    info = last_info_;
  }
  add_counters(info);
  return info;
}

void VolumeImpl::add_counters(VolumeInfo& info) const {
  info.exceptions = store_->index().stats().entries;
  info.clean = store_->recovery().was_clean;
  info.replayed_records = store_->recovery().records;
  info.dropped_entries = store_->recovery().dropped_entries;
  info.lost_entries = store_->recovery().lost_entries;
  info.failed = store_->failed();
  if (info.failed) {
    const Status failure = store_->failure();
    info.failure = failure.message();
    info.fenced = failure.code() == Code::FENCED;
  }
  if (options_.gate) info.gate_refusals = options_.gate->refusals();
  info.reads = counters_.reads.load();
  info.writes = counters_.writes.load();
  info.flushes = counters_.flushes.load();
  info.read_bytes = counters_.read_bytes.load();
  info.write_bytes = counters_.write_bytes.load();
  info.copy_outs = counters_.copy_outs.load();
  info.zero_chunks = counters_.zero_chunks.load();
  info.commits = counters_.commits.load();
  info.checkpoints = store_->checkpoints();
  info.parked = counters_.parked.load();
  info.staged = counters_.staged.load();
  info.applied = counters_.applied.load();
  info.staged_bytes = staged_->bytes();
  info.checksum_errors = counters_.checksum_errors.load();
  info.chunks_freed = counters_.chunks_freed.load();
}

}  // namespace csnap
