// Check and dump.
#include <cstdio>
#include <cstring>

#include "store/checker.h"
#include "volume/volume_impl.h"

namespace csnap {

Result<CheckReport> VolumeImpl::check(bool data,
                                      const std::function<void(uint64_t, uint64_t)>& progress) {
  StoreFindings findings;
  CheckReport report;
  if (options_.look_only) {
    // Nothing runs: the state in RAM is the one that replay has built.
    MutexLock lock = store_->lock();
    format::Superblock now = store_->superblock();
    now.exception_count = store_->index().stats().entries;
    Checker checker(
        store_->device(),
        {now, store_->index(), store_->space_map(), store_->snapshots(), store_->counters()},
        progress, [] { return false; });
    CSNAP_TRY_ASSIGN(findings, checker.run(data));
    report.snapshots = store_->snapshots().live_count();
  } else {
    Result<format::Superblock> pinned = store_->pin_checkpoint();
    if (!pinned.ok()) return pinned.take_status();
    CheckpointState state(store_->device(), pinned.value());
    Status status = state.load();
    if (status.ok()) {
      Checker checker(store_->device(), state.state(), progress,
                      [this] { return store_->pins_revoked(); });
      Result<StoreFindings> run = checker.run(data);
      status = run.status();
      if (run.ok()) findings = run.take();
      report.snapshots = state.state().snapshots.live_count();
    }
    store_->unpin_checkpoint();
    {
      // What the policy had put off meanwhile.
      MutexLock lock(space_mutex_);
      reclaim_kicked_ = true;
      reclaim_idle_ = false;
      space_wake_.notify_all();
    }
    if (status.code() == Code::CORRUPT) {
      findings.problem_count++;
      findings.problems.push_back(status.message());
    } else if (!status.ok()) {
      return status;
    }
  }
  report.clean = findings.problem_count == 0;
  report.problems = std::move(findings.problems);
  report.problem_count = findings.problem_count;
  report.index_nodes = findings.index_nodes;
  report.entries = findings.entries;
  report.chunks_verified = findings.chunks_verified;
  report.lost_entries = findings.lost_entries;
  report.blocks_used = findings.blocks_used;
  return report;
}

namespace {

// Text as a JSON string. Bytes that are no printable ASCII are escaped one by one.
std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7f) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned char>(c));
      out += escape;
    } else {
      out += c;
    }
  }
  return out + '"';
}

// One line of the dump: {"type":"…", …}. 64-bit values that JS can't hold go out as text.
class Line {
 public:
  explicit Line(const char* type) { text_ = std::string("{\"type\":\"") + type + '"'; }
  Line& number(const char* key, uint64_t value) { return raw(key, std::to_string(value)); }
  Line& text(const char* key, const std::string& value) { return raw(key, quoted(value)); }
  Line& big(const char* key, uint64_t value) { return text(key, std::to_string(value)); }
  std::string done() const { return text_ + '}'; }

 private:
  Line& raw(const char* key, const std::string& value) {
    text_ += std::string(",\"") + key + "\":" + value;
    return *this;
  }
  std::string text_;
};

const char* location_name(Location location) {
  switch (location.kind()) {
    case format::LocationKind::DATA:
      return "data";
    case format::LocationKind::ZERO:
      return "zero";
    case format::LocationKind::INHERIT:
      return "inherit";
    case format::LocationKind::LOST:
      return "lost";
    default:
      return "unknown";
  }
}

std::string uuid_text(const uint8_t* bytes) {
  Uuid uuid;
  std::memcpy(uuid.bytes, bytes, sizeof uuid.bytes);
  return uuid.to_text();
}

std::string superblock_line(const format::Superblock& sb, Epoch epoch) {
  return Line("superblock")
      .big("sequence", sb.sequence)
      .big("epoch", epoch)
      .number("version", sb.version)
      .text("store_uuid", uuid_text(sb.store_uuid))
      .text("volume_uuid", uuid_text(sb.volume_uuid))
      .text("durability_id", uuid_text(sb.durability_id))
      .text("volume_name", field_text(sb.volume_name))
      .text("origin_identity", field_text(sb.origin_identity))
      .number("origin_bytes", sb.origin_bytes)
      .number("store_bytes", sb.store_bytes)
      .number("chunk_bytes", sb.chunk_bytes)
      .number("journal_bytes", sb.journal_bytes)
      .number("state", sb.state)
      .big("generation", sb.generation)
      .big("journal_tail", sb.journal_tail)
      .big("tail_sequence", sb.tail_sequence)
      .big("confirmed_sequence", sb.confirmed_sequence)
      .number("index_root", sb.index.block)
      .number("index_level", sb.index.level)
      .number("exceptions", sb.exception_count)
      .done();
}

std::string snapshot_line(const Snapshot& snapshot) {
  static const char* const kStates[] = {"free", "creating", "live", "deleted", "dropped"};
  return Line("snapshot")
      .text("uuid", uuid_text(snapshot.uuid.data()))
      .text("name", snapshot.name)
      .text("state", kStates[static_cast<size_t>(snapshot.state)])
      .big("generation", snapshot.generation)
      .big("serial", snapshot.serial)
      .big("created_ns", snapshot.created_ns)
      .number("size_bytes", snapshot.size_bytes)
      .number("priority", snapshot.priority)
      .number("flags", snapshot.flags)
      .done();
}

std::string entry_line(const Entry& entry) {
  Line line("exception");
  line.number("volume", entry.key.volume)
      .number("chunk", entry.key.chunk)
      .big("generation", entry.key.generation)
      .text("location", location_name(entry.location));
  if (entry.location.is_data())
    line.number("block", entry.location.raw).number("crc32c", entry.crc);
  return line.done();
}

}  // namespace

// On a served volume the index goes on changing meanwhile: each line is true when it is written.
Status VolumeImpl::dump(const std::function<bool(const std::string&)>& line) {
  std::vector<std::string> head;
  {
    MutexLock lock = store_->lock();
    const format::Superblock& sb = store_->superblock();
    head.push_back(superblock_line(sb, store_->epoch()));
    for (uint32_t i = 0; i < sb.epoch_count; i++)
      head.push_back(Line("epoch")
                         .big("epoch", sb.epochs[i].epoch)
                         .big("first_sequence", sb.epochs[i].first_sequence)
                         .done());
    if (const HoldInfo held = hold_info(); held.held())
      head.push_back(Line("hold")
                         .text("attachment", held.attachment.to_text())
                         .text("host", held.host)
                         .big("since_ns", held.since_ns)
                         .done());
    for (const Snapshot* snapshot : store_->snapshots().all())
      head.push_back(snapshot_line(*snapshot));
    for (const auto& [holders, count] : store_->counters().buckets())
      head.push_back(Line("counter")
                         .number("volume", holders.volume)
                         .big("first", holders.first)
                         .big("last", holders.last)
                         .number("chunks", count)
                         .done());
  }
  for (const std::string& text : head)
    if (!line(text)) return Status();
  std::vector<Entry> entries;
  Key next;
  while (next != kKeyEnd) {
    const Key start = next;
    entries.clear();
    CSNAP_TRY(store_->index().scan(
        start, [](Generation, Generation) { return true; }, 4096, 256, entries, next));
    for (const Entry& entry : entries)
      if (!line(entry_line(entry))) return Status();
  }
  return Status();
}

}  // namespace csnap
