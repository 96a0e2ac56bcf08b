// A clock in a test's hand, and devices that move it past a grant's deadline in the middle of an
// operation. They stand below a gated device and write down what reaches them too late. Callers:
// tests of the gate (rule F2).
//
// Invariants
//  I1  A change that begins past the deadline is late. Under a simulation that is exact, since
//  nothing
//      gets in between the gate and the device; with real threads a test must leave no other at
//      work.
//  I2  The deadline passes after the operation was done below and before its caller hears of it.
#pragma once

#include <atomic>
#include <functional>

#include "io/device.h"

namespace csnap {

// Shared by the devices of a test.
struct Lapse {
  static constexpr int64_t kDeadlineNs = 1000;

  std::atomic<int64_t> now_ns{0};
  std::atomic<uint64_t> uses{0};       // operations of whatever kind so far
  std::atomic<uint64_t> changes{0};    // writes, zeroes, trims and syncs so far
  std::atomic<uint64_t> late{0};       // of these, past the deadline
  std::atomic<uint64_t> at_change{0};  // in this one the deadline passes; 0: in none
  std::atomic<bool> at_next{false};    // or in the next operation of whatever kind

  std::function<int64_t()> clock() {
    return [this] { return now_ns.load(); };
  }
  bool lapsed() const { return now_ns >= kDeadlineNs; }
  void lapse() { now_ns = kDeadlineNs; }
};

class LapsingDevice final : public Device {
 public:
  LapsingDevice(Device& below, Lapse& lapse) : below_(below), lapse_(lapse) {}

  uint64_t size_bytes() const override { return below_.size_bytes(); }
  const std::string& name() const override { return below_.name(); }
  Status read(uint64_t offset, void* data, size_t length) override {
    return then(below_.read(offset, data, length));
  }
  bool read_nowait(uint64_t offset, void* data, size_t length) override {
    return then(below_.read_nowait(offset, data, length));
  }
  int cached_file(uint64_t offset, size_t length) override {
    return then(below_.cached_file(offset, length));
  }
  void will_read(uint64_t offset, size_t length) override { below_.will_read(offset, length); }
  Status write(uint64_t offset, const void* data, size_t length) override {
    return change([&] { return below_.write(offset, data, length); });
  }
  Status sync() override {
    return change([&] { return below_.sync(); });
  }
  Status zero(uint64_t offset, uint64_t length, ZeroMode mode) override {
    return change([&] { return below_.zero(offset, length, mode); });
  }
  Status discard(uint64_t offset, uint64_t length) override {
    return change([&] { return below_.discard(offset, length); });
  }
  Status allocate(uint64_t offset, uint64_t length) override {
    return change([&] { return below_.allocate(offset, length); });
  }
  DeviceExtent extent_at(uint64_t offset, uint64_t length) override {
    return then(below_.extent_at(offset, length));
  }
  void start_writeback() override { below_.start_writeback(); }
  void drop_cache() override { below_.drop_cache(); }

 private:
  template <typename T>
  T then(T result) {
    lapse_.uses++;
    if (lapse_.at_next.exchange(false)) lapse_.lapse();
    return result;
  }
  template <typename Issue>
  Status change(Issue issue) {
    if (lapse_.lapsed()) lapse_.late++;
    const uint64_t number = ++lapse_.changes;
    Status status = issue();
    if (number == lapse_.at_change) lapse_.lapse();
    return then(std::move(status));
  }

  Device& below_;
  Lapse& lapse_;
};

}  // namespace csnap
