// Opening and closing a volume, and which path a request takes.
#include <fcntl.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "volume/volume_impl.h"

namespace csnap {

using format::Superblock;

// ---- Uuid --------------------------------------------------------------------------------------

bool Uuid::operator==(const Uuid& other) const {
  return std::memcmp(bytes, other.bytes, sizeof bytes) == 0;
}

bool Uuid::is_nil() const { return *this == Uuid(); }

std::string Uuid::to_text() const {
  std::string text;
  for (int i = 0; i < 16; i++) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    char hex[3];
    std::snprintf(hex, sizeof hex, "%02x", bytes[i]);
    text += hex;
  }
  return text;
}

bool Uuid::parse(const std::string& text, Uuid& out) {
  if (text.size() != 36) return false;
  int nibble = 0;
  for (size_t i = 0; i < text.size(); i++) {
    const bool dash = i == 8 || i == 13 || i == 18 || i == 23;
    const char c = text[i];
    if (dash != (c == '-')) return false;
    if (dash) continue;
    uint8_t value;
    if (c >= '0' && c <= '9')
      value = static_cast<uint8_t>(c - '0');
    else if ((c | 32) >= 'a' && (c | 32) <= 'f')
      value = static_cast<uint8_t>((c | 32) - 'a' + 10);
    else
      return false;
    uint8_t& byte = out.bytes[nibble / 2];
    byte = nibble % 2 ? static_cast<uint8_t>(byte << 4 | value) : value;
    nibble++;
  }
  return true;
}

Uuid Uuid::random() {
  Uuid uuid;
  CSNAP_ASSERT(getrandom(uuid.bytes, sizeof uuid.bytes, 0) == sizeof uuid.bytes);
  uuid.bytes[6] = static_cast<uint8_t>((uuid.bytes[6] & 0x0f) | 0x40);  // RFC 9562, version 4
  uuid.bytes[8] = static_cast<uint8_t>((uuid.bytes[8] & 0x3f) | 0x80);
  return uuid;
}

// ---- Creating ----------------------------------------------------------------------------------

Status create_store(Device& store, const CreateOptions& options) {
  Superblock sb;
  std::memset(&sb, 0, sizeof sb);
  const uint64_t store_bytes = round_down(options.store_bytes, kBlockBytes);
  uint64_t journal = options.journal_bytes;
  if (journal == 0)
    journal = std::clamp<uint64_t>(round_down(store_bytes / 16, kBlockBytes), uint64_t{256} << 10,
                                   uint64_t{256} << 20);
  if (!is_power_of_two(options.chunk_bytes) || options.chunk_bytes < format::kChunkBytesMin ||
      options.chunk_bytes > format::kChunkBytesMax)
    return Status(Code::INVALID_ARGUMENT, "the chunk size must be a power of two from 4k to 1M");
  if (options.origin_bytes < kSectorBytes)
    return Status(Code::INVALID_ARGUMENT, "the origin is smaller than a sector (512 bytes)");
  // Below this the reserve of metadata would leave nothing for chunks.
  const uint64_t least =
      format::kJournalOffset + journal + 256 * kBlockBytes + 16 * options.chunk_bytes;
  if (store_bytes < least || store.size_bytes() < store_bytes)
    return Status(Code::INVALID_ARGUMENT,
                  store.name() + ": a snapshot store with this chunk size needs at least " +
                      std::to_string(least) + " bytes");
  if (!set_field_text(sb.volume_name, options.volume_name) ||
      !set_field_text(sb.origin_identity, options.origin.text))
    return Status(Code::INVALID_ARGUMENT, "the volume's name or the origin's identity is too long");
  set_field_text(sb.origin_path, options.origin.path);
  const Uuid ids[3] = {Uuid::random(), Uuid::random(), Uuid::random()};
  std::memcpy(sb.store_uuid, ids[0].bytes, sizeof sb.store_uuid);
  std::memcpy(sb.volume_uuid, ids[1].bytes, sizeof sb.volume_uuid);
  std::memcpy(sb.durability_id, ids[2].bytes, sizeof sb.durability_id);
  sb.store_bytes = store_bytes;
  sb.origin_bytes = round_down(options.origin_bytes, kSectorBytes);
  sb.journal_bytes = journal;
  sb.chunk_bytes = static_cast<uint32_t>(options.chunk_bytes);
  sb.on_full = static_cast<uint8_t>(options.on_full);
  sb.origin_kind = static_cast<uint8_t>(options.origin.kind);
  sb.origin_mtime_ns = options.origin.mtime_ns;
  sb.origin_ctime_ns = options.origin.ctime_ns;
  sb.state = format::kStateClean;
  sb.created_ns = options.created_ns;
  sb.generation = 1;
  sb.next_volume_id = 1;
  sb.tail_sequence = 1;
  sb.epoch_count = 1;
  sb.epochs[0].epoch = 0;  // nobody's term: the first server claims 1
  sb.epochs[0].first_sequence = 1;

  // An older store must not shine through: neither its superblocks nor its journal.
  const std::vector<std::byte> zeros(uint64_t{1} << 16);
  for (uint64_t offset : {format::kSuperblockOffset[0], format::kSuperblockOffset[1]})
    CSNAP_TRY(store.write(offset, zeros.data(), sizeof(Superblock)));
  CSNAP_TRY(store.sync());
  for (uint64_t done = 0; done < journal;) {
    const uint64_t now = std::min<uint64_t>(zeros.size(), journal - done);
    CSNAP_TRY(store.write(format::kJournalOffset + done, zeros.data(), now));
    done += now;
  }
  return Store::format(store, sb);
}

Result<std::unique_ptr<Superblock>> read_superblock(Device& store) {
  Result<SuperblockFound> found = load_superblock(store);
  if (!found.ok()) return found.take_status();
  return std::move(found.value().superblock);
}

// ---- Opening -----------------------------------------------------------------------------------

namespace {

uint64_t real_time_ns() {
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000 + static_cast<uint64_t>(now.tv_nsec);
}

VolumeOptions with_defaults(VolumeOptions options) {
  if (!options.clock_ns) options.clock_ns = real_time_ns;
  if (!options.make_uuid) options.make_uuid = Uuid::random;
  return options;
}

}  // namespace

Result<std::unique_ptr<Volume>> Volume::open(VolumeOptions options) {
  auto volume = std::make_unique<VolumeImpl>(std::move(options));
  CSNAP_TRY(volume->start());
  return std::unique_ptr<Volume>(std::move(volume));
}

VolumeImpl::VolumeImpl(VolumeOptions options)
    : options_(with_defaults(std::move(options))),
      gated_origin_(gated(*options_.origin)),
      gated_store_(gated(*options_.store)),
      origin_(gated_origin_ ? *gated_origin_ : *options_.origin),
      store_device_(gated_store_ ? *gated_store_ : *options_.store) {}

// F2: whichever thread meets the closed gate first stops the volume, background work included.
// While the store is being opened there is nothing to stop yet: the open itself fails.
std::unique_ptr<GatedDevice> VolumeImpl::gated(Device& device) {
  if (!options_.gate) return nullptr;
  return std::make_unique<GatedDevice>(device, *options_.gate, [this](const Status& why) {
    if (store_) fail(why, false);
  });
}

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

// What the superblock remembers of the origin against what is there.
Status VolumeImpl::judge_origin(const Superblock& sb, bool& accepted) const {
  Status status;
  const std::string remembered = field_text(sb.origin_identity);
  if (sb.origin_kind != static_cast<uint8_t>(options_.identity.kind) ||
      remembered != options_.identity.text)
    status = Status(Code::WRONG_ORIGIN,
                    origin_.name() + ": this is not the origin that the store belongs to (" +
                        options_.identity.text + " instead of " + remembered +
                        "); name the right one, or serve with --accept-origin if it is a copy");
  else if (round_down(origin_.size_bytes(), kSectorBytes) != sb.origin_bytes)
    status =
        Status(Code::WRONG_ORIGIN, origin_.name() + ": its size has changed from " +
                                       std::to_string(sb.origin_bytes) + " to " +
                                       std::to_string(origin_.size_bytes()) +
                                       " bytes since it was last served; put the former size back");
  else if ((sb.state & format::kStateClean) && options_.identity.kind == format::OriginKind::FILE &&
           (sb.origin_mtime_ns != options_.identity.mtime_ns))
    status = Status(Code::ORIGIN_CHANGED,
                    origin_.name() +
                        ": it was written while it was not served, so its snapshots no "
                        "longer tell what it held; serve with --accept-origin to go on "
                        "(its snapshots are then marked suspect)");
  accepted = false;
  if (options_.identity.text.size() >= sizeof sb.origin_identity)
    return Status(Code::INVALID_ARGUMENT, origin_.name() + ": its identity is too long to be kept");
  if (status.ok() || options_.look_only) return Status();
  // A size can't be accepted: the index says nothing about what was cut off or added.
  if (!options_.accept_origin || round_down(origin_.size_bytes(), kSectorBytes) != sb.origin_bytes)
    return status;
  accepted = true;
  return Status();
}

Status VolumeImpl::start() {
  Result<SuperblockFound> found = load_superblock(store_device_);
  if (!found.ok()) return found.take_status();
  if (options_.accept_loss && found.value().superblock->state & format::kStateSyncFailed) {
    // W9: go on with what is on the media, not with what a cache still shows of it.
    store_device_.drop_cache();
    origin_.drop_cache();
    found = load_superblock(store_device_);
    if (!found.ok()) return found.take_status();
  }
  const Superblock sb = *found.value().superblock;
  bool accepted = false;
  CSNAP_TRY(judge_origin(sb, accepted));
  StoreOptions store;
  store.store = &store_device_;
  store.origin = &origin_;
  store.look_only = options_.look_only;
  store.accept_loss = options_.accept_loss;
  store.epoch = options_.epoch;
  if (accepted)
    store.accept_origin = [this](Superblock& next) {
      next.origin_kind = static_cast<uint8_t>(options_.identity.kind);
      CSNAP_ASSERT(set_field_text(next.origin_identity, options_.identity.text));
      set_field_text(next.origin_path, options_.identity.path);
    };
  store.durability = options_.durability;
  store.index = options_.index;
  std::memcpy(store.boot_id.data(), options_.boot_id.bytes, store.boot_id.size());
  store.make_uuid = [this] {
    const Uuid uuid = options_.make_uuid();
    UuidBytes bytes;
    std::memcpy(bytes.data(), uuid.bytes, bytes.size());
    return bytes;
  };
  store.on_failed = [this](const Status& why) { on_failed(why); };
  Result<std::unique_ptr<Store>> opened = Store::open(std::move(store), found.take());
  if (!opened.ok()) return opened.take_status();
  store_ = opened.take();
  CSNAP_TRY(open_parts());
  // Records of former terms need their place in the epoch chain until they are applied (W5).
  if (options_.look_only || !staged_->any() || !store_->chain_is_long()) return Status();
  CSNAP_TRY(drain());
  if (!staged_->any()) return Status();
  return Status(Code::NO_SPACE,
                store_->device().name() +
                    ": acknowledged writes of too many former servers are still in the snapshot "
                    "store, as there is no room to put them in place: make room for " +
                    origin_.name());
}

Status VolumeImpl::open_parts() {
  const Superblock& sb = store_->superblock();
  chunk_bytes_ = sb.chunk_bytes;
  group_slots_ = std::clamp<uint64_t>(kGroupBytes / chunk_bytes_, 1, options_.group_chunks_max);
  suspect_serial_ = sb.suspect_serial;
  origin_bytes_ = sb.origin_bytes;
  chunk_count_ = div_up(origin_bytes_, chunk_bytes_);
  sync_mode_ = options_.durability == format::DurabilityMode::SYNC;
  verified_ = std::make_unique<ChunkBitmap>(store_->space_map().block_count() /
                                            store_->space_map().chunk_blocks());
  const std::vector<Generation>& live = store_->snapshots().live(kOriginVolume);
  state_owner_ = std::make_shared<GenerationState>(sb.generation, live.empty() ? 0 : live.back(),
                                                   chunk_count_);
  state_owner_->open = true;
  state_.store(state_owner_.get());
  staged_ = std::make_unique<StagedTable>(chunk_count_, chunk_bytes_);
  allocated_ = std::make_unique<ChunkBitmap>(chunk_count_);
  staged_limit_ = sb.staged_limit_bytes;
  CSNAP_TRY(load_recovered());
  store_->keep_from([this] { return staged_->oldest(); },
                    [this](bool copy) { copy ? relieve_journal() : apply_staged(); });
  origin_view_ = std::make_shared<VolumeView>();
  origin_view_->size_bytes = origin_bytes_;
  origin_view_->read_only = options_.look_only;
  for (const Snapshot* snapshot : store_->snapshots().all())
    if (snapshot->state == format::SnapshotState::LIVE)
      openable_[snapshot->uuid] = {snapshot->generation, snapshot->size_bytes};
  fill_info(last_info_);
  if (options_.look_only) return Status();
  pool_ = std::make_unique<IoPool>("csnap-io", options_.io_threads);
  copier_ = std::make_unique<IoPool>("csnap-copy", 1);
  // Whatever a former term deleted and did not get to.
  reclaim_kicked_ = true;
  reclaim_idle_ = false;
  applier_.start("csnap-apply", [this] { apply_loop(); });
  committer_.start("csnap-commit", [this] { commit_loop(); });
  reclaimer_.start("csnap-reclaim", [this] { reclaim_loop(); });
  maintainer_.start("csnap-checkpt", [this] { maintain(); });
  return Status();
}

// ---- Closing -----------------------------------------------------------------------------------

void VolumeImpl::stop_threads(bool drain) {
  if (!pool_) return;
  {
    MutexLock lock(space_mutex_);
    reclaim_stop_ = true;
    space_wake_.notify_all();
  }
  reclaimer_.join();
  {
    MutexLock lock(pending_mutex_);
    committer_stop_ = true;
    committer_drain_ = drain;
    pending_wake_.notify_all();
  }
  committer_.join();
  copier_.reset();
  {
    MutexLock lock(apply_mutex_);
    apply_stop_ = true;
    apply_drain_ = drain;
    apply_wake_.notify_all();
    apply_done_.notify_all();
  }
  applier_.join();
  {
    MutexLock lock(maintain_mutex_);
    maintain_stop_ = true;
    maintain_wake_.notify_all();
  }
  maintainer_.join();
  pool_.reset();
}

VolumeImpl::~VolumeImpl() { stop_threads(false); }

Status VolumeImpl::close() {
  CSNAP_ASSERT(!closed_);
  closed_ = true;
  if (options_.look_only) return Status();
  // While the reclaimer can still make room for what staged writes owe.
  if (!store_->failed()) (void)drain();
  stop_threads(true);
  if (store_->failed()) return store_->failure();
  if (Status status = origin_.sync(); !status.ok()) {
    fail(status, true);
    return store_->failure();
  }
  if (staged_->any())
    return Status(Code::NO_SPACE, origin_.name() +
                                      ": acknowledged writes are still in the snapshot store, as "
                                      "there is no room to put them in place: make room and serve "
                                      "the volume again");
  const OriginIdentity identity =
      options_.reread_identity ? options_.reread_identity() : options_.identity;
  return store_->checkpoint(true, [&](Superblock& sb) {
    sb.origin_mtime_ns = identity.mtime_ns;
    sb.origin_ctime_ns = identity.ctime_ns;
  });
}

// The checkpoint thread: looks after journal and dirty blocks before anybody has to wait for them,
// and, where another host may take over, after the store's epoch (F3).
void VolumeImpl::maintain() {
  constexpr uint64_t kLookEveryMs = 50;
  constexpr int kTermLookEvery = 14;  // looks: as often as a grant is renewed
  MutexLock lock(maintain_mutex_);
  for (int looks = 1; !maintain_stop_; looks++) {
    maintain_wake_.wait_for(lock, kLookEveryMs);
    if (maintain_stop_ || store_->failed()) continue;
    lock.unlock();
    if (options_.gate && looks % kTermLookEvery == 0 && !store_->check_term().ok()) {
      lock.lock();
      continue;
    }
    if (store_->journal_used_bytes() * 4 >= store_->journal_bytes()) apply_staged();
    if (store_->wants_checkpoint()) {
      Status status = store_->checkpoint();
      // No room for metadata is no failure: reclaim, or the end of a check, brings some.
      if (!status.ok() && status.code() != Code::NO_SPACE) fail(status, false);
    }
    lock.lock();
  }
}

Status VolumeImpl::checkpoint() { return drain(); }

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
