// Staged writes as a connection submits what one receive brought: Volume::submit_writes().
#include <bit>
#include <thread>

#include "volume/staging_test_rig.h"

namespace csnap {
namespace {

struct One {
  uint64_t offset, length;
  uint8_t value;
};

// Waits for all of them.
void write_together(Rig& rig, const std::vector<One>& ones) {
  const std::shared_ptr<View> live = rig.volume->open_origin();
  std::vector<Bytes> data;
  std::vector<IoRequest> requests(ones.size());
  std::vector<IoRequest*> pointers;
  std::atomic<size_t> ended{0};
  for (size_t i = 0; i < ones.size(); i++) {
    data.push_back(Bytes(ones[i].length, ones[i].value));
    requests[i].op = IoOp::WRITE;
    requests[i].view = live.get();
    requests[i].offset = ones[i].offset;
    requests[i].length = ones[i].length;
    requests[i].data = data[i].data();
    requests[i].owner = &ended;
    requests[i].done = [](IoRequest& one) { (*static_cast<std::atomic<size_t>*>(one.owner))++; };
    pointers.push_back(&requests[i]);
  }
  const uint64_t done = rig.volume->submit_writes(pointers);
  while (ended + static_cast<size_t>(std::popcount(done)) < ones.size()) std::this_thread::yield();
  for (const IoRequest& request : requests) CHECK(request.status.ok());
}

}  // namespace

TEST_CASE("staging: writes that come together are one append, each to its own chunk") {
  for (const auto mode : kModes) {
    Image image;
    Uuid a;
    const auto check_content = [&](Rig& rig) {
      Bytes data(kBlock);
      CHECK(rig.io(IoOp::READ, *rig.volume->open_origin(), 0, data).ok());
      CHECK(data[0] == 2);
      CHECK(data[512] == 3);
      CHECK(data[1024] == 1);
      CHECK(rig.now(kChunk, 5) == Bytes{4, 1, 1, 5, 5});
      CHECK(rig.now(5 * kChunk, 1) == Bytes{7});
      CHECK(rig.blocks(rig.volume->open_snapshot(a).take(), 0, 20) == Bytes(20, 1));
    };
    {
      Rig rig(mode);
      a = rig.snapshot("a")->uuid;
      rig.write(5 * kChunk, kBlock, 6);
      CHECK(rig.volume->checkpoint().ok());  // copied: it can be written in place
      rig.origin.hold(true);
      const VolumeInfo before = rig.volume->info();
      // Three of a sector to a fresh chunk, two of them to the same; one to the next; one that
      // crosses into a third chunk, and one to what is copied.
      write_together(rig, {{0, 512, 9},
                           {0, 512, 2},
                           {512, 512, 3},
                           {kChunk, kBlock, 4},
                           {2 * kChunk - kBlock, 2 * kBlock, 5},
                           {5 * kChunk, kBlock, 7}});
      const VolumeInfo after = rig.volume->info();
      // All but what goes in place, where that is allowed.
      const bool in_place = mode == format::DurabilityMode::FLUSH;
      CHECK(after.staged - before.staged == (in_place ? 5 : 6));
      // Three of a sector, one or two of a block, and the one across chunks by itself.
      const auto append = [](uint64_t count, uint64_t data) {
        return round_up(count * (sizeof(format::RecordHeader) + sizeof(format::DataRecord) + data),
                        kSectorBytes);
      };
      const uint64_t one_by_one =
          3 * append(1, 512) + (in_place ? 1 : 2) * append(1, kBlock) + append(2, kBlock);
      CHECK(after.journal_used_bytes - before.journal_used_bytes < one_by_one);
      check_content(rig);
      image = rig.image();
    }
    Rig rig(image, mode);
    check_content(rig);
    rig.origin.hold(false);
    CHECK(rig.volume->checkpoint().ok());
    check_content(rig);
    rig.check_clean();
  }
}

TEST_CASE("staging: writes that come together to what is copied reserve nothing") {
  Image image;
  {
    Rig rig(format::DurabilityMode::SYNC);
    rig.snapshot("a");
    write_together(rig, {{0, kBlock, 2}, {kChunk, kBlock, 2}});
    CHECK(rig.volume->checkpoint().ok());
    image = rig.image();
  }
  // Just opened, it knows of no chunk that it is copied.
  Rig rig(image, format::DurabilityMode::SYNC);
  const VolumeInfo before = rig.volume->info();
  write_together(rig, {{0, kBlock, 3}, {kChunk, kBlock, 3}});
  const VolumeInfo after = rig.volume->info();
  CHECK(after.staged == before.staged + 2);
  CHECK(after.blocks_free == before.blocks_free);
  CHECK(rig.now(0, 5) == Bytes{3, 1, 1, 1, 3});
}

}  // namespace csnap
