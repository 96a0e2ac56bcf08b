// Reservations: on a simulated device, servers and fences in any order (RV1-RV5); on real devices
// that have none, the refusals. With real reservations test/vm/reservation.test.ts does it.
#include "io/reservation.h"

#include <doctest/doctest.h>
#include <errno.h>
#include <unistd.h>

#include <deque>

#include "io/reserved_device.h"
#include "io/test_directory.h"
#include "io/test_loop.h"
#include "testing/scheduler.h"
#include "testing/sim_reservation.h"

namespace csnap {
namespace {

constexpr uint64_t kAlpha = 0xa1, kBeta = 0xbe, kGamma = 0xc0;
using Port = SimReservedDevice::Port;

TEST_CASE("reservation: who is not registered can't write, and the next server takes over") {
  SimReservedDevice device;
  Port alpha(device, "alpha"), beta(device, "beta"), gamma(device, "gamma");
  CHECK(device.write("alpha"));
  REQUIRE(take_reservation(alpha, {kAlpha, {}}, nullptr).ok());
  CHECK(device.holder() == "alpha");
  CHECK(!device.write("beta"));
  // Again, as a server that was killed does when it is back.
  REQUIRE(take_reservation(alpha, {kAlpha, {kAlpha}}, nullptr).ok());
  REQUIRE(take_reservation(beta, {kBeta, {kAlpha, kBeta}}, nullptr).ok());
  CHECK(!device.write("alpha"));
  // RV5: there is no moment at which alpha's writes pass.
  REQUIRE(take_reservation(gamma, {kGamma, {kAlpha, kBeta}}, nullptr).ok());
  CHECK(device.holder() == "gamma");
  CHECK(!device.write("alpha"));
  CHECK(!device.write("beta"));
  REQUIRE(clear_reservation(alpha, kAlpha).ok());
  CHECK(device.write("beta"));
}

TEST_CASE("reservation: one that is fenced already is fenced, if the reservation is ours") {
  SimReservedDevice device;
  Port alpha(device, "alpha"), beta(device, "beta"), gamma(device, "gamma");
  REQUIRE(take_reservation(alpha, {kAlpha, {}}, nullptr).ok());
  for (int tries = 0; tries < 2; tries++)
    REQUIRE(take_reservation(beta, {kBeta, {kAlpha}}, nullptr).ok());
  // Beta holds it, which gamma does not know: that alpha's key is gone proves nothing.
  const Status refused = take_reservation(gamma, {kGamma, {kAlpha}}, nullptr);
  CHECK(refused.code() == Code::FENCED);
  CHECK(refused.message().find("gamma is reserved for another host") == 0);
  CHECK(!device.is_registered("gamma"));
  CHECK(device.holder() == "beta");
}

TEST_CASE("reservation: a host that comes by another path takes over from itself") {
  SimReservedDevice device;
  Port former(device, "alpha's former path"), present(device, "alpha's path");
  REQUIRE(take_reservation(former, {kAlpha, {}}, nullptr).ok());
  REQUIRE(take_reservation(present, {kAlpha, {kBeta}}, nullptr).ok());
  CHECK(device.holder() == "alpha's path");
  CHECK(!device.write("alpha's former path"));
}

TEST_CASE("reservation: past its grant a server asks nothing of the device") {
  SimReservedDevice device;
  Port alpha(device, "alpha");
  Gate gate;
  gate.shut();
  CHECK(take_reservation(alpha, {kAlpha, {kBeta}}, &gate).code() == Code::FENCED);
  CHECK(!device.is_registered("alpha"));
}

// Alpha has claimed and is on its way to its first write, as slowly as the seed likes; beta fences
// it and takes over. A fence that is confirmed shuts alpha's gate (broker/transitions.ts TR5), and
// alpha's look at the gate is a step of its own before each write.
TEST_CASE("reservation: after a confirmed fence the former server's writes are refused (RV4)") {
  constexpr uint64_t kSeeds = 4000;
  uint64_t confirmed_count = 0, written_before = 0, late_registrations = 0, refused_writes = 0;
  for (uint64_t seed = 0; seed < kSeeds; seed++) {
    CAPTURE(seed);
    SimReservedDevice device;
    Gate gate;
    bool confirmed = false, written_after = false, taken_over = false;
    SimScheduler scheduler;
    const auto outcome = scheduler.run(seed, [&] {
      Thread server;
      server.start("alpha", [&] {
        Port port(device, "alpha");
        if (!take_reservation(port, {kAlpha, {kBeta}}, &gate).ok()) return;
        late_registrations += confirmed ? 1 : 0;
        for (int writes = 0; writes < 3; writes++) {
          yield_point();
          if (!gate.admit()) return;
          yield_point();
          const bool landed = device.write("alpha");
          if (landed && confirmed) written_after = true;
          (landed ? written_before : refused_writes)++;
        }
      });
      Port port(device, "beta");
      const ReservationKeys keys{kBeta, {kAlpha, kBeta}};
      if (take_reservation(port, keys, nullptr).ok()) {
        gate.shut();
        confirmed = true;
        // Alpha may have come late; beta's server, which the broker starts again, prevails.
        for (int tries = 0; tries < 3 && !taken_over; tries++)
          taken_over = take_reservation(port, keys, nullptr).ok() && device.write("beta");
      }
      server.join();
    });
    REQUIRE(outcome.ok());
    CHECK(!written_after);
    CHECK(taken_over == confirmed);
    confirmed_count += confirmed ? 1 : 0;
  }
  // The seeds have come by every case.
  CHECK(confirmed_count > kSeeds / 2);
  CHECK(confirmed_count < kSeeds);
  CHECK(written_before > 0);
  CHECK(late_registrations > 0);
  CHECK(refused_writes > 0);
}

// What a device may answer, one result for each command.
class ScriptedPort final : public ReservationPort {
 public:
  explicit ScriptedPort(std::deque<int> results) : results_(std::move(results)) {}
  const std::string& name() const override { return name_; }
  int register_key(uint64_t, uint64_t, bool) override { return next(); }
  int reserve(uint64_t) override { return next(); }
  int preempt_and_abort(uint64_t, uint64_t) override { return next(); }
  int clear(uint64_t) override { return next(); }
  size_t left() const { return results_.size(); }

 private:
  int next() {
    REQUIRE(!results_.empty());
    const int result = results_.front();
    results_.pop_front();
    return result;
  }
  const std::string name_ = "disk";
  std::deque<int> results_;
};

Status take_with(std::deque<int> results) {
  ScriptedPort port(std::move(results));
  const Status status = take_reservation(port, {kAlpha, {kBeta}}, nullptr);
  CHECK(port.left() == 0);
  return status;
}

TEST_CASE("reservation: what drivers and kernels answer") {
  // Register, preempt, reserve.
  CHECK(take_with({0, 0, 0}).ok());
  for (const int conflict : {0x18, 0x118, 0x83, 0x4083}) {
    CAPTURE(conflict);
    CHECK(take_with({0, conflict, 0}).ok());
    // Reserving meets another's: not by this host's other path, and so given up.
    CHECK(take_with({0, conflict, conflict, conflict, 0, conflict, 0}).code() == Code::FENCED);
    CHECK(take_with({0, conflict, conflict, 0, 0, 0}).ok());
  }
  // A unit attention is no answer.
  CHECK(take_with({2, 0, 2, 2, 0, 2, 0}).ok());
  CHECK(take_with({0, 2, 2, 2, 2, 2}).code() == Code::IO_ERROR);
  // A path that failed: what became of the command is not known.
  for (const int failed : {0x10000, 0xe0000, 0xf0000, 0x02 | 0x70000}) {
    CHECK(take_with({failed}).code() == Code::IO_ERROR);
    CHECK(take_with({0, failed}).code() == Code::IO_ERROR);
    CHECK(take_with({0, 0, failed}).code() == Code::IO_ERROR);
  }
  CHECK(take_with({0, -EIO}).code() == Code::IO_ERROR);
  CHECK(take_with({-EOPNOTSUPP}).code() == Code::NOT_SUPPORTED);
  const Status unprivileged = take_with({-EPERM});
  CHECK(unprivileged.code() == Code::PERMISSION);
  CHECK(unprivileged.message() == "disk: reservations need CAP_SYS_ADMIN: run this as root");
}

TEST_CASE("reservation: a probe believes only a device that answers with a conflict") {
  for (const int result : {-EOPNOTSUPP, -ENOTTY, -EINVAL, 0x1, 0x4001}) {
    CAPTURE(result);
    ScriptedPort port({result});
    const Status status = probe_reservation(port);
    CHECK(status.code() == Code::NOT_SUPPORTED);
    CHECK(status.message().find("disk takes no persistent reservations: use a ") == 0);
  }
  ScriptedPort illegal({2, 2, 2, 2, 2});
  CHECK(probe_reservation(illegal).code() == Code::NOT_SUPPORTED);
  SimReservedDevice device;
  Port alpha(device, "alpha");
  CHECK(probe_reservation(alpha).ok());
  REQUIRE(take_reservation(alpha, {kAlpha, {}}, nullptr).ok());
  CHECK(probe_reservation(alpha).ok());
  CHECK(device.holder() == "alpha");
}

TEST_CASE("reservation: files and loop devices are refused in one line") {
  const TestDirectory directory;
  const std::string path = directory.file("disk");
  bool created = false;
  REQUIRE(allocate_in_full(path, 1 << 20, nullptr, created).ok());
  const Status file = probe_device_reservation(path);
  CHECK(file.code() == Code::NOT_SUPPORTED);
  CHECK(file.message() == path +
                              " is no block device, and can't be reserved: use a whole SCSI or "
                              "NVMe device, or declare --fence command=CMD");
  CHECK(fence_devices({path}, {kAlpha, {kBeta}}).code() == Code::NOT_SUPPORTED);
  const TestLoop loop(path);
  if (!loop.ok()) return;
  const Status looped = probe_device_reservation(loop.path());
  CHECK(looped.code() == Code::NOT_SUPPORTED);
  CHECK(looped.message().find(loop.path() + " takes no persistent reservations") == 0);
  CHECK(fence_devices({loop.path()}, {kAlpha, {kBeta}}).code() == Code::NOT_SUPPORTED);
  CHECK(clear_devices({loop.path()}, kAlpha).code() == Code::NOT_SUPPORTED);
}

TEST_CASE("reservation: a fence needs the devices for itself (RV1)") {
  const TestDirectory directory;
  const std::string path = directory.file("disk");
  bool created = false;
  REQUIRE(allocate_in_full(path, 1 << 20, nullptr, created).ok());
  const auto server = FileDevice::open(path, {});
  REQUIRE(server.ok());
  CHECK(fence_devices({path}, {kAlpha, {kBeta}}).code() == Code::BUSY);
}

}  // namespace
}  // namespace csnap
