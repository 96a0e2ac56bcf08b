// A volume's life: a store is made, opened, looked after, closed.
#include <time.h>

#include <algorithm>
#include <cstring>

#include "volume/volume_impl.h"

namespace csnap {

using format::Superblock;

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
  CSNAP_TRY(drain(false));
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

void VolumeImpl::stop_threads() {
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
    pending_wake_.notify_all();
  }
  committer_.join();
  copier_.reset();
  {
    MutexLock lock(apply_mutex_);
    apply_stop_ = true;
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

VolumeImpl::~VolumeImpl() { stop_threads(); }

Status VolumeImpl::close() {
  CSNAP_ASSERT(!closed_);
  closed_ = true;
  if (options_.look_only) return Status();
  // While the reclaimer can still make room for what staged writes owe.
  if (!store_->failed()) (void)drain(true);
  stop_threads();
  if (store_->failed()) return store_->failure();
  if (Status status = origin_.sync(); !status.ok()) {
    fail(status, true);
    return store_->failure();
  }
  if (staged_->any()) {
    MutexLock lock(pending_mutex_);
    const bool known = !held_why_.ok();
    return Status(known ? held_why_.code() : Code::NO_SPACE,
                  origin_.name() +
                      ": acknowledged writes are still in the snapshot store, as they could not be "
                      "put in place: " +
                      (known ? held_why_.message() + ": mend that" : "nothing got on: try again") +
                      " and serve the volume again");
  }
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

Status VolumeImpl::checkpoint() { return drain(false); }

}  // namespace csnap
