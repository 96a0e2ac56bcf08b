#include "testing/sim_disk.h"

#include <algorithm>

#include "base/assert.h"
#include "base/sync.h"
#include "base/units.h"
#include "testing/crash_choice.h"

namespace csnap {

namespace {
constexpr size_t kLogLimit = 200;
constexpr uint64_t kSlowOneIn = 64;  // operations so slow that time-outs fire meanwhile
constexpr uint64_t kSlowMs = 40;
}  // namespace

Status SimDisk::read(uint64_t offset, void* data, size_t length) {
  CSNAP_ASSERT(offset <= size_bytes() && length <= size_bytes() - offset);
  yield_point();
  const auto fault = faults_.next(DeviceOp::READ, offset, length);
  event(DeviceOp::READ, false, false, offset, length);
  linger();
  if (fault) {
    // Whoever uses the buffer of a failed read gets something that catches the eye.
    std::memset(data, 0xee, length);
    event(DeviceOp::READ, true, true, offset, length);
    return fault_status(*fault, name(), DeviceOp::READ, offset, length);
  }
  content_.visible.read(offset, data, length);
  event(DeviceOp::READ, true, false, offset, length);
  return {};
}

bool SimDisk::read_nowait(uint64_t offset, void* data, size_t length) {
  CSNAP_ASSERT(offset <= size_bytes() && length <= size_bytes() - offset);
  yield_point();
  if (faults_.awaits(DeviceOp::READ) || host_.rng_.one_in(4)) return false;
  content_.visible.read(offset, data, length);
  return true;
}

Status SimDisk::write(uint64_t offset, const void* data, size_t length) {
  return change(DeviceOp::WRITE, offset, data, length);
}

Status SimDisk::zero(uint64_t offset, uint64_t length, ZeroMode mode) {
  if (!zero_supported_) return Status(Code::NOT_SUPPORTED, name() + ": zero is switched off");
  CSNAP_TRY(change(DeviceOp::ZERO, offset, nullptr, length));
  if (mode == ZeroMode::ALLOW_HOLE) content_.visible.punch_zero_pages(offset, length);
  return {};
}

Status SimDisk::discard(uint64_t offset, uint64_t length) {
  if (!zero_supported_) return Status(Code::NOT_SUPPORTED, name() + ": discard is switched off");
  CSNAP_TRY(change(DeviceOp::DISCARD, offset, nullptr, length));
  content_.visible.punch_zero_pages(offset, length);
  return {};
}

Status SimDisk::change(DeviceOp op, uint64_t offset, const void* data, uint64_t length) {
  CSNAP_ASSERT(offset <= size_bytes() && length <= size_bytes() - offset);
  yield_point();
  auto fault = faults_.next(op, offset, length);
  if (!fault && full_ && op != DeviceOp::DISCARD && would_fill_hole(offset, length))
    fault = Fault::Effect::NO_SPACE;
  auto write = std::make_shared<SimWrite>();
  write->op = op;
  write->offset = offset;
  write->length = length;
  if (data != nullptr) {
    const auto* from = static_cast<const uint8_t*>(data);
    write->bytes = std::make_shared<const std::vector<uint8_t>>(from, from + length);
  }
  plan_sectors(*write, fault);
  // Numbered before the observer sees it: a crash right at the start may already keep some of it.
  write->start_step = host_.step_ + 1;
  in_flight_.push_back(write);
  event(op, false, false, offset, length);
  if (host_.rng_.coin()) apply_some(write);
  linger();
  if (host_.rng_.one_in(4)) {
    apply_some(write);
    linger();
  }
  for (size_t i = 0; i < write->sectors.size(); i++) apply_sector(content_, write, i);
  write->completed_step = host_.step_ + 1;
  std::erase(in_flight_, write);
  event(op, true, fault.has_value(), offset, length);
  if (fault) return fault_status(*fault, name(), op, offset, length);
  return {};
}

void SimDisk::plan_sectors(SimWrite& write, std::optional<Fault::Effect> fault) {
  Rng& rng = host_.rng_;
  const uint64_t first = write.offset / kSectorBytes;
  const size_t count =
      write.length == 0 ? 0 : div_up(write.offset + write.length, kSectorBytes) - first;
  write.sectors.assign(count, SimWrite::Sector::TO_DO);
  if (write.op == DeviceOp::DISCARD) {
    write.kept.assign(count, false);
    const uint64_t style = rng.below(3);  // all, none, some
    for (size_t i = 0; i < count; i++) {
      const uint64_t begin = (first + i) * kSectorBytes;
      const bool whole =
          begin >= write.offset && begin + kSectorBytes <= write.offset + write.length;
      if (!whole) write.sectors[i] = SimWrite::Sector::SKIPPED;
      write.kept[i] = style == 0 || (style == 2 && rng.coin());
    }
  }
  if (!fault) return;
  const bool prefix = *fault == Fault::Effect::SHORT_IO || rng.coin();
  // A short write has at least one sector too few; a failed one may have done all or nothing.
  const size_t done = *fault == Fault::Effect::SHORT_IO ? rng.below(std::max<size_t>(count, 1))
                                                        : rng.below(count + 1);
  for (size_t i = 0; i < count; i++) {
    if (prefix ? i >= done : rng.coin()) write.sectors[i] = SimWrite::Sector::SKIPPED;
  }
}

void SimDisk::apply_some(const std::shared_ptr<SimWrite>& write) {
  const bool all = host_.rng_.one_in(3);
  for (size_t i = 0; i < write->sectors.size(); i++) {
    if (all || host_.rng_.coin()) apply_sector(content_, write, i);
  }
}

bool SimDisk::would_fill_hole(uint64_t offset, uint64_t length) const {
  for (uint64_t at = round_down(offset, CowBytes::kPageBytes); at < offset + length;
       at += CowBytes::kPageBytes) {
    if (content_.visible.is_hole(at)) return true;
  }
  return false;
}

Status SimDisk::sync() {
  yield_point();
  const auto fault = faults_.next(DeviceOp::SYNC, 0, 0);
  const uint64_t start_step = event(DeviceOp::SYNC, false, false, 0, 0);
  linger();
  if (fault || sync_failed_) {
    if (!sync_failed_) settle(start_step, true);
    sync_failed_ = true;
    event(DeviceOp::SYNC, true, true, 0, 0);
    return fault_status(fault.value_or(Fault::Effect::IO_ERROR), name(), DeviceOp::SYNC, 0, 0);
  }
  settle(start_step, false);
  event(DeviceOp::SYNC, true, false, 0, 0);
  return {};
}

namespace {
// How many versions of a sector, from the oldest, a sync that started at `start_step` covers (M2):
// all up to the newest whose write had completed by then, since reads saw that one last.
size_t covered_count(const std::vector<SectorVersion>& versions, uint64_t start_step) {
  for (size_t count = versions.size(); count > 0; count--) {
    const auto& write = versions[count - 1].write;
    if (!write || (write->completed_step != 0 && write->completed_step < start_step)) return count;
  }
  return 0;
}

void put_version(CowBytes& bytes, uint64_t sector, const SectorVersion& version) {
  bytes.write(sector * kSectorBytes,
              version.bytes ? version.bytes->data() + version.bytes_offset : nullptr, kSectorBytes);
}
}  // namespace

void SimDisk::settle(uint64_t sync_start_step, bool failed) {
  Rng& rng = host_.rng_;
  for (auto entry = content_.pending.begin(); entry != content_.pending.end();) {
    auto& [sector, versions] = *entry;
    const size_t covered = covered_count(versions, sync_start_step);
    if (covered == 0) {
      ++entry;
      continue;
    }
    if (!failed)
      put_version(content_.durable, sector, versions[covered - 1]);
    else if (rng.one_in(3))  // some got to the medium before the error did
      put_version(content_.durable, sector, versions[rng.below(covered)]);
    versions.erase(versions.begin(), versions.begin() + static_cast<ptrdiff_t>(covered));
    entry = versions.empty() ? content_.pending.erase(entry) : std::next(entry);
  }
}

Status SimDisk::allocate(uint64_t offset, uint64_t length) {
  yield_point();
  if (!would_fill_hole(offset, length)) return {};
  if (full_) return fault_status(Fault::Effect::NO_SPACE, name(), DeviceOp::WRITE, offset, length);
  content_.visible.fill_holes(offset, length);
  return {};
}

DeviceExtent SimDisk::extent_at(uint64_t offset, uint64_t length) {
  CSNAP_ASSERT(length > 0 && offset <= size_bytes() && length <= size_bytes() - offset);
  const bool hole = content_.visible.is_hole(offset);
  uint64_t end = round_down(offset, CowBytes::kPageBytes) + CowBytes::kPageBytes;
  while (end < offset + length && content_.visible.is_hole(end) == hole)
    end += CowBytes::kPageBytes;
  return {std::min(end - offset, length), hole};
}

void SimDisk::drop_cache() {
  yield_point();
  CSNAP_ASSERT(in_flight_.empty());
  content_.visible = content_.durable;
  for (const auto& [sector, versions] : content_.pending)
    put_version(content_.visible, sector, versions.back());
}

bool SimDisk::flip_bit(uint64_t offset, unsigned bit) {
  if (content_.pending.contains(offset / kSectorBytes)) return false;
  for (CowBytes* bytes : {&content_.visible, &content_.durable}) {
    uint8_t value;
    bytes->read(offset, &value, 1);
    value ^= static_cast<uint8_t>(1u << (bit % 8));
    bytes->write(offset, &value, 1);
  }
  return true;
}

void SimDisk::peek(uint64_t offset, void* data, size_t length) const {
  content_.visible.read(offset, data, length);
}

void SimDisk::peek_durable(uint64_t offset, void* data, size_t length) const {
  content_.durable.read(offset, data, length);
}

void SimDisk::linger() {
  if (!current_scheduler) return;
  Rng& rng = host_.rng_;
  if (rng.one_in(kSlowOneIn)) {
    const char key = 0;  // nobody knows it, so only time ends the wait
    current_scheduler->block(&key, current_scheduler->now_ms() + rng.between(1, kSlowMs));
  }
  for (uint64_t count = rng.between(1, 3); count > 0; count--) current_scheduler->yield();
}

uint64_t SimDisk::event(DeviceOp op, bool completed, bool failed, uint64_t offset,
                        uint64_t length) {
  if (!completed) op_counts_[static_cast<size_t>(op)]++;
  return host_.event({0, this, op, completed, failed, offset, length});
}

SimHost::SimHost(uint64_t seed, const HostImage& image) : rng_(seed) {
  for (const DiskContent& content : image)
    disks_.push_back(std::make_unique<SimDisk>(*this, content));
}

SimDisk& SimHost::add_disk(std::string name, uint64_t size_bytes, bool allocated) {
  CSNAP_ASSERT(size_bytes % kSectorBytes == 0);
  CowBytes bytes(size_bytes);
  if (allocated) bytes.write(0, nullptr, size_bytes);
  disks_.push_back(
      std::make_unique<SimDisk>(*this, DiskContent{std::move(name), bytes, bytes, {}}));
  return *disks_.back();
}

uint64_t SimHost::event(SimEvent event) {
  CSNAP_ASSERT(!observing_);  // I2
  event.step = ++step_;
  trace_ = mix64(trace_ ^ event.offset ^ (event.length << 20) ^ (event.completed ? 1ull << 60 : 0) ^
                 (static_cast<uint64_t>(event.op) << 56) ^ (event.failed ? 1ull << 61 : 0));
  if (log_.size() == kLogLimit) log_.pop_front();
  log_.push_back(event);
  if (observer_) {
    observing_ = true;
    observer_(event);
    observing_ = false;
  }
  return event.step;
}

HostImage SimHost::crash_image(CrashLoss loss, Rng& rng) const {
  HostImage image;
  for (const auto& disk : disks_) image.push_back(disk->crash_content(loss, rng));
  return image;
}

HostImage SimHost::kill_image(Rng& rng) const {
  HostImage image;
  for (const auto& disk : disks_) image.push_back(disk->kill_content(rng));
  return image;
}

std::string SimHost::log_to_text() const {
  std::string text;
  for (const SimEvent& event : log_) {
    text += "  step " + std::to_string(event.step) + ": " + event.disk->name() + " " +
            device_op_name(event.op);
    if (event.op != DeviceOp::SYNC)
      text += " " + std::to_string(event.offset) + "+" + std::to_string(event.length);
    text += !event.completed ? " starts" : event.failed ? " fails" : " is done";
    text += "\n";
  }
  return text;
}

}  // namespace csnap
