// Fuzz target: a journal. The input becomes records {kind u8, payload length u16, payload}, sealed
// as the sample store's running term would, so that every payload reaches replay; bytes that make
// no record are written over the ring as they are. No crash, no hang, no broken invariant.
#include <algorithm>
#include <cstring>

#include "base/crc32c.h"
#include "store/store.h"
#include "testing/faulty_device.h"
#include "testing/sample_store.h"

namespace csnap {
namespace {

UuidBytes fixed_uuid() {
  UuidBytes bytes{};
  bytes[0] = 1;
  return bytes;
}

}  // namespace
}  // namespace csnap

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace csnap;
  const SampleStore& sample = sample_store();
  MemoryDevice origin("origin", sample.origin);
  MemoryDevice store("store", sample.store);
  Result<SuperblockFound> found = load_superblock(store);
  CSNAP_ASSERT(found.ok());
  const format::Superblock& sb = *found.value().superblock;

  std::vector<uint8_t> ring(SampleStore::kJournalBytes, 0);
  size_t at = sb.journal_tail % SampleStore::kJournalBytes;
  Sequence sequence = sb.tail_sequence;
  const format::EpochTerm& term = sb.epochs[sb.epoch_count - 1];
  while (size >= 3) {
    const size_t length = std::min<size_t>(data[1] | data[2] << 8, size - 3);
    if (at + sizeof(format::RecordHeader) + length > ring.size()) break;
    format::RecordHeader header;
    std::memset(&header, 0, sizeof header);
    header.magic = format::kRecordMagic;
    header.kind = data[0] % 18;
    header.length_bytes = static_cast<uint32_t>(sizeof header + length);
    header.salt = uint64_t{term.salt};
    header.epoch = uint64_t{term.epoch};
    header.sequence = sequence++;
    header.superblock_sequence = uint64_t{sb.sequence};
    header.confirmed_sequence = data[0] & 0x80 ? sequence : 0;
    std::memcpy(ring.data() + at, &header, sizeof header);
    std::memcpy(ring.data() + at + sizeof header, data + 3, length);
    header.crc = crc32c(ring.data() + at, sizeof header + length);
    std::memcpy(ring.data() + at, &header, sizeof header);
    at = round_up(at + sizeof header + length, format::kRecordAlignBytes);
    data += 3 + length;
    size -= 3 + length;
  }
  std::copy(ring.begin(), ring.end(), store.bytes().begin() + format::kJournalOffset);

  for (const bool look_only : {true, false}) {
    StoreOptions options;
    options.store = &store;
    options.origin = &origin;
    options.look_only = look_only;
    options.make_uuid = fixed_uuid;
    Result<SuperblockFound> again = load_superblock(store);
    if (!again.ok()) return 0;
    Result<std::unique_ptr<Store>> opened = Store::open(std::move(options), again.take());
    if (!opened.ok()) continue;
    if (!look_only) (void)opened.value()->checkpoint(true);
  }
  return 0;
}
