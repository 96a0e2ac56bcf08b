// A small store with a bit of everything in it, as a crashed server leaves it: for fuzzers and
// corruption tests that damage it. Always the same bytes.
#pragma once

#include <cstdint>
#include <vector>

#include "volume/volume.h"

namespace csnap {

struct SampleStore {
  std::vector<uint8_t> origin;
  std::vector<uint8_t> store;
  OriginIdentity identity;

  static constexpr uint64_t kChunkBytes = 4096;
  static constexpr uint64_t kOriginBytes = 64 * kChunkBytes;
  static constexpr uint64_t kStoreBytes = uint64_t{3} << 20;
  static constexpr uint64_t kJournalBytes = 65536;
};

const SampleStore& sample_store();

}  // namespace csnap
