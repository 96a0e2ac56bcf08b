#include "testing/sample_store.h"

#include <cstring>

#include "testing/faulty_device.h"
#include "testing/rng.h"

namespace csnap {
namespace {

void must(const Status& status) { CSNAP_ASSERT(status.ok()); }

void write(Volume& volume, uint64_t offset, uint64_t length, uint8_t value) {
  std::vector<uint8_t> data(length, value);
  IoRequest request;
  request.op = IoOp::WRITE;
  const std::shared_ptr<View> origin = volume.open_origin();
  request.view = origin.get();
  request.offset = offset;
  request.length = length;
  request.data = data.data();
  must(volume.run(request));
}

SampleStore make() {
  SampleStore sample;
  sample.identity.text = "sample";
  MemoryDevice origin("origin", SampleStore::kOriginBytes);
  MemoryDevice store("store", SampleStore::kStoreBytes);
  CreateOptions create;
  create.volume_name = "sample";
  create.origin = sample.identity;
  create.origin_bytes = SampleStore::kOriginBytes;
  create.store_bytes = SampleStore::kStoreBytes;
  create.chunk_bytes = SampleStore::kChunkBytes;
  create.journal_bytes = SampleStore::kJournalBytes;
  must(create_store(store, create));

  VolumeOptions options;
  options.origin = &origin;
  options.store = &store;
  options.identity = sample.identity;
  options.index.leaf_capacity = 8;
  options.index.inner_capacity = 4;
  auto seed = std::make_shared<uint64_t>(1);
  options.make_uuid = [seed] {
    Uuid uuid;
    for (uint64_t half = 0; half < 2; half++) {
      const uint64_t word = mix64(++*seed);
      std::memcpy(uuid.bytes + half * 8, &word, 8);
    }
    return uuid;
  };
  auto clock = std::make_shared<uint64_t>(1);
  options.clock_ns = [clock] { return ++*clock; };
  {
    // Checkpointed: three snapshots, one of them deleted.
    Result<std::unique_ptr<Volume>> volume = Volume::open(options);
    must(volume.status());
    write(*volume.value(), 0, SampleStore::kOriginBytes / 2, 1);
    must(volume.value()->create_snapshot("one", true, 7, {{"label", "value"}}).status());
    write(*volume.value(), 0, SampleStore::kOriginBytes / 4, 2);
    const Uuid two = volume.value()->create_snapshot("two", false, 0, {}).value().uuid;
    write(*volume.value(), SampleStore::kOriginBytes / 8, SampleStore::kOriginBytes / 2, 3);
    must(volume.value()->create_snapshot("three", false, 50, {}).status());
    must(volume.value()->delete_snapshot(two));
    must(volume.value()->wait_reclaimed());
    must(volume.value()->close());
  }
  {
    // Only in the journal.
    Result<std::unique_ptr<Volume>> volume = Volume::open(options);
    must(volume.status());
    write(*volume.value(), 0, SampleStore::kOriginBytes / 3, 4);
    const Uuid four = volume.value()->create_snapshot("four", false, 0, {}).value().uuid;
    must(volume.value()->create_snapshot("five", false, 0, {}).status());
    write(*volume.value(), 4096, 9000, 5);
    must(volume.value()->update_snapshot(four, {1, 9, {{"k", "v"}}}).status());
    must(volume.value()->delete_snapshot(four));
  }
  sample.origin = origin.bytes();
  sample.store = store.bytes();
  return sample;
}

}  // namespace

const SampleStore& sample_store() {
  static const SampleStore sample = make();
  return sample;
}

}  // namespace csnap
