#include "bench/load.h"

#include "testing/rng.h"

namespace csnap::bench {
namespace {

// Chunks that are overwritten in the same few generations, as a file's are.
constexpr uint64_t kRegionChunks = 4096;

// Near one that the chunk's region draws.
Generation generation_of(ChunkIndex chunk, uint64_t which, uint64_t snapshots) {
  const uint64_t base = mix64(chunk / kRegionChunks) % snapshots;
  return 1 + std::min(snapshots - 2 + which, base + which * 8 + mix64(chunk * 2 + which) % 8);
}

// By the store's own transactions and checkpoints, but without journal records. ZERO entries, so
// that they take no store chunk.
class BulkLoad {
 public:
  explicit BulkLoad(Store& store) : store_(store), batch_max_(store.changes_max()) {}

  void add(ChunkIndex chunk, Generation generation) {
    Entry entry;
    entry.key = {kOriginVolume, chunk, generation};
    entry.location = Location::of(format::LocationKind::ZERO);
    batch_.push_back(entry);
    if (batch_.size() == batch_max_) flush();
  }
  void flush() {
    auto transaction = must(store_.begin(Priority::DATA, 0, batch_.size()), "begin");
    must(store_.apply_exceptions(batch_), "insert");
    batch_.clear();
  }

 private:
  Store& store_;
  const uint64_t batch_max_;
  std::vector<Entry> batch_;
};

}  // namespace

Generation newest_generation(uint64_t number, uint64_t snapshots) {
  return std::max(generation_of(number, 0, snapshots) + 1, generation_of(number, 1, snapshots));
}

void each_exception(uint64_t exceptions, uint64_t snapshots, uint64_t stride,
                    const std::function<void(ChunkIndex, Generation)>& exception) {
  for (uint64_t i = 0; i < exceptions / 2; i++) {
    exception(i * stride, generation_of(i, 0, snapshots));
    exception(i * stride, newest_generation(i, snapshots));
  }
}

void load(Store& store, uint64_t exceptions, uint64_t snapshots, uint64_t stride) {
  BulkLoad bulk(store);
  each_exception(exceptions, snapshots, stride,
                 [&](ChunkIndex chunk, Generation generation) { bulk.add(chunk, generation); });
  bulk.flush();
  must(store.checkpoint(true), "checkpoint");
}

int load_store(int argc, char** argv) {
  const auto device = [&](const char* name) {
    return must(FileDevice::open(option(argc, argv, name, ""), FileDeviceOptions()), name);
  };
  const auto number = [&](const char* name) {
    return std::strtoull(option(argc, argv, name, "0").c_str(), nullptr, 10);
  };
  const auto store = device("--store");
  const auto origin = device("--origin");
  load(*open_store(*store, *origin), number("--exceptions"), number("--snapshots"));
  return 0;
}

}  // namespace csnap::bench
