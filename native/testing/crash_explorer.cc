#include "testing/crash_explorer.h"

#include <algorithm>
#include <cstring>

#include "store/superblock.h"

namespace csnap {
namespace {

const char* kind_name(int kind) {
  static const char* const kNames[] = {"power loss, nothing lost", "power loss, everything lost",
                                       "power loss", "kill"};
  return kNames[kind];
}

const char* place_of(const SimEvent& event, uint64_t journal_bytes) {
  if (event.disk->name() == "origin") return "origin";
  if (event.op == DeviceOp::SYNC) return "store";
  if (event.offset < format::kJournalOffset) return "superblock";
  return event.offset < format::kJournalOffset + journal_bytes ? "journal" : "store data";
}

std::string describe(const SimEvent& event) {
  std::string text = event.disk->name() + " " + device_op_name(event.op);
  if (event.op != DeviceOp::SYNC)
    text += " " + std::to_string(event.offset) + "+" + std::to_string(event.length);
  return text + (event.completed ? " is done" : " starts");
}

}  // namespace

CrashShape CrashShape::random(Rng& rng) {
  CrashShape shape;
  shape.chunk_bytes = rng.one_in(6) ? 8192 : 4096;
  const uint64_t chunk_sectors = shape.chunk_bytes / kSectorBytes;
  // The last chunk is not whole.
  // Few chunks are fought over, many make the index grow.
  const uint64_t chunks = rng.one_in(3)   ? rng.between(1, 3)
                          : rng.one_in(4) ? rng.between(28, 64)
                                          : rng.between(12, 28);
  shape.origin_sectors = chunk_sectors * chunks + rng.between(1, chunk_sectors - 1);
  shape.journal_bytes = rng.coin() ? 65536 : 131072;
  // The smallest that can be fills up, so that snapshots are dropped and chunks used again.
  const uint64_t least =
      format::kJournalOffset + shape.journal_bytes + 256 * kBlockBytes + 16 * shape.chunk_bytes;
  shape.store_bytes = round_up(least, kBlockBytes) + (rng.coin() ? 0 : (uint64_t{2} << 20));
  shape.node_capacity = rng.one_in(5) ? 84 : static_cast<uint32_t>(rng.between(4, 6));
  shape.group_chunks_max = static_cast<uint32_t>(rng.one_in(4) ? 64 : rng.between(1, 6));
  shape.io_threads = static_cast<uint32_t>(rng.between(1, 3));
  if (rng.one_in(8)) shape.on_full = format::OnFull::REFUSE_WRITES;
  if (rng.one_in(6)) shape.durability = format::DurabilityMode::SYNC;
  shape.work.clients = static_cast<uint32_t>(rng.between(2, 5));
  shape.work.ops = 200;
  shape.work.chunk_sectors = chunk_sectors;
  shape.work.snapshots_max = static_cast<uint32_t>(rng.between(2, 6));
  shape.work.sync_mode = shape.durability == format::DurabilityMode::SYNC;
  shape.work.may_drop = shape.on_full == format::OnFull::DROP_SNAPSHOTS;
  // Pinned snapshots can fill the store too.
  shape.work.may_refuse = true;
  return shape;
}

CrashExplorer::CrashExplorer(uint64_t seed, const CrashShape& shape, const CrashBudget& budget)
    : shape_(shape), budget_(budget), rng_(seed) {}

SimScheduler& CrashExplorer::scheduler(uint32_t depth) {
  while (schedulers_.size() <= depth) schedulers_.push_back(std::make_unique<SimScheduler>());
  return *schedulers_[depth];
}

void CrashExplorer::wrong(const std::string& what) {
  failure_ = what;
  for (const std::string& step : trail_) failure_ += "\n  after " + step;
  scheduler(depth_).stop(what);
}

VolumeOptions CrashExplorer::volume_options(Life& life) {
  VolumeOptions options;
  options.origin = &life.host.disk(0);
  options.store = &life.host.disk(1);
  options.identity.text = "origin";
  options.durability = shape_.durability;
  std::memcpy(options.boot_id.bytes, &life.world.boot, sizeof life.world.boot);
  options.io_threads = shape_.io_threads;
  options.group_chunks_max = shape_.group_chunks_max;
  options.index.leaf_capacity = shape_.node_capacity;
  options.index.inner_capacity = shape_.node_capacity;
  options.clock_ns = [this] { return ++clock_; };
  options.make_uuid = [this] {
    Uuid uuid;
    for (uint8_t& byte : uuid.bytes) byte = static_cast<uint8_t>(rng_.next());
    return uuid;
  };
  options.on_event = [this, &life](const VolumeEvent& event) {
    if (event.kind == VolumeEvent::Kind::SNAPSHOT_DROPPED) {
      met("snapshot dropped by the policy");
      life.world.history.was_dropped(event.name);
    } else if (event.kind == VolumeEvent::Kind::FAILED ||
               event.kind == VolumeEvent::Kind::CHECKSUM_ERROR) {
      wrong(event.message);
    }
  };
  return options;
}

// ---- Crashing ----------------------------------------------------------------------------------

void CrashExplorer::observe(Life& life, const SimEvent& event) {
  if (event.op != DeviceOp::READ) life.changes++;
  if (event.op == DeviceOp::SYNC && event.completed) life.syncs++;
  if (life.image_one_in > 1 && !rng_.one_in(life.image_one_in)) return;
  crash_points_++;
  // Where neither the disks nor what was promised changed, the image would be the former one again.
  const uint64_t promises = life.world.history.promise_count();
  const bool promised = promises != life.promises_then;
  const bool changed = life.changes != life.changes_then;
  const bool synced = life.syncs != life.syncs_then;
  life.promises_then = promises;
  life.changes_then = life.changes;
  life.syncs_then = life.syncs;
  const bool unsynced =
      life.host.disk(0).unsynced_sector_count() + life.host.disk(1).unsynced_sector_count() > 0 ||
      changed;
  if (life.opening && life.depth > 0) {
    // One of the four at each operation of a recovery.
    if (changed) crash(life, event, static_cast<CrashKind>(rng_.below(4)));
    return;
  }
  if (changed || promised) crash(life, event, CrashKind::POWER_NOTHING);
  if (synced || promised) crash(life, event, CrashKind::POWER_EVERYTHING);
  if (unsynced && (changed || promised || rng_.one_in(8)))
    crash(life, event, CrashKind::POWER_RANDOM);
  if (changed || promised) crash(life, event, CrashKind::KILL);
}

void CrashExplorer::crash(Life& life, const SimEvent& event, CrashKind kind) {
  HostImage image;
  switch (kind) {
    case CrashKind::POWER_NOTHING:
      image = life.host.crash_image(CrashLoss::NOTHING, rng_);
      break;
    case CrashKind::POWER_EVERYTHING:
      image = life.host.crash_image(CrashLoss::EVERYTHING, rng_);
      break;
    case CrashKind::POWER_RANDOM:
      image = life.host.crash_image(CrashLoss::RANDOM, rng_);
      break;
    case CrashKind::KILL:
      image = life.host.kill_image(rng_);
      break;
  }
  const std::string& actor = scheduler(life.depth).current_name();
  met("crash while " + actor + " " + device_op_name(event.op) + "s " +
      place_of(event, shape_.journal_bytes) + (life.opening ? " at open" : ""));
  trail_.resize(life.depth);
  trail_.push_back(
      std::string(kind_name(static_cast<int>(kind))) + " at step " + std::to_string(event.step) +
      " of life " + std::to_string(life.depth) + (life.opening ? " (opening)" : "") + ", tick " +
      std::to_string(life.world.history.now()) + ": " + actor + ": " + csnap::describe(event));
  World world = life.world;
  if (life.opening) {
    world.opens_unfinished = true;
  } else {
    world.opens_unfinished = false;
    world.power_lost = false;
  }
  if (kind != CrashKind::KILL) {
    world.power_lost = true;
    world.boot = ++boots_;
  }
  recover(image, std::move(world), kind, life.depth + 1);
  depth_ = life.depth;
  if (!failure_.empty()) scheduler(life.depth).stop("a crash was not survived");
  trail_.resize(life.depth);
}

void CrashExplorer::recover(const HostImage& image, World world, CrashKind, uint32_t depth) {
  images_++;
  depth_ = depth;
  SimHost host(rng_.next(), image);
  Life life{host, world, &image, depth, 1};
  const bool again = depth < budget_.depth_max && rng_.one_in(budget_.recover_one_in);
  const bool lives_on = depth < budget_.depth_max && rng_.one_in(budget_.live_on_one_in);
  if (depth > 1) life.image_one_in = 4;
  const auto outcome = scheduler(depth).run(rng_.next(), [&] {
    Result<SuperblockFound> found = load_superblock(host.disk(1));
    if (found.ok() && found.value().may_be_older) met("opened with one damaged superblock");
    if (again) host.set_observer([&](const SimEvent& event) { observe(life, event); });
    std::unique_ptr<Volume> volume = open(life);
    host.set_observer(nullptr);
    if (again) met("crashes during recovery " + std::to_string(depth));
    const Tokens origin = judge(*volume, life);
    if (lives_on) live_on(std::move(volume), life, origin);
  });
  if (!outcome.ok() && failure_.empty()) {
    failure_ = outcome.report;
    for (const std::string& step : trail_) failure_ += "\n  after " + step;
  }
  if (!failure_.empty() && depth == depth_)
    failure_ += "\nlast operations of life " + std::to_string(depth) + ":\n" + host.log_to_text();
}

// ---- Living ------------------------------------------------------------------------------------

std::unique_ptr<Volume> CrashExplorer::open(Life& life) {
  Result<std::unique_ptr<Volume>> opened = Volume::open(volume_options(life));
  if (!opened.ok()) wrong("open: " + opened.status().to_text());
  const VolumeInfo info = opened.value()->info();
  judge_identity(info, life.world);
  if (info.replayed_records > 0) met("records replayed");
  if (info.dropped_entries > 0) met("W1 dropped entries");
  if (info.lost_entries > 0) wrong("a plain crash lost snapshot data (W1)");
  World& world = life.world;
  world.epoch = info.epoch;
  world.durability_id = info.durability_id;
  life.opening = false;
  world.ended = World::SERVED;
  return opened.take();
}

void CrashExplorer::judge_identity(const VolumeInfo& info, const World& world) {
  if (info.epoch <= world.epoch)
    wrong("epoch " + std::to_string(info.epoch) + " follows " + std::to_string(world.epoch) +
          " (W5)");
  if (world.durability_id.is_nil()) return;
  const bool same = info.durability_id == world.durability_id;
  const bool lossless = !world.power_lost || shape_.durability == format::DurabilityMode::SYNC ||
                        (world.ended == World::CLOSED && !world.opens_unfinished);
  if (lossless && !same) wrong("the durability id changed though nothing can be lost");
  if (!lossless && same && world.ended == World::SERVED)
    wrong("the durability id is the same after a power loss in mode flush");
  if (!same) met("durability id changed");
}

// Returns what the origin holds.
Tokens CrashExplorer::judge(Volume& volume, Life& life) {
  judge_snapshots(volume, life);
  judge_hold(volume, life);
  Tokens origin;
  const std::shared_ptr<View> view = volume.open_origin();
  if (Status status = Workload::read(volume, *view, 0, shape_.origin_sectors, origin); !status.ok())
    wrong("read of the origin: " + status.to_text());
  const std::string judged = life.world.history.judge_origin(origin, life.world.loss());
  if (!judged.empty()) wrong(judged);
  check(volume);
  return origin;
}

void CrashExplorer::check(Volume& volume) {
  Result<CheckReport> report = volume.check(true, nullptr);
  // It gives way to staged writes that need the space it holds back.
  for (int tries = 0; tries < 100 && report.status().code() == Code::BUSY; tries++) {
    (void)volume.wait_reclaimed();
    report = volume.check(true, nullptr);
  }
  if (!report.ok()) wrong("check: " + report.status().to_text());
  if (!report.value().clean) wrong("check: " + report.value().problems.at(0));
  if (report.value().lost_entries > 0) wrong("check: lost entries");
}

// Whether the image says so itself: the policy may strike just before a crash, or reclaim be
// through with it before anybody could look.
bool CrashExplorer::was_dropped_before(const Life& life, const std::string& name) {
  if (!life.image || !shape_.work.may_drop) return false;
  SimHost host(1, *life.image);
  VolumeOptions options;
  options.origin = &host.disk(0);
  options.store = &host.disk(1);
  options.identity.text = "origin";
  options.look_only = true;
  Result<std::unique_ptr<Volume>> opened = Volume::open(std::move(options));
  if (!opened.ok()) wrong("open to look only: " + opened.status().to_text());
  Result<std::vector<SnapshotInfo>> listed = opened.value()->list_snapshots();
  if (!listed.ok()) wrong("list, only looking: " + listed.status().to_text());
  return std::any_of(listed.value().begin(), listed.value().end(), [&](const SnapshotInfo& info) {
    return info.name == name && info.state == format::SnapshotState::DROPPED;
  });
}

void CrashExplorer::judge_hold(Volume& volume, const Life& life) {
  const History& history = life.world.history;
  const HoldInfo found = volume.hold();
  const std::string judged = history.judge_hold(found.attachment);
  if (!judged.empty()) wrong(judged);
  if (found.held() && (found.host != Workload::host_of(found.attachment) || found.since_ns == 0))
    wrong("the hold is not as it was taken: host " + found.host);
  if (history.hold_changing())
    met(found.attachment == history.hold() ? "hold unchanged by a crash"
                                           : "hold changed in a crash");
  if (found.held()) met("hold judged");
}

void CrashExplorer::judge_snapshots(Volume& volume, Life& life) {
  History& history = life.world.history;
  Result<std::vector<SnapshotInfo>> listed = volume.list_snapshots();
  if (!listed.ok()) wrong("list: " + listed.status().to_text());
  std::map<std::string, const SnapshotInfo*> live;
  for (const SnapshotInfo& info : listed.value()) {
    if (info.state == format::SnapshotState::CREATING)
      wrong("snapshot " + info.name + " is still being created after an open (W6)");
    if (info.state == format::SnapshotState::LIVE) live[info.name] = &info;
  }
  for (SnapshotNote& note : history.snapshots()) {
    const auto at = live.find(note.name);
    if (at == live.end()) {
      if (note.must_exist() && !was_dropped_before(life, note.name))
        wrong("snapshot " + note.name + " is gone (W6)");
      if (note.returned == 0 && !note.failed) met("snapshot lost in the making");
      for (const SnapshotInfo& info : listed.value())
        if (info.name == note.name && note.returned == 0) met("W6 incomplete snapshot deleted");
      note.dropped = true;
      continue;
    }
    const SnapshotInfo& info = *at->second;
    live.erase(at);
    if (note.must_be_gone()) {
      // Dropped while this looked: the list is older than the event.
      if (note.dropped && volume.open_snapshot(info.uuid).status().code() != Code::OK) continue;
      wrong("snapshot " + note.name + " came back");
    }
    if (note.returned != 0 && !(note.uuid == info.uuid))
      wrong("snapshot " + note.name + " has another uuid");
    note.uuid = info.uuid;
    Status status;
    const std::shared_ptr<Tokens> content =
        Workload::read_snapshot(volume, info.uuid, shape_.origin_sectors, status);
    if (!content) {
      // A drop shows itself before its event is told.
      if (shape_.work.may_drop && !note.dropped) (void)volume.wait_reclaimed();
      if (note.dropped) continue;
      wrong("read of snapshot " + note.name + ": " + status.to_text());
    }
    const std::string judged = history.judge_snapshot(note, *content);
    if (!judged.empty()) wrong(judged);
    if (!note.content) note.content = content;
    met("snapshot judged");
  }
  if (!live.empty()) wrong("snapshot " + live.begin()->first + " was never made");
}

void CrashExplorer::work(Volume& volume, Life& life, uint32_t ops) {
  WorkloadOptions options = shape_.work;
  options.ops = ops;
  Workload workload(volume, life.world.history, options, rng_.next(),
                    [this](const std::string& what) { wrong(what); });
  workload.run();
}

// After a crash was survived: the same volume goes on from what was found.
void CrashExplorer::live_on(std::unique_ptr<Volume> volume, Life& life, const Tokens& origin) {
  World& world = life.world;
  world.history.recovered(origin, volume->hold().attachment, world.loss());
  for (SnapshotNote& note : world.history.snapshots()) {
    // What was under way is decided.
    if (note.dropped || note.failed || note.delete_returned != 0) continue;
    if (note.returned == 0) note.returned = world.history.tick();
    note.delete_called = 0;
  }
  world.power_lost = false;
  world.opens_unfinished = false;
  met("lives on after a crash");
  life.image_one_in = 16;
  life.host.set_observer([&](const SimEvent& event) { observe(life, event); });
  work(*volume, life, 40);
  life.host.set_observer(nullptr);
  if (rng_.coin()) close_and_look(std::move(volume), life);
}

// A close in order, crashed at too, then an open that must find everything as it was.
void CrashExplorer::close_and_look(std::unique_ptr<Volume> volume, Life& life) {
  World& world = life.world;
  if (life.depth == 0 && budget_.image_one_in != 0) {
    world.ended = World::CLOSING;
    life.host.set_observer([&](const SimEvent& event) { observe(life, event); });
  }
  if (Status status = volume->close(); !status.ok()) wrong("close: " + status.to_text());
  life.host.set_observer(nullptr);
  volume.reset();
  world.ended = World::CLOSED;
  world.boot = ++boots_;
  life.opening = true;
  life.image = nullptr;
  volume = open(life);
  if (!volume->info().clean) wrong("a volume closed in order is not clean");
  judge(*volume, life);
  Status status = volume->wait_reclaimed();
  if (!status.ok()) wrong("wait_reclaimed: " + status.to_text());
  check(*volume);
}

bool CrashExplorer::run() {
  SimHost host(rng_.next());
  SimDisk& origin = host.add_disk("origin", shape_.origin_sectors * kSectorBytes);
  SimDisk& store = host.add_disk("store", shape_.store_bytes);
  // Two thirds hold something from the start.
  Tokens initial(shape_.origin_sectors, 0);
  for (uint64_t sector = 0; sector < initial.size(); sector++) {
    if (sector / shape_.work.chunk_sectors % 3 == 2) continue;
    initial[sector] = static_cast<Token>(1 + sector % 5);
    uint8_t bytes[kSectorBytes];
    fill_sector(initial[sector], sector, bytes);
    if (!origin.write(sector * kSectorBytes, bytes, sizeof bytes).ok()) return false;
  }
  CreateOptions create;
  create.volume_name = "crash";
  create.origin.text = "origin";
  create.origin_bytes = origin.size_bytes();
  create.store_bytes = shape_.store_bytes;
  create.chunk_bytes = shape_.chunk_bytes;
  create.journal_bytes = shape_.journal_bytes;
  create.on_full = shape_.on_full;
  Status status = origin.sync();
  if (status.ok()) status = create_store(store, create);
  if (!status.ok()) {
    failure_ = "create_store: " + status.to_text();
    return false;
  }
  World world(History(std::move(initial)));
  Life life{host, world, nullptr, 0, budget_.image_one_in};
  if (budget_.image_one_in != 0)
    host.set_observer([&](const SimEvent& event) { observe(life, event); });
  const auto outcome = scheduler(0).run(rng_.next(), [&] {
    std::unique_ptr<Volume> volume = open(life);
    work(*volume, life, shape_.work.ops);
    host.set_observer(nullptr);
    met_["checkpoints"] += volume->info().checkpoints;
    met_["chunks reclaimed"] += volume->info().chunks_freed;
    close_and_look(std::move(volume), life);
  });
  if (!outcome.ok() && failure_.empty()) failure_ = outcome.report + host.log_to_text();
  return failure_.empty();
}

}  // namespace csnap
