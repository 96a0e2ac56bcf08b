// The journal: a ring of records in the store, with one appender. Callers: Store only.
//
// Positions are byte counts since the store was made; the place in the ring is position % size.
// Records are 8-byte aligned; every append starts at a sector (or at whatever larger unit the
// device writes without touching what is beside it) and is zero padded to one, so that a torn write
// never touches an earlier append. An append never crosses the end of the ring: where it would, the
// rest of the ring is skipped.
//
// Invariants
//  J1  Sequences are dense: the record after sequence n has n + 1, whatever term wrote it.
//  J2  A record counts only if its checksum is right and its epoch and salt are the ones that the
//      superblock's epoch chain names for its sequence (W5). Nothing is recognised by magic alone.
//  J3  The first missing record ends the journal: what lies behind it is void.
//  J4  Head never passes tail + size: bytes before the tail are freed by a durable superblock (W4).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/status.h"
#include "io/device.h"
#include "store/entry.h"
#include "store/format.h"

namespace csnap {

struct EpochTermInfo {
  Epoch epoch;
  uint64_t salt;
  Sequence first_sequence;
};

// A record's payload as read; valid during the callback.
struct RecordView {
  format::RecordKind kind;
  Sequence sequence;
  Sequence confirmed_sequence;
  Sequence superblock_sequence;
  Epoch epoch;
  uint64_t position;
  const std::byte* payload;
  size_t payload_bytes;
};

// Where a record stands.
struct RecordPlace {
  uint64_t position = 0;
  Sequence sequence = 0;
};

struct JournalEnd {
  uint64_t position;  // where the next append goes
  Sequence next_sequence;
  Sequence confirmed;  // greatest confirmed_sequence of any valid record
  uint64_t records;
};

// The term that `sequence` belongs to; null: none.
const EpochTermInfo* term_of(const std::vector<EpochTermInfo>& chain, Sequence sequence);

// Builds an append: records one after the other.
class RecordBatch {
 public:
  // A record with `payload_bytes` of zeroed payload; the pointer is good until the next add().
  std::byte* add(format::RecordKind kind, size_t payload_bytes);
  template <typename T>
  void add_struct(format::RecordKind kind, const T& payload) {
    std::memcpy(add(kind, sizeof payload), &payload, sizeof payload);
  }
  // An EntryList. `more`: see format.h.
  void add_entries(format::RecordKind kind, std::span<const Entry> entries, bool more = false);
  // Payload bytes of such a record.
  static uint64_t entries_bytes(size_t count) {
    return sizeof(format::EntryList) + count * sizeof(format::IndexEntry);
  }
  bool empty() const { return offsets_.empty(); }
  // Keeps its memory for the next records.
  void clear() {
    bytes_.clear();
    offsets_.clear();
  }
  size_t record_count() const { return offsets_.size(); }
  // Where a record starts within the append.
  uint64_t offset(size_t record) const { return offsets_[record]; }

 private:
  friend class Journal;
  std::vector<std::byte> bytes_;
  std::vector<size_t> offsets_;
};

class Journal {
 public:
  Journal(Device& store, uint64_t bytes)
      : store_(store),
        bytes_(bytes),
        unit_bytes_(std::max(format::kAppendAlignBytes, store.write_unit_bytes())) {}

  // Calls `record` for each valid record from the tail on, in order, and returns where they end.
  // Errors: IO_ERROR, and whatever `record` returns.
  Result<JournalEnd> scan(uint64_t tail_position, Sequence tail_sequence, Sequence tail_confirmed,
                          const std::vector<EpochTermInfo>& chain,
                          const std::function<Status(const RecordView&)>& record);
  // Whether any intact record in the whole ring was written under a superblock newer than
  // `superblock_sequence` and by a term of the chain. Reads the ring.
  Result<bool> knows_newer_superblock(uint64_t superblock_sequence,
                                      const std::vector<EpochTermInfo>& chain);

  // Whether any intact record in the whole ring says that the record `next_sequence`, which the
  // scan did not find, had its sync (J3: then its loss is damage, no crash). Reads the ring.
  Result<bool> knows_confirmed(Sequence next_sequence, const std::vector<EpochTermInfo>& chain);

  // From here on append() writes records of this term.
  void start_term(const EpochTermInfo& term, uint64_t tail_position, const JournalEnd& end);

  // Appends begin and end at multiples of this.
  uint64_t append_unit_bytes() const { return unit_bytes_; }
  // Bytes the append takes, padding included.
  uint64_t append_bytes(const RecordBatch& batch) const {
    return round_up(batch.bytes_.size(), unit_bytes_);
  }
  // Whether an append of this size fits, leaving `reserve_bytes`.
  bool fits(uint64_t append_bytes, uint64_t reserve_bytes) const;
  // Writes the batch (not synced), and zeros behind it to the end of a page where they hurt nobody.
  // It must fit. Returns the sequence of its last record.
  Result<Sequence> append(RecordBatch& batch, Sequence confirmed, uint64_t superblock_sequence);

  uint64_t head() const { return head_; }
  Sequence next_sequence() const { return next_sequence_; }
  uint64_t used_bytes() const { return head_ - tail_; }
  uint64_t size_bytes() const { return bytes_; }
  // A durable superblock has moved the tail (J4).
  void set_tail(uint64_t position);

 private:
  // Whether `match` is true of any intact record in the ring.
  Result<bool> any_record(const std::function<bool(const format::RecordHeader&)>& match);
  struct Slice;  // a window of the ring in RAM while scanning
  uint64_t place(uint64_t position) const { return format::kJournalOffset + position % bytes_; }
  // Bytes skipped at the end of the ring before an append of this size.
  uint64_t skip_before(uint64_t append_bytes) const;
  // Bytes after an append that ends at this position to be written with it.
  uint64_t zeros_behind(uint64_t end) const;

  Device& store_;
  const uint64_t bytes_;
  const uint64_t unit_bytes_;
  EpochTermInfo term_{};
  uint64_t tail_ = 0;
  uint64_t head_ = 0;
  Sequence next_sequence_ = 1;
};

}  // namespace csnap
