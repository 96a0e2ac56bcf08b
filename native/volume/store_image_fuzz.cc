// Fuzz target: a whole store, damaged. The input is a list of patches {place u24, length u8, flags
// u8, bytes} put over a sample store; with flag bit 0 the checksum of the block, superblock or
// record that was hit is made right again, so that the fuzzer gets past it. The store is then
// opened (looking only, and as a server), checked, listed, dumped, and every snapshot read.
// Anything may be refused; nothing may crash, hang or break an invariant.
#include <algorithm>
#include <cstring>

#include "base/crc32c.h"
#include "store/store.h"
#include "testing/faulty_device.h"
#include "testing/sample_store.h"

namespace csnap {
namespace {

constexpr size_t kPatchesMax = 16;

void reseal_block(std::vector<uint8_t>& image, uint64_t block) {
  if ((block + 1) * kBlockBytes > image.size()) return;
  uint8_t* bytes = image.data() + block * kBlockBytes;
  const uint64_t offset = block * kBlockBytes;
  if (offset == format::kSuperblockOffset[0] || offset == format::kSuperblockOffset[1]) {
    auto* sb = reinterpret_cast<format::Superblock*>(bytes);
    sb->crc = 0;
    sb->crc = crc32c(bytes, kBlockBytes);
  } else if (offset >= format::kJournalOffset + SampleStore::kJournalBytes) {
    auto* header = reinterpret_cast<format::BlockHeader*>(bytes);
    if (header->magic != format::kBlockMagic) return;
    header->crc = 0;
    header->crc = crc32c(bytes, kBlockBytes);
  }
}

// Every record that starts in this block of the journal.
void reseal_records(std::vector<uint8_t>& image, uint64_t block) {
  const uint64_t end = format::kJournalOffset + SampleStore::kJournalBytes;
  if (block * kBlockBytes < format::kJournalOffset || (block + 1) * kBlockBytes > end) return;
  for (uint64_t at = block * kBlockBytes;
       at + sizeof(format::RecordHeader) <= (block + 1) * kBlockBytes;
       at += format::kRecordAlignBytes) {
    auto* header = reinterpret_cast<format::RecordHeader*>(image.data() + at);
    if (header->magic != format::kRecordMagic) continue;
    const uint64_t length = header->length_bytes;
    if (length < sizeof *header || at + length > end) continue;
    header->crc = 0;
    header->crc = crc32c(image.data() + at, length);
  }
}

void patch(std::vector<uint8_t>& image, const uint8_t* data, size_t size) {
  for (size_t n = 0; n < kPatchesMax && size >= 5; n++) {
    uint64_t place = data[0] | data[1] << 8 | data[2] << 16;
    // Most of the store is empty: every other patch is aimed at the superblocks and the journal.
    place = data[4] & 2 ? place % (format::kJournalOffset + SampleStore::kJournalBytes)
                        : place % image.size();
    const size_t length = std::min<size_t>({data[3], size - 5, image.size() - place});
    std::memcpy(image.data() + place, data + 5, length);
    if (data[4] & 1) {
      reseal_block(image, place / kBlockBytes);
      reseal_records(image, place / kBlockBytes);
    }
    data += 5 + length;
    size -= 5 + length;
  }
}

void use(Volume& volume) {
  (void)volume.info();
  (void)volume.check(true, nullptr);
  size_t lines = 0;
  (void)volume.dump([&](const std::string&) { return ++lines < 10000; });
  Result<std::vector<SnapshotInfo>> list = volume.list_snapshots();
  if (!list.ok()) return;
  std::vector<std::byte> data(SampleStore::kOriginBytes);
  for (const SnapshotInfo& snapshot : list.value()) {
    Result<std::shared_ptr<View>> view = volume.open_snapshot(snapshot.uuid);
    if (!view.ok()) continue;
    IoRequest request;
    request.op = IoOp::READ;
    request.view = view.value().get();
    request.length = std::min<uint64_t>(view.value()->size_bytes, data.size());
    request.data = data.data();
    (void)volume.run(request);
  }
}

}  // namespace
}  // namespace csnap

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace csnap;
  if (size < 1) return 0;
  const SampleStore& sample = sample_store();
  std::vector<uint8_t> image = sample.store;
  patch(image, data + 1, size - 1);
  MemoryDevice origin("origin", sample.origin);
  MemoryDevice store("store", std::move(image));
  VolumeOptions options;
  options.origin = &origin;
  options.store = &store;
  options.identity = sample.identity;
  options.look_only = data[0] & 1;
  options.accept_loss = data[0] & 2;
  options.accept_origin = data[0] & 4;
  Result<std::unique_ptr<Volume>> volume = Volume::open(options);
  if (!volume.ok()) return 0;
  use(*volume.value());
  if (data[0] & 8) (void)volume.value()->close();
  return 0;
}
