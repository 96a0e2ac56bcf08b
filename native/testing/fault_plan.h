// Which device operations fail, and how: shared by SimDisk and FaultyDevice. Callers: tests.
//
// Invariants
//  I1  A fault counts the operations it matches from the moment it is added, so "the third write
//  from
//      now" means the same in every run with the same operations.
//  I2  Not locked: FaultyDevice guards its own plan, a SimDisk runs on one thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"

namespace csnap {

enum class DeviceOp : uint8_t { READ, WRITE, SYNC, ZERO, DISCARD };
constexpr size_t kDeviceOpCount = 5;
const char* device_op_name(DeviceOp op);

struct Fault {
  enum class Effect : uint8_t {
    IO_ERROR,  // EIO; a write may have changed any sectors of its range
    NO_SPACE,  // ENOSPC, likewise
    SHORT_IO,  // a prefix is done, then SHORT_IO
  };
  static constexpr uint64_t kForever = ~uint64_t{0};

  DeviceOp op = DeviceOp::WRITE;
  Effect effect = Effect::IO_ERROR;
  uint64_t nth = 1;    // 1: the next operation that matches
  uint64_t times = 1;  // so many in a row
  // Only operations that touch [begin_offset, end_offset); a sync touches everything.
  uint64_t begin_offset = 0;
  uint64_t end_offset = ~uint64_t{0};
};

class FaultPlan {
 public:
  void add(const Fault& fault) { entries_.push_back({fault, 0}); }
  void clear() { entries_.clear(); }
  // Counts one operation and says what befalls it.
  std::optional<Fault::Effect> next(DeviceOp op, uint64_t offset, uint64_t length);
  // Whether any fault for this operation still lies ahead.
  bool awaits(DeviceOp op) const;
  // How many operations have been made to fail.
  uint64_t hit_count() const { return hit_count_; }

 private:
  struct Entry {
    Fault fault;
    uint64_t seen;
  };
  static bool spent(const Entry& entry);

  std::vector<Entry> entries_;
  uint64_t hit_count_ = 0;
};

// What the caller of a device gets to see of a fault.
Status fault_status(Fault::Effect effect, const std::string& device, DeviceOp op, uint64_t offset,
                    uint64_t length);

}  // namespace csnap
