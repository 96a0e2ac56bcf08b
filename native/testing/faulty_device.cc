#include "testing/faulty_device.h"

#include <cerrno>
#include <cstring>

#include "base/units.h"

namespace csnap {

void FaultyDevice::add_fault(const Fault& fault) {
  const std::lock_guard lock(mutex_);
  plan_.add(fault);
}

void FaultyDevice::clear_faults() {
  const std::lock_guard lock(mutex_);
  plan_.clear();
}

uint64_t FaultyDevice::hit_count() const {
  const std::lock_guard lock(mutex_);
  return plan_.hit_count();
}

FaultyDevice::Verdict FaultyDevice::judge(DeviceOp op, uint64_t offset, uint64_t length) {
  const std::lock_guard lock(mutex_);
  Verdict verdict{plan_.next(op, offset, length), 0};
  if (op == DeviceOp::SYNC) {
    if (sync_failed_ && !verdict.effect) verdict.effect = Fault::Effect::IO_ERROR;
    if (verdict.effect) sync_failed_ = true;
  } else if (verdict.effect && length > 0) {
    const uint64_t end = round_down(offset + rng_.below(length), kSectorBytes);
    verdict.length_done = end > offset ? end - offset : 0;
  }
  return verdict;
}

Status FaultyDevice::read(uint64_t offset, void* data, size_t length) {
  const Verdict verdict = judge(DeviceOp::READ, offset, length);
  if (!verdict.effect) return below_.read(offset, data, length);
  std::memset(data, 0xee, length);
  return fault_status(*verdict.effect, name(), DeviceOp::READ, offset, length);
}

bool FaultyDevice::read_nowait(uint64_t offset, void* data, size_t length) {
  {
    const std::lock_guard lock(mutex_);
    if (plan_.awaits(DeviceOp::READ)) return false;
  }
  return below_.read_nowait(offset, data, length);
}

int FaultyDevice::cached_file(uint64_t offset, size_t length) {
  {
    const std::lock_guard lock(mutex_);
    if (plan_.awaits(DeviceOp::READ)) return -1;
  }
  return below_.cached_file(offset, length);
}

Status FaultyDevice::write(uint64_t offset, const void* data, size_t length) {
  const Verdict verdict = judge(DeviceOp::WRITE, offset, length);
  if (!verdict.effect) return below_.write(offset, data, length);
  if (verdict.length_done > 0) CSNAP_TRY(below_.write(offset, data, verdict.length_done));
  return fault_status(*verdict.effect, name(), DeviceOp::WRITE, offset, length);
}

Status FaultyDevice::sync() {
  const Verdict verdict = judge(DeviceOp::SYNC, 0, 0);
  if (verdict.effect) return fault_status(*verdict.effect, name(), DeviceOp::SYNC, 0, 0);
  Status status = below_.sync();
  if (!status.ok()) {
    const std::lock_guard lock(mutex_);
    sync_failed_ = true;
  }
  return status;
}

Status FaultyDevice::zero(uint64_t offset, uint64_t length, ZeroMode mode) {
  const Verdict verdict = judge(DeviceOp::ZERO, offset, length);
  if (!verdict.effect) return below_.zero(offset, length, mode);
  if (verdict.length_done > 0) CSNAP_TRY(below_.zero(offset, verdict.length_done, mode));
  return fault_status(*verdict.effect, name(), DeviceOp::ZERO, offset, length);
}

Status FaultyDevice::discard(uint64_t offset, uint64_t length) {
  const Verdict verdict = judge(DeviceOp::DISCARD, offset, length);
  if (!verdict.effect) return below_.discard(offset, length);
  return fault_status(*verdict.effect, name(), DeviceOp::DISCARD, offset, length);
}

Status MemoryDevice::read(uint64_t offset, void* data, size_t length) {
  if (!inside(offset, length))
    return fault_status(Fault::Effect::SHORT_IO, name_, DeviceOp::READ, offset, length);
  const std::lock_guard lock(mutex_);
  if (length > 0) std::memcpy(data, bytes_.data() + offset, length);
  return {};
}

Status MemoryDevice::write(uint64_t offset, const void* data, size_t length) {
  if (!inside(offset, length))
    return fault_status(Fault::Effect::NO_SPACE, name_, DeviceOp::WRITE, offset, length);
  const std::lock_guard lock(mutex_);
  if (length > 0) std::memcpy(bytes_.data() + offset, data, length);
  return {};
}

Status MemoryDevice::zero(uint64_t offset, uint64_t length, ZeroMode) {
  if (!inside(offset, length))
    return fault_status(Fault::Effect::NO_SPACE, name_, DeviceOp::ZERO, offset, length);
  const std::lock_guard lock(mutex_);
  if (length > 0) std::memset(bytes_.data() + offset, 0, length);
  return {};
}

Status MemoryDevice::discard(uint64_t offset, uint64_t length) {
  const uint64_t begin = round_up(offset, kSectorBytes);
  const uint64_t end = round_down(offset + length, kSectorBytes);
  return begin < end ? zero(begin, end - begin, ZeroMode::ALLOW_HOLE) : Status();
}

}  // namespace csnap
