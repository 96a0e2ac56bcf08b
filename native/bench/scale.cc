// Scale: many snapshots and exceptions on a 16 TiB origin; what opening, listing, looking up,
// diffing and going on cost, at four sizes, and by which factor each figure grows when exceptions
// or snapshots become ten times as many.
//
// The exceptions are loaded by the store's own transactions and checkpoints without journal records
// (ZERO entries, so that the disk stays small); the snapshots are made by the real path. The store
// then passes a full check and takes real writes, snapshots and deletes.
#include <fstream>

#include "bench/bench.h"
#include "bench/load.h"
#include "testing/rng.h"

namespace csnap::bench {
namespace {

constexpr uint64_t kChunkBytes = 16384;
// One block less than 16 TiB: the longest file that ext4 can hold.
constexpr uint64_t kOriginBytes = (uint64_t{16} << 40) - 4096;
uint64_t memory_bytes() {
  std::ifstream statm("/proc/self/statm");
  uint64_t total = 0;
  uint64_t resident = 0;
  statm >> total >> resident;
  return resident * 4096;
}

double time_of(const std::function<void()>& body) {
  const double start = seconds();
  body();
  return seconds() - start;
}

std::vector<Uuid> make_snapshots(Volume& volume, uint64_t count, const char* prefix) {
  std::vector<Uuid> uuids;
  for (uint64_t i = 0; i < count; i++)
    uuids.push_back(
        must(volume.create_snapshot(prefix + std::to_string(i), false, 0, {}), "snapshot").uuid);
  return uuids;
}

using Figures = std::vector<std::pair<const char*, double>>;

Figures measure(const std::string& directory, uint64_t exceptions, uint64_t snapshots) {
  const uint64_t store_bytes =
      (uint64_t{1} << 30) + exceptions * 96 + snapshots * 8192 + (uint64_t{256} << 20);
  Files files(directory, kOriginBytes, round_up(store_bytes, kChunkBytes), kChunkBytes);
  std::vector<Uuid> uuids;
  const double create_s = time_of([&] {
    auto volume = must(Volume::open(files.options()), "open");
    uuids = make_snapshots(*volume, snapshots, "s");
    must(volume->close(), "close");
  });
  const double load_s =
      time_of([&] { load(*open_store(*files.store, *files.origin), exceptions, snapshots); });
  const uint64_t memory_before = memory_bytes();

  std::unique_ptr<Volume> volume;
  const double open_s = time_of([&] { volume = must(Volume::open(files.options()), "open"); });
  const uint64_t memory_open = memory_bytes();

  size_t listed = 0;
  const double list_s = time_of([&] { listed = must(volume->list_snapshots(), "list").size(); });

  // Reads of snapshots: the look-up decides, as ZERO chunks cost no I/O.
  Rng rng(1);
  std::vector<std::shared_ptr<View>> views;
  for (int i = 0; i < 64; i++)
    views.push_back(must(volume->open_snapshot(uuids[rng.below(snapshots)]), "view"));
  std::vector<std::byte> data(4096);
  const auto lookups = [&](uint64_t count, uint64_t chunk_span) {
    const double took = time_of([&] {
      for (uint64_t i = 0; i < count; i++)
        must(io(*volume, *views[rng.below(64)], IoOp::READ, rng.below(chunk_span) * kChunkBytes,
                4096, data.data()),
             "read");
    });
    return took / static_cast<double>(count) * 1e6;
  };
  const double lookup_cold_us = lookups(20000, exceptions / 2);
  const double lookup_warm_us = lookups(200000, std::min<uint64_t>(exceptions / 2, 200000));

  uint64_t diff_runs = 0;
  const double diff_s = time_of([&] {
    must(volume->diff(uuids[snapshots / 2], uuids[snapshots / 2 + 1],
                      [&](ChunkIndex, uint64_t) { return ++diff_runs > 0; }),
         "diff");
  });

  const double first_us =
      time_of([&] {
        for (int i = 0; i < 2000; i++)
          must(io(*volume, *volume->open_origin(), IoOp::WRITE,
                  rng.below(kOriginBytes / kChunkBytes) * kChunkBytes, 4096, data.data()),
               "write");
      }) /
      2000 * 1e6;
  std::vector<Uuid> more;
  const double snapshot_ms =
      time_of([&] { more = make_snapshots(*volume, 20, "more"); }) / 20 * 1e3;
  const double delete_ms =
      time_of([&] {
        for (int i = 0; i < 20; i++)
          must(volume->delete_snapshot(uuids[snapshots / 3 + i], false), "delete");
      }) /
      20 * 1e3;
  const double reclaim_s = time_of([&] { must(volume->wait_reclaimed(), "reclaim"); });
  const uint64_t memory_end = memory_bytes();
  volume.reset();  // as a crash leaves it
  const double crash_open_s =
      time_of([&] { volume = must(Volume::open(files.options()), "open after a crash"); });
  CheckReport report;
  const double check_s = time_of([&] { report = must(volume->check(false, nullptr), "check"); });
  const double close_s = time_of([&] { must(volume->close(), "close"); });

  for (const std::string& problem : report.problems)
    std::fprintf(stderr, "bench: check: %s\n", problem.c_str());
  if (!report.clean) std::exit(1);
  Figures figures = {
      {"open_s", open_s},
      {"open_after_crash_s", crash_open_s},
      {"memory_of_open_bytes",
       static_cast<double>(memory_open - std::min(memory_open, memory_before))},
      {"memory_end_bytes", static_cast<double>(memory_end)},
      {"list_s", list_s},
      {"lookup_cold_us", lookup_cold_us},
      {"lookup_warm_us", lookup_warm_us},
      {"diff_neighbours_s", diff_s},
      {"diff_runs", static_cast<double>(diff_runs)},
      {"first_write_us", first_us},
      {"snapshot_ms", snapshot_ms},
      {"delete_ms", delete_ms},
      {"reclaim_20_s", reclaim_s},
      {"close_s", close_s},
      {"check_s", check_s},
      {"index_nodes", static_cast<double>(report.index_nodes)},
      {"create_snapshots_s", create_s},
      {"load_s", load_s},
  };
  std::printf("{\"exceptions\":%llu,\"snapshots\":%llu,\"listed\":%zu,\"check_clean\":true",
              static_cast<unsigned long long>(exceptions),
              static_cast<unsigned long long>(snapshots), listed);
  for (const auto& [name, value] : figures) std::printf(",\"%s\":%.8g", name, value);
  std::printf("}\n");
  std::fflush(stdout);
  return figures;
}

// The factor by which each figure grew from `small` to `large`.
void print_growth(const char* what, const Figures& small, const Figures& large) {
  std::printf("{\"growth_with_ten_times_the\":\"%s\"", what);
  for (size_t i = 0; i < small.size(); i++)
    if (small[i].second > 0)
      std::printf(",\"%s\":%.3g", small[i].first, large[i].second / small[i].second);
  std::printf("}\n");
}

}  // namespace

int scale(int argc, char** argv) {
  const std::string directory = option(argc, argv, "--dir", ".");
  const uint64_t exceptions =
      std::strtoull(option(argc, argv, "--exceptions", "100000000").c_str(), nullptr, 10);
  const uint64_t snapshots =
      std::strtoull(option(argc, argv, "--snapshots", "10000").c_str(), nullptr, 10);
  // 20 snapshots after the first third of a tenth of them are deleted.
  if (snapshots < 300 || exceptions < 100000) {
    std::fprintf(stderr, "bench: at least 300 snapshots and 100000 exceptions\n");
    return 2;
  }
  const Figures first = measure(directory, exceptions / 100, snapshots / 10);
  const Figures second = measure(directory, exceptions / 10, snapshots / 10);
  const Figures third = measure(directory, exceptions / 10, snapshots);
  const Figures last = measure(directory, exceptions, snapshots);
  print_growth("exceptions", first, second);
  print_growth("exceptions", third, last);
  print_growth("snapshots", second, third);
  return 0;
}

}  // namespace csnap::bench
