#include "testing/fault_plan.h"

#include <algorithm>
#include <cerrno>

namespace csnap {

const char* device_op_name(DeviceOp op) {
  switch (op) {
    case DeviceOp::READ:
      return "read";
    case DeviceOp::WRITE:
      return "write";
    case DeviceOp::SYNC:
      return "sync";
    case DeviceOp::ZERO:
      return "zero";
    case DeviceOp::DISCARD:
      return "discard";
  }
  return "unknown";
}

bool FaultPlan::spent(const Entry& entry) {
  // Written so that times = kForever does not overflow.
  return entry.seen >= entry.fault.nth && entry.seen - entry.fault.nth >= entry.fault.times - 1;
}

std::optional<Fault::Effect> FaultPlan::next(DeviceOp op, uint64_t offset, uint64_t length) {
  std::optional<Fault::Effect> effect;
  for (Entry& entry : entries_) {
    const Fault& fault = entry.fault;
    if (fault.op != op || spent(entry)) continue;
    const bool touches =
        op == DeviceOp::SYNC || (offset < fault.end_offset && offset + length > fault.begin_offset);
    if (!touches) continue;
    if (++entry.seen >= fault.nth && !effect) effect = fault.effect;
  }
  if (effect) hit_count_++;
  return effect;
}

bool FaultPlan::awaits(DeviceOp op) const {
  return std::any_of(entries_.begin(), entries_.end(),
                     [&](const Entry& entry) { return entry.fault.op == op && !spent(entry); });
}

Status fault_status(Fault::Effect effect, const std::string& device, DeviceOp op, uint64_t offset,
                    uint64_t length) {
  std::string what = device + ": " + device_op_name(op);
  if (op != DeviceOp::SYNC)
    what += " of " + std::to_string(length) + " bytes at " + std::to_string(offset);
  if (effect == Fault::Effect::NO_SPACE) return Status::from_errno(ENOSPC, what);
  if (effect == Fault::Effect::SHORT_IO && op != DeviceOp::SYNC)
    return Status(Code::SHORT_IO, what + ": stopped short");
  return Status::from_errno(EIO, what);
}

}  // namespace csnap
