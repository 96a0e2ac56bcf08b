// GatedDevice: a device that changes nothing past the grant of its server (rule F2). The volume
// wraps origin and store with it, so that its requests and its background work stop in one place.
// Reads pass: what is done with them is gated where it is told (nbd/connection.h).
//
// Invariants
//  GD1  While the gate is closed no change is issued, a sync included, and FENCED is answered.
//  GD2  What completes after the gate has closed is answered with FENCED, whatever became of it: a
//       device that fences its former server off fails its writes. But a sync that failed says so
//       (W9): D3 outlives this grant.
//  GD3  `fenced` is told before FENCED is answered, by every thread that meets it. It must not
//       block, and may use the device.
//  GD4  A device that refuses a change since another host has it reserved (F8) ends the grant,
//       whatever the gate says: the volume stops as if the gate had closed. A sync, too: it is this
//       host that was shut out, no disk has failed.
#pragma once

#include <functional>

#include "base/gate.h"
#include "io/device.h"

namespace csnap {

class GatedDevice final : public Device {
 public:
  // Both outlive the device.
  GatedDevice(Device& below, Gate& gate, std::function<void(const Status&)> fenced)
      : below_(below), gate_(gate), fenced_(std::move(fenced)) {}

  uint64_t size_bytes() const override { return below_.size_bytes(); }
  const std::string& name() const override { return below_.name(); }
  Status read(uint64_t offset, void* data, size_t length) override {
    return below_.read(offset, data, length);
  }
  bool read_nowait(uint64_t offset, void* data, size_t length) override {
    return below_.read_nowait(offset, data, length);
  }
  int cached_file(uint64_t offset, size_t length) override {
    return below_.cached_file(offset, length);
  }
  void will_read(uint64_t offset, size_t length) override { below_.will_read(offset, length); }
  Status write(uint64_t offset, const void* data, size_t length) override;
  Status write_uncached(std::span<const DeviceWrite> writes, Gate* gate) override;
  uint64_t write_unit_bytes() const override { return below_.write_unit_bytes(); }
  Status sync() override;
  Status zero(uint64_t offset, uint64_t length, ZeroMode mode) override;
  Status discard(uint64_t offset, uint64_t length) override;
  Status allocate(uint64_t offset, uint64_t length) override;
  DeviceExtent extent_at(uint64_t offset, uint64_t length) override {
    return below_.extent_at(offset, length);
  }
  void start_writeback() override;
  void drop_cache() override { below_.drop_cache(); }

 private:
  Status refuse() const;
  Status completed(Status status, bool keep_error);

  Device& below_;
  Gate& gate_;
  const std::function<void(const Status&)> fenced_;
};

}  // namespace csnap
