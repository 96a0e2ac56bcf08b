// What an origin write costs with 1, 64 and 1,000 snapshots: first writes (which copy out) and
// rewrites apart, in interleaved rounds. Each round takes a new snapshot and deletes the oldest, so
// the number stays; reclaim has finished before anything is timed. A rewrite is short: they are
// timed after all first writes are on disk, in many small turns. Ratios are against the volume with
// one snapshot in the same round.
#include <filesystem>
#include <numeric>

#include "bench/bench.h"
#include "bench/ratio.h"
#include "testing/rng.h"

namespace csnap::bench {
namespace {

constexpr uint64_t kChunkBytes = 16384;
constexpr uint64_t kOriginBytes = uint64_t{512} << 20;
constexpr uint64_t kWrites = 2000;
constexpr uint32_t kDepth = 16;
constexpr int kRewriteTurns = 30;
constexpr int kBurstsPerTurn = 4;

struct Subject {
  uint64_t snapshots;
  std::unique_ptr<Files> files;
  std::unique_ptr<Volume> volume;
  std::vector<Uuid> uuids;
  std::vector<uint64_t> offsets;                 // of this round's writes
  double rewrite_seconds;                        // of this round
  std::vector<double> first_rate, rewrite_rate;  // writes per second, by round
};

// `kWrites` writes of 4 KiB with kDepth in flight; returns the seconds they took.
class Burst {
 public:
  Burst(Volume& volume, const std::vector<uint64_t>& offsets)
      : volume_(volume), offsets_(offsets) {}

  double run() {
    view_ = volume_.open_origin();
    requests_.resize(kDepth);
    const double start = seconds();
    MutexLock lock(mutex_);
    while (finished_ < offsets_.size()) {
      if (next_ < offsets_.size() && !free_slots().empty()) {
        IoRequest& request = requests_[free_.back()];
        free_.pop_back();
        request.op = IoOp::WRITE;
        request.view = view_.get();
        request.offset = offsets_[next_++];
        request.length = data_.size();
        request.data = data_.data();
        request.owner = this;
        request.done = [](IoRequest& done) { static_cast<Burst*>(done.owner)->completed(done); };
        lock.unlock();
        const bool inline_done = volume_.submit(request, false);
        if (inline_done) completed(request);
        lock.lock();
      } else {
        wake_.wait(lock);
      }
    }
    return seconds() - start;
  }

 private:
  std::vector<size_t>& free_slots() {
    if (!filled_) {
      for (size_t i = 0; i < kDepth; i++) free_.push_back(i);
      filled_ = true;
    }
    return free_;
  }
  void completed(IoRequest& request) {
    must(request.status, "write");
    MutexLock lock(mutex_);
    free_.push_back(static_cast<size_t>(&request - requests_.data()));
    finished_++;
    wake_.notify_one();
  }

  Volume& volume_;
  const std::vector<uint64_t>& offsets_;
  std::shared_ptr<View> view_;
  std::vector<IoRequest> requests_;
  std::vector<std::byte> data_ = std::vector<std::byte>(4096, std::byte{7});
  Mutex mutex_;
  CondVar wake_;
  std::vector<size_t> free_;
  bool filled_ = false;
  size_t next_ = 0, finished_ = 0;
};

void prepare(Subject& subject, const std::string& directory) {
  const std::string own = directory + "/n" + std::to_string(subject.snapshots);
  std::filesystem::create_directories(own);
  subject.files = std::make_unique<Files>(own, kOriginBytes, uint64_t{4} << 30, kChunkBytes);
  subject.volume = must(Volume::open(subject.files->options()), "open");
  std::vector<std::byte> data(4096, std::byte{1});
  auto origin = subject.volume->open_origin();
  // In pieces of 4 KiB, so that the page cache stays in small folios.
  for (uint64_t offset = 0; offset < kOriginBytes; offset += data.size())
    must(io(*subject.volume, *origin, IoOp::WRITE, offset, data.size(), data.data()), "fill");
  for (uint64_t i = 0; i < subject.snapshots; i++)
    subject.uuids.push_back(
        must(subject.volume->create_snapshot("s" + std::to_string(i), false, 0, {}), "snapshot")
            .uuid);
}

void first_writes(Subject& subject, uint64_t number, uint64_t seed) {
  subject.uuids.push_back(
      must(subject.volume->create_snapshot("r" + std::to_string(number), false, 0, {}), "snapshot")
          .uuid);
  must(subject.volume->delete_snapshot(subject.uuids.front(), false), "delete");
  subject.uuids.erase(subject.uuids.begin());
  must(subject.volume->wait_reclaimed(), "reclaim");
  must(subject.volume->checkpoint(), "checkpoint");
  Rng rng(seed);
  std::vector<uint64_t> chunks(kOriginBytes / kChunkBytes);
  std::iota(chunks.begin(), chunks.end(), 0);
  subject.offsets.clear();
  for (uint64_t i = 0; i < kWrites; i++) {
    std::swap(chunks[i], chunks[i + rng.below(chunks.size() - i)]);
    subject.offsets.push_back(chunks[i] * kChunkBytes + rng.below(4) * 4096);
  }
  subject.first_rate.push_back(kWrites / Burst(*subject.volume, subject.offsets).run());
  auto origin = subject.volume->open_origin();
  must(io(*subject.volume, *origin, IoOp::FLUSH, 0, 0, nullptr), "flush");
  must(subject.volume->checkpoint(), "checkpoint");
  subject.rewrite_seconds = 0;
}

void round(std::vector<Subject>& subjects, uint64_t number, uint64_t seed) {
  // The order turns, so that no subject is always first.
  const auto turn = [&](uint64_t i, uint64_t by) -> Subject& {
    return subjects[(i + by) % subjects.size()];
  };
  for (uint64_t i = 0; i < subjects.size(); i++) first_writes(turn(i, number), number, seed);
  for (int t = 0; t < kRewriteTurns; t++) {
    for (uint64_t i = 0; i < subjects.size(); i++) {
      Subject& subject = turn(i, number + static_cast<uint64_t>(t));
      for (int burst = 0; burst < kBurstsPerTurn; burst++)
        subject.rewrite_seconds += Burst(*subject.volume, subject.offsets).run();
    }
  }
  for (Subject& subject : subjects)
    subject.rewrite_rate.push_back(kRewriteTurns * kBurstsPerTurn * kWrites /
                                   subject.rewrite_seconds);
}

void judge(const char* what, uint64_t snapshots, const std::vector<double>& rates,
           const std::vector<double>& base) {
  const Ratio ratio = ratio_of(rates, base);
  std::vector<double> sorted = rates;
  std::printf(
      "{\"what\":\"%s\",\"snapshots\":%llu,\"rounds\":%zu,\"median_writes_per_s\":%.0f,"
      "\"ratio_median\":%.3f,\"ratio_low95\":%s,\"ratio_high95\":%s}\n",
      what, static_cast<unsigned long long>(snapshots), rates.size(), percentile(sorted, 0.5),
      ratio.median, json_number(ratio.low).c_str(), json_number(ratio.high).c_str());
}

}  // namespace

int write_cost(int argc, char** argv) {
  const std::string directory = option(argc, argv, "--dir", ".");
  const uint64_t rounds = std::strtoull(option(argc, argv, "--rounds", "25").c_str(), nullptr, 10);
  const uint64_t seed = std::strtoull(option(argc, argv, "--seed", "1").c_str(), nullptr, 10);
  std::vector<Subject> subjects(3);
  subjects[0].snapshots = 1;
  subjects[1].snapshots = 64;
  subjects[2].snapshots = 1000;
  for (Subject& subject : subjects) prepare(subject, directory);
  for (uint64_t number = 0; number < rounds; number++) round(subjects, number, seed + number);
  for (Subject& subject : subjects) {
    judge("first write", subject.snapshots, subject.first_rate, subjects[0].first_rate);
    judge("rewrite", subject.snapshots, subject.rewrite_rate, subjects[0].rewrite_rate);
  }
  for (Subject& subject : subjects) must(subject.volume->close(), "close");
  return 0;
}

}  // namespace csnap::bench
