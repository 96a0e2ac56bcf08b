// The gated device: what passes, what is refused before it is issued, and what is disowned when it
// completes too late (F2).
#include "io/gated_device.h"

#include <doctest/doctest.h>
#include <errno.h>

#include <string>
#include <vector>

#include "testing/faulty_device.h"
#include "testing/lapsing_device.h"

namespace csnap {
namespace {

struct Rig {
  Rig() { gate.extend(Lapse::kDeadlineNs); }

  struct Change {
    const char* name;
    DeviceOp op;
    std::function<Status(Device&)> run;
  };
  static std::vector<Change> changes() {
    static const std::vector<uint8_t> data(4096, 7);
    return {
        {"write", DeviceOp::WRITE, [](Device& on) { return on.write(0, data.data(), 4096); }},
        {"uncached write", DeviceOp::WRITE,
         [](Device& on) {
           const DeviceWrite writes[] = {{0, data.data(), 4096}};
           return on.write_uncached(writes, nullptr);
         }},
        {"sync", DeviceOp::SYNC, [](Device& on) { return on.sync(); }},
        {"zero", DeviceOp::ZERO, [](Device& on) { return on.zero(0, 4096, ZeroMode::ALLOW_HOLE); }},
        {"discard", DeviceOp::DISCARD, [](Device& on) { return on.discard(0, 4096); }},
    };
  }

  Lapse lapse;
  Gate gate{lapse.clock()};
  MemoryDevice memory{"disk", 8192};
  FaultyDevice faults{memory, 1};
  LapsingDevice below{faults, lapse};
  std::vector<Status> told;
  GatedDevice device{below, gate, [this](const Status& why) { told.push_back(why); }};
};

TEST_CASE("gated device: an open gate lets everything through") {
  Rig rig;
  for (const auto& [name, op, run] : Rig::changes()) {
    CAPTURE(name);
    CHECK(run(rig.device).ok());
  }
  CHECK(rig.lapse.changes == 5);
  CHECK(rig.device.size_bytes() == 8192);
  CHECK(rig.device.name() == "disk");
  CHECK(rig.told.empty());
  CHECK(rig.gate.refusals() == 0);
}

TEST_CASE("gated device: past the deadline no change reaches the device (GD1)") {
  for (const bool shut : {false, true}) {
    Rig rig;
    if (shut)
      rig.gate.shut();
    else
      rig.lapse.lapse();
    for (const auto& [name, op, run] : Rig::changes()) {
      CAPTURE(name);
      const Status status = run(rig.device);
      CHECK(status.code() == Code::FENCED);
      CHECK(status.message().find("disk: the grant of this server's epoch has ended") == 0);
    }
    CHECK(rig.lapse.changes == 0);
    CHECK(rig.memory.bytes() == std::vector<uint8_t>(8192, 0));
    CHECK(rig.told.size() == 5);
    CHECK(rig.gate.refusals() == 5);
  }
}

TEST_CASE("gated device: what the deadline passes by is not acknowledged (GD2)") {
  for (const auto& [name, op, run] : Rig::changes()) {
    CAPTURE(name);
    Rig rig;
    rig.lapse.at_change = 1;
    CHECK(run(rig.device).code() == Code::FENCED);
    CHECK(rig.lapse.changes == 1);
    REQUIRE(rig.told.size() == 1);
    CHECK(rig.told[0].code() == Code::FENCED);
  }
}

TEST_CASE(
    "gated device: an error past the deadline is the lost grant's, but a failed sync's (GD2)") {
  for (const auto& [name, op, run] : Rig::changes()) {
    CAPTURE(name);
    for (const bool lapses : {false, true}) {
      Rig rig;
      rig.faults.add_fault({op, Fault::Effect::IO_ERROR});
      rig.lapse.at_change = lapses ? 1 : 0;
      const Code code = run(rig.device).code();
      const bool fenced = lapses && op != DeviceOp::SYNC;
      CHECK(code == (fenced ? Code::FENCED : Code::IO_ERROR));
      // Told of a lost grant, the volume would not mark the failed sync.
      CHECK(rig.told.size() == (fenced ? 1 : 0));
    }
  }
}

TEST_CASE("gated device: of several uncached writes none is issued past the deadline (GD1)") {
  Rig rig;
  const std::vector<uint8_t> data(4096, 7);
  const DeviceWrite writes[] = {{0, data.data(), 4096}, {4096, data.data(), 4096}};
  rig.lapse.at_change = 1;
  CHECK(rig.device.write_uncached(writes, nullptr).code() == Code::FENCED);
  CHECK(rig.lapse.changes == 1);
  CHECK(rig.lapse.late == 0);
  CHECK(rig.told.size() == 1);
  CHECK(rig.memory.bytes()[0] == 7);
  CHECK(rig.memory.bytes()[4096] == 0);
}

// As a block device reports a reservation conflict (EBADE).
class ReservedDevice final : public Device {
 public:
  uint64_t size_bytes() const override { return 8192; }
  const std::string& name() const override { return name_; }
  Status read(uint64_t, void*, size_t) override { return Status(); }
  Status write(uint64_t, const void*, size_t) override { return refusal(); }
  Status sync() override { return refusal(); }
  Status zero(uint64_t, uint64_t, ZeroMode) override { return refusal(); }
  Status discard(uint64_t, uint64_t) override { return refusal(); }
  DeviceExtent extent_at(uint64_t, uint64_t length) override { return {length, false}; }

 private:
  Status refusal() const { return Status::from_errno(EBADE, name_ + ": write"); }
  const std::string name_ = "disk";
};

TEST_CASE("gated device: one that another host has reserved ends the grant (GD4)") {
  for (const auto& [name, op, run] : Rig::changes()) {
    CAPTURE(name);
    Gate gate;
    ReservedDevice below;
    std::vector<Status> told;
    GatedDevice device(below, gate, [&](const Status& why) { told.push_back(why); });
    const Status status = run(device);
    CHECK(status.code() == Code::FENCED);
    CHECK(status.message() == "disk: write was refused: another host has reserved it");
    REQUIRE(told.size() == 1);
    CHECK(told[0].code() == Code::FENCED);
    CHECK(gate.is_open());
  }
}

TEST_CASE("gated device: reads pass a closed gate") {
  Rig rig;
  const std::vector<uint8_t> data(4096, 7);
  REQUIRE(rig.device.write(4096, data.data(), data.size()).ok());
  rig.lapse.lapse();
  std::vector<uint8_t> seen(4096);
  CHECK(rig.device.read(4096, seen.data(), seen.size()).ok());
  CHECK(seen == data);
  CHECK(rig.device.read_nowait(0, seen.data(), seen.size()));
  CHECK(seen == std::vector<uint8_t>(4096, 0));
  CHECK(rig.device.extent_at(0, 8192).length_bytes == 8192);
  CHECK(rig.told.empty());
}

TEST_CASE("gated device: an extended gate lets changes through again") {
  Rig rig;
  rig.lapse.lapse();
  CHECK(rig.device.sync().code() == Code::FENCED);
  rig.gate.extend(2 * Lapse::kDeadlineNs);
  CHECK(rig.device.sync().ok());
}

}  // namespace
}  // namespace csnap
