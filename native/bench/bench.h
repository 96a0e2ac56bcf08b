// What the native benchmarks share: files to run on, a clock. Run by scripts/bench.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "io/file_device.h"
#include "store/store.h"
#include "volume/volume.h"

namespace csnap::bench {

int scale(int argc, char** argv);
int write_cost(int argc, char** argv);
int index_lookups(int argc, char** argv);
int load_store(int argc, char** argv);

// Seconds of a clock that only goes forward.
inline double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Ends the program: a benchmark has nobody to report to but its user.
inline void must(const Status& status, const char* what) {
  if (status.ok()) return;
  std::fprintf(stderr, "bench: %s: %s\n", what, status.to_text().c_str());
  std::exit(1);
}

template <typename T>
T must(Result<T> result, const char* what) {
  must(result.status(), what);
  return result.take();
}

// `values` is sorted by this.
inline double percentile(std::vector<double>& values, double fraction) {
  std::sort(values.begin(), values.end());
  const size_t at = static_cast<size_t>(fraction * static_cast<double>(values.size() - 1) + 0.5);
  return values[at];
}

// Value of "--name VALUE" among the arguments.
std::string option(int argc, char** argv, const std::string& name, const std::string& otherwise);

// An origin file and a store file (both sparse) with a volume's empty store in it.
struct Files {
  Files(const std::string& directory, uint64_t origin_bytes, uint64_t store_bytes,
        uint64_t chunk_bytes);
  ~Files();
  VolumeOptions options();

  std::string origin_path, store_path;
  std::unique_ptr<FileDevice> origin, store;
  OriginIdentity identity;
};

// The store alone, without a volume's threads.
std::unique_ptr<Store> open_store(Device& store, Device& origin, const IndexOptions& index = {});

Status io(Volume& volume, View& view, IoOp op, uint64_t offset, uint64_t length, void* data);

}  // namespace csnap::bench
