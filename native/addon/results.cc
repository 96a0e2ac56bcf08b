#include "addon/results.h"

#include <cstring>

#include "store/superblock.h"

namespace csnap::addon {
namespace {

// Fills an object; each kind of value by its JS type (native.ts: counts are numbers, opaque 64-bit
// values bigint).
class Filler {
 public:
  explicit Filler(Napi::Env env) : env_(env), object_(Napi::Object::New(env)) {}
  Filler& count(const char* key, uint64_t value) {
    object_.Set(key, Napi::Number::New(env_, static_cast<double>(value)));
    return *this;
  }
  Filler& opaque(const char* key, uint64_t value) {
    object_.Set(key, Napi::BigInt::New(env_, value));
    return *this;
  }
  Filler& flag(const char* key, bool value) {
    object_.Set(key, Napi::Boolean::New(env_, value));
    return *this;
  }
  Filler& text(const char* key, const std::string& value) {
    object_.Set(key, Napi::String::New(env_, value));
    return *this;
  }
  Filler& value(const char* key, Napi::Value value) {
    object_.Set(key, value);
    return *this;
  }
  Napi::Object take() { return object_; }

 private:
  Napi::Env env_;
  Napi::Object object_;
};

std::string uuid_text(const format::Uuid& bytes) {
  Uuid uuid;
  std::memcpy(uuid.bytes, bytes, sizeof uuid.bytes);
  return uuid.to_text();
}

std::string uuid_or_empty(const Uuid& uuid) {
  return uuid.is_nil() ? std::string() : uuid.to_text();
}

const char* durability_name(format::DurabilityMode mode) {
  return mode == format::DurabilityMode::SYNC ? "sync" : "flush";
}

const char* state_name(format::SnapshotState state) {
  switch (state) {
    case format::SnapshotState::CREATING:
      return "creating";
    case format::SnapshotState::LIVE:
      return "live";
    case format::SnapshotState::DROPPED:
      return "dropped";
    default:
      return "deleted";
  }
}

const char* event_name(VolumeEvent::Kind kind) {
  switch (kind) {
    case VolumeEvent::Kind::SNAPSHOT_CREATED:
      return "snapshot-created";
    case VolumeEvent::Kind::SNAPSHOT_DELETED:
      return "snapshot-deleted";
    case VolumeEvent::Kind::SNAPSHOT_DROPPED:
      return "snapshot-dropped";
    case VolumeEvent::Kind::SNAPSHOT_RECLAIMED:
      return "snapshot-reclaimed";
    case VolumeEvent::Kind::LOW_WATER:
      return "low-water";
    case VolumeEvent::Kind::HIGH_WATER:
      return "high-water";
    case VolumeEvent::Kind::STORE_FULL:
      return "store-full";
    case VolumeEvent::Kind::COPY_FAILED:
      return "copy-failed";
    case VolumeEvent::Kind::ORIGIN_FULL:
      return "origin-full";
    case VolumeEvent::Kind::CHECKSUM_ERROR:
      return "checksum-error";
    case VolumeEvent::Kind::FAILED:
      break;
  }
  return "failed";
}

}  // namespace

const char* on_full_name(format::OnFull on_full) {
  return on_full == format::OnFull::REFUSE_WRITES ? "refuse-writes" : "drop-snapshots";
}

bool parse_on_full(const std::string& name, format::OnFull& out) {
  if (name == "drop-snapshots")
    out = format::OnFull::DROP_SNAPSHOTS;
  else if (name == "refuse-writes")
    out = format::OnFull::REFUSE_WRITES;
  else
    return false;
  return true;
}

bool parse_durability(const std::string& name, format::DurabilityMode& out) {
  if (name == "flush")
    out = format::DurabilityMode::FLUSH;
  else if (name == "sync")
    out = format::DurabilityMode::SYNC;
  else
    return false;
  return true;
}

std::vector<std::pair<std::string, std::string>> label_pairs(const Napi::Value& labels) {
  std::vector<std::pair<std::string, std::string>> pairs;
  Options options(labels);
  if (!options.ok()) return pairs;
  const Napi::Array keys = labels.As<Napi::Object>().GetPropertyNames();
  for (uint32_t i = 0; i < keys.Length() && options.ok(); i++) {
    std::string key = keys.Get(i).As<Napi::String>().Utf8Value();
    std::string value = options.text(key.c_str());
    pairs.emplace_back(std::move(key), std::move(value));
  }
  return pairs;
}

Napi::Object store_summary(Napi::Env env, const format::Superblock& superblock) {
  const uint32_t count = superblock.epoch_count;
  const uint32_t state = superblock.state;
  return Filler(env)
      .text("volumeName", field_text(superblock.volume_name))
      .text("volumeUuid", uuid_text(superblock.volume_uuid))
      .text("storeUuid", uuid_text(superblock.store_uuid))
      .text("durabilityId", uuid_text(superblock.durability_id))
      .opaque("epoch", count == 0 ? 0 : uint64_t{superblock.epochs[count - 1].epoch})
      .text("originPath", field_text(superblock.origin_path))
      .text("originIdentity", field_text(superblock.origin_identity))
      .count("originBytes", superblock.origin_bytes)
      .count("storeBytes", superblock.store_bytes)
      .count("chunkBytes", superblock.chunk_bytes)
      .flag("clean", (state & format::kStateClean) != 0)
      .flag("syncFailed", (state & format::kStateSyncFailed) != 0)
      .opaque("createdNs", superblock.created_ns)
      .take();
}

Napi::Value hold_or_null(Napi::Env env, const HoldInfo& hold) {
  if (!hold.held()) return env.Null();
  return Filler(env)
      .text("attachment", hold.attachment.to_text())
      .text("host", hold.host)
      .opaque("sinceNs", hold.since_ns)
      .take();
}

Napi::Object volume_info(Napi::Env env, const VolumeInfo& info) {
  return Filler(env)
      .text("volumeName", info.name)
      .text("volumeUuid", info.volume_uuid.to_text())
      .text("storeUuid", info.store_uuid.to_text())
      .text("durabilityId", info.durability_id.to_text())
      .opaque("epoch", info.epoch)
      .text("originPath", info.origin_path)
      .text("originIdentity", info.origin_identity)
      .count("originBytes", info.origin_bytes)
      .count("storeBytes", info.store_bytes)
      .count("chunkBytes", info.chunk_bytes)
      .flag("clean", info.clean)
      .flag("syncFailed", info.sync_failed)
      .opaque("createdNs", info.created_ns)
      .opaque("superblockSequence", info.superblock_sequence)
      .text("durability", durability_name(info.durability))
      .text("onFull", on_full_name(info.on_full))
      .count("journalBytes", info.journal_bytes)
      .opaque("generation", info.generation)
      .value("hold", hold_or_null(env, info.hold))
      .flag("suspect", info.suspect)
      .flag("failed", info.failed)
      .flag("fenced", info.fenced)
      .text("failure", info.failure)
      .count("gateRefusals", info.gate_refusals)
      .count("exceptions", info.exceptions)
      .count("blocksTotal", info.blocks_total)
      .count("blocksFree", info.blocks_free)
      .count("blocksMetadata", info.blocks_metadata)
      .count("blocksData", info.blocks_data)
      .count("blocksReserve", info.blocks_reserve)
      .count("journalUsedBytes", info.journal_used_bytes)
      .count("replayedRecords", info.replayed_records)
      .count("droppedEntries", info.dropped_entries)
      .count("lostEntries", info.lost_entries)
      .flag("reclaimActive", info.reclaim_active)
      .count("reclaimRateBytes", info.reclaim_rate_bytes)
      .count("stagedLimitBytes", info.staged_limit_bytes)
      .count("cacheLimitBytes", info.cache_limit_bytes)
      .count("snapshotsLive", info.snapshots_live)
      .count("snapshotsDeleting", info.snapshots_deleting)
      .count("reads", info.reads)
      .count("writes", info.writes)
      .count("flushes", info.flushes)
      .count("readBytes", info.read_bytes)
      .count("writeBytes", info.write_bytes)
      .count("copyOuts", info.copy_outs)
      .count("zeroChunks", info.zero_chunks)
      .count("commits", info.commits)
      .count("checkpoints", info.checkpoints)
      .count("parked", info.parked)
      .count("staged", info.staged)
      .count("applied", info.applied)
      .count("stagedBytes", info.staged_bytes)
      .count("checksumErrors", info.checksum_errors)
      .count("chunksFreed", info.chunks_freed)
      .take();
}

Napi::Object snapshot_object(Napi::Env env, const SnapshotInfo& info) {
  Filler labels(env);
  for (const auto& [key, value] : info.labels) labels.text(key.c_str(), value);
  return Filler(env)
      .text("uuid", info.uuid.to_text())
      .text("name", info.name)
      .text("state", state_name(info.state))
      .opaque("generation", info.generation)
      .opaque("createdNs", info.created_ns)
      .count("sizeBytes", info.size_bytes)
      .count("priority", info.priority)
      .flag("pinned", info.pinned)
      .flag("suspect", info.suspect)
      .count("useCount", info.use_count)
      .value("labels", labels.take())
      .count("uniqueBytes", info.unique_bytes)
      .count("sharedBytes", info.shared_bytes)
      .flag("estimated", info.estimated)
      .take();
}

Napi::Array snapshot_list(Napi::Env env, const std::vector<SnapshotInfo>& infos) {
  const Napi::Array list = Napi::Array::New(env, infos.size());
  for (size_t i = 0; i < infos.size(); i++) {
    // One scope each: a list may hold ten thousand.
    const Napi::HandleScope scope(env);
    list.Set(static_cast<uint32_t>(i), snapshot_object(env, infos[i]));
  }
  return list;
}

Napi::Object check_report(Napi::Env env, const CheckReport& report) {
  const Napi::Array problems = Napi::Array::New(env, report.problems.size());
  for (size_t i = 0; i < report.problems.size(); i++)
    problems.Set(static_cast<uint32_t>(i), Napi::String::New(env, report.problems[i]));
  return Filler(env)
      .flag("clean", report.clean)
      .value("problems", problems)
      .count("problemCount", report.problem_count)
      .count("indexNodes", report.index_nodes)
      .count("entries", report.entries)
      .count("chunksVerified", report.chunks_verified)
      .count("lostEntries", report.lost_entries)
      .count("snapshots", report.snapshots)
      .count("blocksUsed", report.blocks_used)
      .take();
}

Napi::Object volume_event(Napi::Env env, const VolumeEvent& event) {
  Filler filler(env);
  filler.text("kind", event_name(event.kind))
      .text("snapshot", uuid_or_empty(event.snapshot))
      .text("name", event.name)
      .text("message", event.message);
  if (event.code != Code::OK) filler.text("code", code_name(event.code));
  return filler.take();
}

Napi::Object connection_event(Napi::Env env, const char* kind, uint64_t connection,
                              const std::string& message) {
  return Filler(env)
      .text("kind", kind)
      .text("snapshot", "")
      .text("name", "")
      .text("message", message)
      .count("connection", connection)
      .take();
}

Napi::Array connection_list(Napi::Env env, const std::vector<nbd::ConnectionStats>& all) {
  const Napi::Array list = Napi::Array::New(env, all.size());
  for (size_t i = 0; i < all.size(); i++)
    list.Set(static_cast<uint32_t>(i), Filler(env)
                                           .count("id", all[i].id)
                                           .count("requests", all[i].requests)
                                           .count("readBytes", all[i].read_bytes)
                                           .count("writeBytes", all[i].write_bytes)
                                           .count("inFlight", all[i].in_flight)
                                           .take());
  return list;
}

}  // namespace csnap::addon
