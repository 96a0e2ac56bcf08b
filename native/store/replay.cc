// What the journal says at open, record by record: the first half of recovery (recovery.h). Judging
// it, and beginning a term on it, is recovery.cc's.
#include <algorithm>
#include <cstring>
#include <set>

#include "store/recovery.h"

namespace csnap {

using format::RecordKind;
using format::Superblock;

Status Recovery::read_journal() {
  const Superblock& sb = store_.superblock_;
  verified_upto_ = sb.confirmed_sequence;
  state_sequence_ =
      sb.incompat & format::kIncompatStaging ? uint64_t{sb.state_sequence} : sb.tail_sequence - 1;
  if (found_.may_be_older) {
    Result<bool> newer = store_.journal_->knows_newer_superblock(sb.sequence, store_.chain_);
    if (!newer.ok()) return newer.take_status();
    if (newer.value())
      return Status(Code::CORRUPT,
                    store_.device_.name() +
                        ": the newer superblock is damaged and the older one is out of "
                        "date (W5); restore the store from a backup");
  }
  Result<JournalEnd> end =
      store_.journal_->scan(sb.journal_tail, sb.tail_sequence, sb.confirmed_sequence, store_.chain_,
                            [this](const RecordView& record) { return take_record(record); });
  if (!end.ok()) return end.take_status();
  end_ = end.take();
  verified_upto_ = std::max(verified_upto_, end_.confirmed);
  store_.recovery_.records = end_.records;
  if ((sb.state & format::kStateClean) && end_.records > 0)
    return Status(
        Code::CORRUPT,
        store_.device_.name() + ": the store says it was closed in order, but its journal goes on");
  // What was confirmed is missing: known from a record, from the superblock itself, or from a later
  // record behind the damaged one.
  bool missed = verified_upto_ >= end_.next_sequence;
  if (!missed && !(sb.state & format::kStateClean)) {
    Result<bool> later = store_.journal_->knows_confirmed(end_.next_sequence, store_.chain_);
    if (!later.ok()) return later.take_status();
    missed = later.value();
  }
  if (missed)
    return Status(Code::CORRUPT, store_.device_.name() + ": journal record " +
                                     std::to_string(end_.next_sequence) +
                                     " is damaged or missing, though it was on stable storage; "
                                     "restore the store from a backup");
  return Status();
}

Status Recovery::take_entries(const RecordView& record, std::vector<Entry>& out) {
  format::EntryList list;
  if (record.payload_bytes < sizeof list)
    return Status(Code::CORRUPT, store_.device_.name() + ": a journal record is too short");
  std::memcpy(&list, record.payload, sizeof list);
  if (record.payload_bytes != sizeof list + uint64_t{list.count} * sizeof(format::IndexEntry))
    return Status(Code::CORRUPT, store_.device_.name() + ": a journal record has the wrong length");
  for (uint32_t i = 0; i < list.count; i++) {
    format::IndexEntry disk;
    std::memcpy(&disk, record.payload + sizeof list + i * sizeof disk, sizeof disk);
    out.push_back(Entry::from_disk(disk));
  }
  return Status();
}

Status Recovery::take_staged(const RecordView& record) {
  const Superblock& sb = store_.superblock_;
  RecoveredWrite write;
  const auto bad = [&](const char* what) {
    return Status(Code::CORRUPT, store_.device_.name() + ": staged write " +
                                     std::to_string(record.sequence) + " " + what);
  };
  if (record.payload_bytes < sizeof write.record) return bad("is too short");
  std::memcpy(&write.record, record.payload, sizeof write.record);
  const uint64_t offset = write.record.offset;
  const uint64_t length = write.record.length_bytes;
  if (record.payload_bytes != sizeof write.record + length) return bad("has the wrong length");
  const uint64_t chunk_end = round_down(offset, sb.chunk_bytes) + sb.chunk_bytes;
  if (!(sb.incompat & format::kIncompatStaging) || write.record.volume != kOriginVolume ||
      length == 0 || length % kSectorBytes != 0 || offset % kSectorBytes != 0 ||
      offset >= sb.origin_bytes ||
      length > std::min<uint64_t>(chunk_end, sb.origin_bytes) - offset ||
      write.record.generation == 0 || write.record.reserved != 0)
    return bad("makes no sense");
  write.place = {record.position, record.sequence};
  const std::byte* data = record.payload + sizeof write.record;
  write.data.assign(data, data + length);
  store_.recovered_.push_back(std::move(write));
  return Status();
}

Status Recovery::take_applied(const RecordView& record) {
  const Superblock& sb = store_.superblock_;
  format::AppliedRecord applied;
  const auto bad = [&] {
    return Status(Code::CORRUPT, store_.device_.name() + ": journal record " +
                                     std::to_string(record.sequence) +
                                     " says of impossible writes that they are applied");
  };
  if (record.payload_bytes < sizeof applied) return bad();
  std::memcpy(&applied, record.payload, sizeof applied);
  if (record.payload_bytes != sizeof applied + uint64_t{applied.count} * sizeof(le64) ||
      applied.volume != kOriginVolume || applied.sequence >= record.sequence)
    return bad();
  std::set<ChunkIndex> chunks;
  for (uint32_t i = 0; i < applied.count; i++) {
    le64 chunk;
    std::memcpy(&chunk, record.payload + sizeof applied + i * sizeof chunk, sizeof chunk);
    chunks.insert(chunk);
  }
  std::erase_if(store_.recovered_, [&](const RecoveredWrite& write) {
    return write.place.sequence <= applied.sequence &&
           chunks.contains(write.record.offset / sb.chunk_bytes);
  });
  return Status();
}

Status Recovery::take_snapshot(const RecordView& record) {
  format::SnapshotSlot slot;
  if (record.payload_bytes != sizeof slot)
    return Status(Code::CORRUPT,
                  store_.device_.name() + ": a snapshot record has the wrong length");
  std::memcpy(&slot, record.payload, sizeof slot);
  std::optional<Snapshot> snapshot = Snapshot::from_disk(slot);
  if (!snapshot || !snapshot->live() || snapshot->generation == 0)
    return Status(Code::CORRUPT, store_.device_.name() + ": a snapshot record makes no sense");
  const SnapshotTable& table = *store_.snapshots_;
  const Snapshot* same_name = table.find_name(snapshot->volume, snapshot->name);
  const Snapshot* same_time = table.at_generation(snapshot->volume, snapshot->generation);
  const Snapshot* known = table.find(snapshot->uuid);
  // A new snapshot ends the running generation; an update changes neither that nor the serial.
  const Superblock& sb = store_.superblock_;
  const bool new_one = record.kind == RecordKind::SNAPSHOT;
  const bool fits = new_one ? !known && snapshot->generation == sb.generation &&
                                  snapshot->serial == sb.snapshot_serial + 1
                            : known && known->generation == snapshot->generation &&
                                  known->serial == snapshot->serial;
  if (!fits || snapshot->volume != kOriginVolume ||
      (same_name && same_name->uuid != snapshot->uuid) ||
      (same_time && same_time->uuid != snapshot->uuid) ||
      (record.kind == RecordKind::SNAPSHOT_UPDATE && !(known && known->live())))
    return Status(Code::CORRUPT,
                  store_.device_.name() + ": a snapshot record contradicts the table");
  store_.apply_snapshot(*snapshot);
  return Status();
}

Status Recovery::take_record(const RecordView& record) {
  auto as = [&](auto& out) {
    if (record.payload_bytes != sizeof out) return false;
    std::memcpy(&out, record.payload, sizeof out);
    return true;
  };
  auto bad = [&](const char* what) {
    return Status(Code::CORRUPT, store_.device_.name() + ": journal record " +
                                     std::to_string(record.sequence) + " " + what);
  };
  // A record that knows of a newer superblock than the one in use: that one was completed (W5).
  if (record.superblock_sequence > store_.superblock_.sequence)
    return bad("is newer than the superblock in use (W5)");
  if (record.kind == RecordKind::DATA) return take_staged(record);
  if (record.kind == RecordKind::APPLIED) return take_applied(record);
  if (record.sequence <= state_sequence_) return Status();
  Superblock& sb = store_.superblock_;
  switch (record.kind) {
    case RecordKind::EXCEPTION:
    case RecordKind::FREE:
    case RecordKind::RECOVERED: {
      std::vector<Entry> entries;
      CSNAP_TRY(take_entries(record, entries));
      for (const Entry& entry : entries) {
        const bool erase = record.kind == RecordKind::FREE ||
                           entry.location.kind() == format::LocationKind::ERASED;
        if (!erase) CSNAP_TRY(store_.check_location(entry));
        if (entry.key.volume != kOriginVolume || entry.key.generation == 0 ||
            entry.key.chunk >= div_up(sb.origin_bytes, sb.chunk_bytes) ||
            (!erase && !entry.location.is_data() && entry.crc != 0))
          return bad("holds an impossible exception");
        changes_[entry.key] = {erase ? std::nullopt : std::optional<Entry>(entry), record.sequence};
      }
      format::EntryList list;
      std::memcpy(&list, record.payload, sizeof list);
      if (record.kind == RecordKind::RECOVERED && !list.more)
        verified_upto_ = std::max(verified_upto_, record.sequence);
      return Status();
    }
    case RecordKind::SNAPSHOT:
    case RecordKind::SNAPSHOT_UPDATE:
      return take_snapshot(record);
    case RecordKind::SNAPSHOT_COMPLETE: {
      format::SnapshotCompleteRecord complete;
      if (!as(complete)) return bad("has the wrong length");
      UuidBytes uuid;
      std::memcpy(uuid.data(), complete.uuid, uuid.size());
      const Snapshot* snapshot = store_.snapshots_->find(uuid);
      if (!snapshot || !snapshot->live()) return bad("completes an unknown snapshot");
      Snapshot done = *snapshot;
      done.state = format::SnapshotState::LIVE;
      store_.apply_snapshot(done);
      return Status();
    }
    case RecordKind::DELETE: {
      format::DeleteRecord del;
      if (!as(del)) return bad("has the wrong length");
      UuidBytes uuid;
      std::memcpy(uuid.data(), del.uuid, uuid.size());
      const Snapshot* snapshot = store_.snapshots_->find(uuid);
      if (!snapshot || !snapshot->live() || del.delete_serial <= sb.delete_serial)
        return bad("deletes an unknown snapshot");
      store_.apply_delete(uuid, del.dropped, del.delete_serial);
      return Status();
    }
    case RecordKind::RECLAIM: {
      format::ReclaimRecord reclaim;
      if (!as(reclaim)) return bad("has the wrong length");
      store_.apply_reclaimed(reclaim.pass);
      return Status();
    }
    case RecordKind::HOLD: {
      format::Hold hold;
      if (!as(hold)) return bad("has the wrong length");
      if (!sane_hold(hold) || !store_.may_follow(hold)) return bad("holds an impossible hold");
      sb.hold = hold;
      return Status();
    }
    case RecordKind::SETTINGS: {
      format::SettingsRecord settings;
      if (!as(settings)) return bad("has the wrong length");
      sb.on_full = settings.on_full;
      sb.staged_limit_bytes = settings.staged_limit_bytes;
      sb.cache_limit_bytes = settings.cache_limit_bytes;
      sb.reclaim_rate_bytes = settings.reclaim_rate_bytes;
      return Status();
    }
    case RecordKind::CHECKPOINT:
      return Status();
    case RecordKind::DATA:
    case RecordKind::APPLIED:
      break;  // above
    case RecordKind::ZERO_RANGE:
    case RecordKind::CLONE_PAIR:
      break;  // written only under feature bits that this version refuses
  }
  return bad("is of a kind that this csnap does not know");
}

}  // namespace csnap
