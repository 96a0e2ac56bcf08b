// The volume from end to end on memory devices, real threads.
#include "volume/volume.h"

#include <doctest/doctest.h>

#include <cstring>

#include "testing/faulty_device.h"
#include "testing/rng.h"

namespace csnap {
namespace {

constexpr uint64_t kChunk = 16384;

struct Rig {
  explicit Rig(uint64_t origin_bytes = 1 << 20, uint64_t store_bytes = 16 << 20)
      : origin("origin", origin_bytes), store("store", store_bytes) {
    identity.text = "test";
    CreateOptions create;
    create.volume_name = "vol";
    create.origin = identity;
    create.origin_bytes = origin_bytes;
    create.store_bytes = store_bytes;
    create.chunk_bytes = kChunk;
    const Status status = create_store(store, create);
    REQUIRE_MESSAGE(status.ok(), status.to_text());
  }

  VolumeOptions options() {
    VolumeOptions options;
    options.origin = &origin;
    options.store = &store;
    options.identity = identity;
    return options;
  }

  void open() {
    Result<std::unique_ptr<Volume>> opened = Volume::open(options());
    REQUIRE_MESSAGE(opened.ok(), opened.status().to_text());
    volume = opened.take();
  }
  void close() {
    const Status status = volume->close();
    REQUIRE_MESSAGE(status.ok(), status.to_text());
    volume.reset();
  }

  Status io(IoOp op, View& view, uint64_t offset, uint64_t length, void* data) {
    IoRequest request;
    request.op = op;
    request.view = &view;
    request.offset = offset;
    request.length = length;
    request.data = data;
    return volume->run(request);
  }
  void fill(uint64_t offset, uint64_t length, uint8_t value) {
    std::vector<uint8_t> data(length, value);
    const Status status = io(IoOp::WRITE, *volume->open_origin(), offset, length, data.data());
    CHECK_MESSAGE(status.ok(), status.to_text());
  }
  std::vector<uint8_t> read(View& view, uint64_t offset, uint64_t length) {
    std::vector<uint8_t> data(length, 0xee);
    const Status status = io(IoOp::READ, view, offset, length, data.data());
    CHECK_MESSAGE(status.ok(), status.to_text());
    return data;
  }
  std::shared_ptr<View> snapshot(const std::string& name) {
    Result<SnapshotInfo> made = volume->create_snapshot(name, false, 0, {});
    REQUIRE_MESSAGE(made.ok(), made.status().to_text());
    return volume->open_snapshot(made.value().uuid).take();
  }
  void check_clean() {
    Result<CheckReport> report = volume->check(true, nullptr);
    REQUIRE_MESSAGE(report.ok(), report.status().to_text());
    for (const std::string& problem : report.value().problems) MESSAGE(problem);
    CHECK(report.value().clean);
  }

  MemoryDevice origin, store;
  OriginIdentity identity;
  std::unique_ptr<Volume> volume;
};

TEST_CASE("a snapshot keeps its content while the origin is written, across reopen") {
  Rig rig;
  rig.open();
  rig.fill(0, 100000, 1);
  auto first = rig.snapshot("first");
  rig.fill(5000, 30000, 2);
  auto second = rig.snapshot("second");
  rig.fill(0, 1 << 20, 3);
  CHECK(rig.read(*first, 0, 100000) == std::vector<uint8_t>(100000, 1));
  CHECK(rig.read(*second, 5000, 30000) == std::vector<uint8_t>(30000, 2));
  CHECK(rig.read(*second, 0, 5000) == std::vector<uint8_t>(5000, 1));
  CHECK(rig.read(*second, 100000, 1000) == std::vector<uint8_t>(1000, 0));
  rig.check_clean();
  const Uuid uuid = first->uuid;
  first.reset();
  second.reset();
  rig.close();
  rig.open();
  rig.check_clean();
  first = rig.volume->open_snapshot(uuid).take();
  CHECK(rig.read(*first, 0, 100000) == std::vector<uint8_t>(100000, 1));
  CHECK(rig.read(*rig.volume->open_origin(), 0, 4096) == std::vector<uint8_t>(4096, 3));
  const VolumeInfo info = rig.volume->info();
  CHECK(info.clean);
  CHECK(info.replayed_records == 0);
  CHECK(info.epoch == 2);
  rig.close();
}

TEST_CASE("a deleted snapshot's space comes back, others keep theirs") {
  Rig rig;
  rig.open();
  rig.fill(0, 1 << 20, 1);
  auto a = rig.snapshot("a");
  rig.fill(0, 1 << 19, 2);
  auto b = rig.snapshot("b");
  rig.fill(0, 1 << 20, 3);
  auto list = rig.volume->list_snapshots().take();
  REQUIRE(list.size() == 2);
  CHECK(list[0].unique_bytes == 1 << 19);
  CHECK(list[0].shared_bytes == 1 << 19);
  CHECK(list[1].unique_bytes == 1 << 19);
  CHECK(rig.volume->freed_if_deleted({a->uuid, b->uuid}).value() == 3 << 19);
  CHECK(rig.volume->delete_snapshot(a->uuid).ok());
  CHECK(rig.volume->wait_reclaimed().ok());
  CHECK(rig.volume->info().chunks_freed == (1 << 19) / kChunk);
  std::vector<uint8_t> data(1);
  CHECK(rig.io(IoOp::READ, *a, 0, 1, data.data()).code() == Code::SNAPSHOT_DELETED);
  CHECK(rig.read(*b, 0, 1 << 19) == std::vector<uint8_t>(1 << 19, 2));
  CHECK(rig.read(*b, 1 << 19, 1 << 19) == std::vector<uint8_t>(1 << 19, 1));
  rig.check_clean();
  rig.close();
}

TEST_CASE("a store that fills drops snapshots rather than refuse writes, and nothing else") {
  Rig rig(8 << 20, 6 << 20);
  rig.open();
  for (int round = 0; round < 12; round++) {
    auto snapshot = rig.snapshot("s" + std::to_string(round));
    rig.fill(0, 1 << 20, static_cast<uint8_t>(round + 1));
  }
  CHECK(rig.volume->wait_reclaimed().ok());
  CHECK(rig.volume->info().snapshots_live < 12);
  rig.check_clean();
  CHECK(rig.read(*rig.volume->open_origin(), 0, 1 << 20) == std::vector<uint8_t>(1 << 20, 12));
  rig.close();
}

}  // namespace
}  // namespace csnap
