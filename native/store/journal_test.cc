// The journal by itself: where appends begin, over terms whose devices differ.
#include "store/journal.h"

#include <doctest/doctest.h>

#include <cstring>

#include "testing/faulty_device.h"

namespace csnap {
namespace {

constexpr uint64_t kRing = 65536;

// Writes only whole blocks without touching what is beside them.
class BlockMemory final : public Device {
 public:
  explicit BlockMemory(Device& below) : below_(below) {}
  uint64_t size_bytes() const override { return below_.size_bytes(); }
  const std::string& name() const override { return below_.name(); }
  uint64_t write_unit_bytes() const override { return 4096; }
  Status read(uint64_t offset, void* data, size_t length) override {
    return below_.read(offset, data, length);
  }
  Status write(uint64_t offset, const void* data, size_t length) override {
    CHECK(offset % 4096 == 0);
    CHECK(length % 4096 == 0);
    return below_.write(offset, data, length);
  }
  Status sync() override { return below_.sync(); }
  Status zero(uint64_t offset, uint64_t length, ZeroMode mode) override {
    return below_.zero(offset, length, mode);
  }
  Status discard(uint64_t offset, uint64_t length) override {
    return below_.discard(offset, length);
  }

 private:
  Device& below_;
};

struct Ring {
  MemoryDevice memory{"store", format::kJournalOffset + kRing};
  BlockMemory blocks{memory};
  std::vector<EpochTermInfo> chain;

  // What a scan from `tail` on finds, as payload sizes.
  std::vector<size_t> scan(uint64_t tail, Sequence sequence, JournalEnd& end) {
    std::vector<size_t> found;
    Journal journal(memory, kRing);
    Result<JournalEnd> scanned =
        journal.scan(tail, sequence, 0, chain, [&](const RecordView& record) {
          found.push_back(record.payload_bytes);
          return Status();
        });
    REQUIRE(scanned.ok());
    end = scanned.take();
    return found;
  }
  // A term that appends a record of each size, one append each. Returns where they stand.
  std::vector<uint64_t> term(Device& device, const std::vector<size_t>& sizes, JournalEnd& end,
                             uint64_t tail) {
    chain.push_back({chain.size() + 1, 1000 + chain.size(), end.next_sequence});
    Journal journal(device, kRing);
    journal.start_term(chain.back(), tail, end);
    std::vector<uint64_t> places;
    for (const size_t size : sizes) {
      RecordBatch batch;
      std::memset(batch.add(format::RecordKind::DATA, size), static_cast<int>(size), size);
      const uint64_t bytes = journal.append_bytes(batch);
      REQUIRE(journal.fits(bytes, 0));
      REQUIRE(journal.append(batch, 0, 1).ok());
      places.push_back(journal.head() - bytes);
    }
    end.position = journal.head();
    end.next_sequence = journal.next_sequence();
    return places;
  }
};

TEST_CASE("journal: an append begins at a sector, or where the device's blocks do") {
  Ring ring;
  JournalEnd end{0, 1, 0, 0};
  CHECK(ring.term(ring.memory, {100, 600, 8}, end, 0) == std::vector<uint64_t>{0, 512, 1536});
  CHECK(end.position == 2048);
  // The next term's device has larger blocks, the one after it small ones again.
  CHECK(ring.term(ring.blocks, {100, 5000}, end, 0) == std::vector<uint64_t>{4096, 8192});
  CHECK(ring.term(ring.memory, {200, 300}, end, 0) == std::vector<uint64_t>{16384, 16896});
  JournalEnd found{};
  CHECK(ring.scan(0, 1, found) == std::vector<size_t>{100, 600, 8, 100, 5000, 200, 300});
  CHECK(found.next_sequence == 8);
  // From a tail that is no block's start.
  CHECK(ring.scan(1536, 3, found) == std::vector<size_t>{8, 100, 5000, 200, 300});
  CHECK(ring.scan(2048, 4, found) == std::vector<size_t>{100, 5000, 200, 300});
}

TEST_CASE("journal: an append that would cross the ring's end begins at its start") {
  for (const bool whole_blocks : {false, true}) {
    CAPTURE(whole_blocks);
    Ring ring;
    Device& device = whole_blocks ? static_cast<Device&>(ring.blocks) : ring.memory;
    JournalEnd end{0, 1, 0, 0};
    ring.term(device, {30000, 30000}, end, 0);
    const uint64_t tail = end.position;
    const std::vector<uint64_t> places = ring.term(device, {20000, 100}, end, tail);
    CHECK(places[0] == kRing);
    JournalEnd found{};
    CHECK(ring.scan(tail, 3, found) == std::vector<size_t>{20000, 100});
    CHECK(found.next_sequence == 5);
  }
}

}  // namespace
}  // namespace csnap
