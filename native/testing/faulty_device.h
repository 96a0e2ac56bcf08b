// FaultyDevice makes the operations of any device fail by plan, for tests with real threads and
// files. MemoryDevice is a plain device in memory, for model tests and fuzzers. Callers: tests.
//
// Invariants
//  I1  D1-D4 hold. A failed write has done a prefix of its range, of whole sectors; which one comes
//  from
//      the seed.
//  I2  After a failed sync all later ones fail (D3), without reaching the device below.
#pragma once

#include <mutex>
#include <string>
#include <vector>

#include "io/device.h"
#include "testing/fault_plan.h"
#include "testing/rng.h"

namespace csnap {

class FaultyDevice final : public Device {
 public:
  FaultyDevice(Device& below, uint64_t seed) : below_(below), rng_(seed) {}

  void add_fault(const Fault& fault);
  // Operations from now on succeed; a sync that failed stays failed.
  void clear_faults();
  uint64_t hit_count() const;

  uint64_t size_bytes() const override { return below_.size_bytes(); }
  const std::string& name() const override { return below_.name(); }
  Status read(uint64_t offset, void* data, size_t length) override;
  bool read_nowait(uint64_t offset, void* data, size_t length) override;
  int cached_file(uint64_t offset, size_t length) override;
  void will_read(uint64_t offset, size_t length) override { below_.will_read(offset, length); }
  Status write(uint64_t offset, const void* data, size_t length) override;
  Status sync() override;
  Status zero(uint64_t offset, uint64_t length, ZeroMode mode) override;
  Status discard(uint64_t offset, uint64_t length) override;
  Status allocate(uint64_t offset, uint64_t length) override {
    return below_.allocate(offset, length);
  }
  DeviceExtent extent_at(uint64_t offset, uint64_t length) override {
    return below_.extent_at(offset, length);
  }
  void start_writeback() override { below_.start_writeback(); }
  void drop_cache() override { below_.drop_cache(); }

 private:
  struct Verdict {
    std::optional<Fault::Effect> effect;
    uint64_t length_done;  // of a write that fails
  };
  Verdict judge(DeviceOp op, uint64_t offset, uint64_t length);

  Device& below_;
  // A plain mutex: held only for moments and never across a switch of actors.
  mutable std::mutex mutex_;
  FaultPlan plan_;
  Rng rng_;
  bool sync_failed_ = false;
};

class MemoryDevice final : public Device {
 public:
  MemoryDevice(std::string name, uint64_t size_bytes)
      : name_(std::move(name)), bytes_(size_bytes) {}
  MemoryDevice(std::string name, std::vector<uint8_t> bytes)
      : name_(std::move(name)), bytes_(std::move(bytes)) {}

  uint64_t size_bytes() const override { return bytes_.size(); }
  const std::string& name() const override { return name_; }
  Status read(uint64_t offset, void* data, size_t length) override;
  bool read_nowait(uint64_t offset, void* data, size_t length) override {
    return read(offset, data, length).ok();
  }
  Status write(uint64_t offset, const void* data, size_t length) override;
  Status sync() override { return {}; }
  Status zero(uint64_t offset, uint64_t length, ZeroMode mode) override;
  // Zeroes the whole sectors of the range.
  Status discard(uint64_t offset, uint64_t length) override;

  // For a test's own eyes and hands, while nobody else uses the device.
  std::vector<uint8_t>& bytes() { return bytes_; }

 private:
  bool inside(uint64_t offset, uint64_t length) const {
    return offset <= bytes_.size() && length <= bytes_.size() - offset;
  }

  const std::string name_;
  std::mutex mutex_;
  std::vector<uint8_t> bytes_;
};

}  // namespace csnap
