#include "io/gated_device.h"

namespace csnap {

Status GatedDevice::refuse() const {
  Status status(Code::FENCED, name() +
                                  ": the grant of this server's epoch has ended; it writes and "
                                  "acknowledges nothing more");
  fenced_(status);
  return status;
}

// GD2, GD4
Status GatedDevice::completed(Status status, bool keep_error) {
  if (status.code() == Code::FENCED) {
    fenced_(status);
    return status;
  }
  if (gate_.admit() || (keep_error && !status.ok())) return status;
  return refuse();
}

Status GatedDevice::write(uint64_t offset, const void* data, size_t length) {
  if (!gate_.admit()) return refuse();
  return completed(below_.write(offset, data, length), false);
}

Status GatedDevice::write_uncached(std::span<const DeviceWrite> writes, Gate*) {
  if (!gate_.admit()) return refuse();
  Status status = below_.write_uncached(writes, &gate_);
  // The gate's own refusal says why in its own words.
  if (status.code() == Code::FENCED && !gate_.admit()) return refuse();
  return completed(std::move(status), false);
}

Status GatedDevice::sync() {
  if (!gate_.admit()) return refuse();
  return completed(below_.sync(), true);
}

Status GatedDevice::zero(uint64_t offset, uint64_t length, ZeroMode mode) {
  if (!gate_.admit()) return refuse();
  return completed(below_.zero(offset, length, mode), false);
}

Status GatedDevice::discard(uint64_t offset, uint64_t length) {
  if (!gate_.admit()) return refuse();
  return completed(below_.discard(offset, length), false);
}

Status GatedDevice::allocate(uint64_t offset, uint64_t length) {
  if (!gate_.admit()) return refuse();
  return completed(below_.allocate(offset, length), false);
}

void GatedDevice::start_writeback() {
  if (gate_.is_open()) below_.start_writeback();
}

}  // namespace csnap
