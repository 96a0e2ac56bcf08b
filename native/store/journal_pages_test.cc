// Where a journal's appends go on its device: which pages they ask the page cache for.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <vector>

#include "store/journal.h"

namespace csnap {
namespace {

constexpr uint64_t kRingBytes = 65536;
constexpr uint64_t kPageBytes = 4096;

// A device behind a page cache that holds nothing at first, as after an open: a write of a part of
// a page makes it read the rest.
class ColdDevice final : public Device {
 public:
  uint64_t size_bytes() const override { return bytes.size(); }
  const std::string& name() const override { return name_; }
  Status read(uint64_t offset, void* data, size_t length) override {
    std::copy_n(bytes.begin() + static_cast<ptrdiff_t>(offset), length,
                static_cast<std::byte*>(data));
    return Status();
  }
  Status write(uint64_t offset, const void* data, size_t length) override {
    for (uint64_t page = offset / kPageBytes; page * kPageBytes < offset + length; page++) {
      const bool whole = page * kPageBytes >= offset && (page + 1) * kPageBytes <= offset + length;
      if (cached_.insert(page).second && !whole) pages_read++;
    }
    std::copy_n(static_cast<const std::byte*>(data), length,
                bytes.begin() + static_cast<ptrdiff_t>(offset));
    return Status();
  }
  Status sync() override { return Status(); }
  Status zero(uint64_t, uint64_t, ZeroMode) override { return Status(Code::NOT_SUPPORTED, ""); }
  Status discard(uint64_t, uint64_t) override { return Status(Code::NOT_SUPPORTED, ""); }

  std::vector<std::byte> bytes = std::vector<std::byte>(format::kJournalOffset + kRingBytes);
  uint64_t pages_read = 0;

 private:
  const std::string name_ = "cold";
  std::set<uint64_t> cached_;
};

const EpochTermInfo kTerm{1, 7, 1};

uint64_t append(Journal& journal, size_t payload_bytes) {
  RecordBatch batch;
  std::memset(batch.add(format::RecordKind::DATA, payload_bytes), 0x5a, payload_bytes);
  const uint64_t length = journal.append_bytes(batch);
  REQUIRE(journal.append(batch, 0, 1).ok());
  return length;
}

uint64_t count_records(ColdDevice& device, uint64_t tail, Sequence tail_sequence) {
  Journal reader(device, kRingBytes);
  const auto end =
      reader.scan(tail, tail_sequence, 0, {kTerm}, [](const RecordView&) { return Status(); });
  REQUIRE(end.ok());
  return end.value().records;
}

TEST_CASE("journal: appends of staged writes read no page of a journal that nobody has read") {
  ColdDevice device;
  Journal journal(device, kRingBytes);
  journal.start_term(kTerm, 0, {0, 1, 0, 0});
  uint64_t used = 0;
  for (; journal.fits(4608, 0); used++) append(journal, 4096 + 32);
  CHECK(used == kRingBytes / 4608);
  CHECK(device.pages_read == 0);
  CHECK(count_records(device, 0, 1) == used);
}

TEST_CASE("journal: an append up to the tail's page leaves the records there alone (J4)") {
  ColdDevice device;
  Journal journal(device, kRingBytes);
  journal.start_term(kTerm, 0, {0, 1, 0, 0});
  // The tail in the middle of a page, and the head in front of it, a lap on.
  const uint64_t tail = append(journal, 512);
  REQUIRE(tail % kPageBytes != 0);
  uint64_t records = 0;
  while (journal.fits(4608, 0)) append(journal, 4096 + 32), records++;
  journal.set_tail(tail);
  const Sequence first = 2;
  while (journal.fits(512, 0)) append(journal, 64), records++;
  CHECK(journal.used_bytes() == kRingBytes);
  CHECK(count_records(device, tail, first) == records);
}

}  // namespace
}  // namespace csnap
