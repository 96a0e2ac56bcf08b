#include "store/journal.h"

#include <algorithm>
#include <cstring>

#include "base/crc32c.h"

namespace csnap {

using format::kAppendAlignBytes;
using format::kAppendUnitBytesMax;
using format::kRecordAlignBytes;
using format::RecordHeader;

namespace {

// Shape and checksum of a record at `bytes`, of which `available` can be looked at.
bool intact(const std::byte* bytes, uint64_t available) {
  if (available < sizeof(RecordHeader)) return false;
  RecordHeader header;
  std::memcpy(&header, bytes, sizeof header);
  const uint64_t length = header.length_bytes;
  if (header.magic != format::kRecordMagic || length < sizeof header || length > available)
    return false;
  const uint32_t crc = header.crc;
  header.crc = 0;
  const uint32_t head = crc32c(&header, sizeof header);
  return crc == crc32c(bytes + sizeof header, length - sizeof header, head);
}

}  // namespace

const EpochTermInfo* term_of(const std::vector<EpochTermInfo>& chain, Sequence sequence) {
  const EpochTermInfo* found = nullptr;
  for (const EpochTermInfo& term : chain)
    if (term.first_sequence <= sequence) found = &term;
  return found;
}

std::byte* RecordBatch::add(format::RecordKind kind, size_t payload_bytes) {
  const size_t offset = round_up(bytes_.size(), kRecordAlignBytes);
  const size_t end = offset + sizeof(RecordHeader) + payload_bytes;
  // With room for the padding, which would else move it all once more.
  if (end > bytes_.capacity())
    bytes_.reserve(std::max(2 * bytes_.capacity(), round_up(end, kAppendUnitBytesMax)));
  bytes_.resize(end);
  auto* header = reinterpret_cast<RecordHeader*>(bytes_.data() + offset);
  header->kind = static_cast<uint16_t>(kind);
  header->length_bytes = static_cast<uint32_t>(sizeof(RecordHeader) + payload_bytes);
  offsets_.push_back(offset);
  return bytes_.data() + offset + sizeof(RecordHeader);
}

void RecordBatch::add_entries(format::RecordKind kind, std::span<const Entry> entries, bool more) {
  std::byte* payload = add(kind, entries_bytes(entries.size()));
  format::EntryList list;
  list.count = static_cast<uint32_t>(entries.size());
  list.more = more ? 1 : 0;
  std::memcpy(payload, &list, sizeof list);
  payload += sizeof list;
  for (const Entry& entry : entries) {
    const format::IndexEntry disk = entry.to_disk();
    std::memcpy(payload, &disk, sizeof disk);
    payload += sizeof disk;
  }
}

// The ring in pieces of a megabyte, read ahead of the scan.
struct Journal::Slice {
  static constexpr uint64_t kBytes = uint64_t{1} << 20;

  Slice(Device& store, uint64_t ring_bytes) : store(store), ring_bytes(ring_bytes) {}

  // `length` bytes from ring offset `from` (no wrap). Null: an I/O error, see `status`.
  const std::byte* get(uint64_t from, uint64_t length) {
    if (from < start || from + length > start + bytes.size()) {
      start = from;
      bytes.resize(std::min(std::max(length, kBytes), ring_bytes - from));
      status = store.read(format::kJournalOffset + from, bytes.data(), bytes.size());
      if (!status.ok()) return nullptr;
    }
    return bytes.data() + (from - start);
  }

  Device& store;
  const uint64_t ring_bytes;
  uint64_t start = 0;
  std::vector<std::byte> bytes;
  Status status;
};

Result<JournalEnd> Journal::scan(uint64_t tail_position, Sequence tail_sequence,
                                 Sequence tail_confirmed, const std::vector<EpochTermInfo>& chain,
                                 const std::function<Status(const RecordView&)>& record) {
  Slice slice(store_, bytes_);
  JournalEnd end{tail_position, tail_sequence, tail_confirmed, 0};
  uint64_t position = tail_position;
  const uint64_t limit = tail_position + bytes_;  // J4

  // Whether the record of end.next_sequence stands at `at`; consumes it then.
  auto take = [&](uint64_t at, Status& failure) {
    const uint64_t offset = at % bytes_;
    if (at + sizeof(RecordHeader) > limit || offset + sizeof(RecordHeader) > bytes_) return false;
    const std::byte* bytes = slice.get(offset, sizeof(RecordHeader));
    if (!bytes) {
      failure = slice.status;
      return false;
    }
    RecordHeader header;
    std::memcpy(&header, bytes, sizeof header);
    const uint64_t length = header.length_bytes;
    if (header.magic != format::kRecordMagic || header.sequence != end.next_sequence) return false;
    const EpochTermInfo* term = term_of(chain, end.next_sequence);
    if (!term || header.epoch != term->epoch || header.salt != term->salt) return false;  // J2
    if (length < sizeof header || offset + length > bytes_ || at + length > limit) return false;
    bytes = slice.get(offset, length);
    if (!bytes) {
      failure = slice.status;
      return false;
    }
    if (!intact(bytes, length)) return false;
    const RecordView view{static_cast<format::RecordKind>(uint16_t{header.kind}),
                          header.sequence,
                          header.confirmed_sequence,
                          header.superblock_sequence,
                          header.epoch,
                          at,
                          bytes + sizeof header,
                          length - sizeof header};
    failure = record(view);
    if (!failure.ok()) return false;
    end.confirmed = std::max<Sequence>(end.confirmed, header.confirmed_sequence);
    end.next_sequence++;
    end.records++;
    position = at + round_up(length, kRecordAlignBytes);
    end.position = round_up(position, unit_bytes_);
    return true;
  };

  while (true) {
    Status failure;
    if (take(position, failure)) continue;
    if (!failure.ok()) return failure;
    // Another term's device may have had another unit. And the appender skips the rest of the ring
    // where an append would cross its end.
    bool taken = false;
    for (uint64_t unit : {kAppendAlignBytes, kAppendUnitBytesMax, bytes_}) {
      const uint64_t next = round_up(position, unit);
      taken = next != position && take(next, failure);
      if (!failure.ok()) return failure;
      if (taken) break;
    }
    if (!taken) return end;
  }
}

Result<bool> Journal::any_record(const std::function<bool(const RecordHeader&)>& match) {
  Slice slice(store_, bytes_);
  for (uint64_t offset = 0; offset + sizeof(RecordHeader) <= bytes_; offset += kRecordAlignBytes) {
    const std::byte* bytes = slice.get(offset, sizeof(RecordHeader));
    if (!bytes) return slice.status;
    RecordHeader header;
    std::memcpy(&header, bytes, sizeof header);
    const uint64_t length = header.length_bytes;
    if (header.magic != format::kRecordMagic || !match(header) || length > bytes_ - offset)
      continue;
    bytes = slice.get(offset, length);
    if (!bytes) return slice.status;
    if (intact(bytes, length)) return true;
  }
  return false;
}

Result<bool> Journal::knows_newer_superblock(uint64_t superblock_sequence,
                                             const std::vector<EpochTermInfo>& chain) {
  return any_record([&](const RecordHeader& header) {
    if (header.superblock_sequence <= superblock_sequence) return false;
    // A term that the chain does not know is newer than the chain, or from before a re-init (then
    // its salt differs and its epoch is not larger).
    for (const EpochTermInfo& term : chain)
      if (header.epoch == term.epoch && header.salt == term.salt) return true;
    return !chain.empty() && header.epoch > chain.back().epoch;
  });
}

Result<bool> Journal::knows_confirmed(Sequence next_sequence,
                                      const std::vector<EpochTermInfo>& chain) {
  return any_record([&](const RecordHeader& header) {
    if (header.sequence <= next_sequence || header.confirmed_sequence < next_sequence) return false;
    const EpochTermInfo* term = term_of(chain, header.sequence);
    return term && header.epoch == term->epoch && header.salt == term->salt;  // J2
  });
}

void Journal::start_term(const EpochTermInfo& term, uint64_t tail_position, const JournalEnd& end) {
  CSNAP_RULE(W5, term.first_sequence == end.next_sequence);
  term_ = term;
  tail_ = tail_position;
  head_ = round_up(end.position, unit_bytes_);
  next_sequence_ = end.next_sequence;
}

uint64_t Journal::skip_before(uint64_t append_bytes) const {
  const uint64_t left = bytes_ - head_ % bytes_;
  return left < append_bytes ? left : 0;
}

// Up to the end of the append's last page, where nothing is that anybody needs (J4): what nobody
// has read of a page the page cache would read from the medium, before it takes a part of it.
uint64_t Journal::zeros_behind(uint64_t end) const {
  const uint64_t page_end = round_up(end, format::kAppendUnitBytesMax);
  return page_end <= tail_ + bytes_ ? page_end - end : 0;
}

bool Journal::fits(uint64_t append_bytes, uint64_t reserve_bytes) const {
  return head_ + skip_before(append_bytes) + append_bytes + reserve_bytes <= tail_ + bytes_;
}

Result<Sequence> Journal::append(RecordBatch& batch, Sequence confirmed,
                                 uint64_t superblock_sequence) {
  CSNAP_ASSERT(!batch.empty());
  const uint64_t length = append_bytes(batch);
  CSNAP_RULE(W4, fits(length, 0));
  batch.bytes_.resize(length);
  Sequence sequence = next_sequence_;
  for (size_t offset : batch.offsets_) {
    auto* header = reinterpret_cast<RecordHeader*>(batch.bytes_.data() + offset);
    header->magic = format::kRecordMagic;
    header->salt = term_.salt;
    header->epoch = term_.epoch;
    header->sequence = sequence++;
    header->superblock_sequence = superblock_sequence;
    header->confirmed_sequence = confirmed;
    header->crc = 0;
    header->crc = crc32c(header, header->length_bytes);
  }
  const uint64_t position = head_ + skip_before(length);
  const uint64_t written = length + zeros_behind(position + length);
  batch.bytes_.resize(written);
  CSNAP_TRY(store_.write(place(position), batch.bytes_.data(), written));
  head_ = position + length;
  next_sequence_ = sequence;
  return sequence - 1;
}

void Journal::set_tail(uint64_t position) {
  CSNAP_RULE(W4, position >= tail_ && position <= head_);
  tail_ = position;
}

}  // namespace csnap
