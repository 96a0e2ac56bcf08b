// The sample store is whole, and can be written out as the golden images of test/fixtures/golden
// (see the README there).
#include "testing/sample_store.h"

#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "testing/faulty_device.h"

namespace csnap {
namespace {

void write_file(const std::string& path, const std::vector<uint8_t>& bytes) {
  std::FILE* file = std::fopen(path.c_str(), "wb");
  REQUIRE(file != nullptr);
  CHECK(std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size());
  CHECK(std::fclose(file) == 0);
}

TEST_CASE("sample store: opens after its crash, clean, with all that was acknowledged") {
  const SampleStore& sample = sample_store();
  MemoryDevice origin("origin", sample.origin);
  MemoryDevice store("store", sample.store);
  VolumeOptions options;
  options.origin = &origin;
  options.store = &store;
  options.identity = sample.identity;
  Result<std::unique_ptr<Volume>> volume = Volume::open(options);
  REQUIRE(volume.ok());
  CHECK(volume.value()->info().replayed_records > 0);
  Result<CheckReport> report = volume.value()->check(true, nullptr);
  REQUIRE(report.ok());
  for (const std::string& problem : report.value().problems) MESSAGE(problem);
  CHECK(report.value().clean);
  CHECK(volume.value()->info().snapshots_live == 3);
  const Status closed = volume.value()->close();
  CHECK(closed.ok());
}

TEST_CASE("golden images: written when CSNAP_GOLDEN_DIR says where") {
  const char* directory = std::getenv("CSNAP_GOLDEN_DIR");
  if (directory == nullptr) return;
  const SampleStore& sample = sample_store();
  write_file(std::string(directory) + "/crashed.origin", sample.origin);
  write_file(std::string(directory) + "/crashed.store", sample.store);
  MemoryDevice origin("origin", sample.origin);
  MemoryDevice store("store", sample.store);
  VolumeOptions options;
  options.origin = &origin;
  options.store = &store;
  options.identity = sample.identity;
  Result<std::unique_ptr<Volume>> volume = Volume::open(options);
  REQUIRE(volume.ok());
  CHECK(volume.value()->wait_reclaimed().ok());
  CHECK(volume.value()->close().ok());
  write_file(std::string(directory) + "/clean.origin", origin.bytes());
  write_file(std::string(directory) + "/clean.store", store.bytes());
}

}  // namespace
}  // namespace csnap
