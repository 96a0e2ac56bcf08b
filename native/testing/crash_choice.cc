#include "testing/crash_choice.h"

#include <algorithm>

#include "base/units.h"

namespace csnap {

void apply_sector(DiskContent& content, const std::shared_ptr<SimWrite>& write, size_t index) {
  if (write->sectors[index] != SimWrite::Sector::TO_DO) return;
  write->sectors[index] = SimWrite::Sector::DONE;
  const uint64_t sector = write->offset / kSectorBytes + index;
  const uint64_t begin = sector * kSectorBytes;
  const uint64_t from = std::max(begin, write->offset);
  const uint64_t to = std::min(begin + kSectorBytes, write->offset + write->length);
  SectorVersion version{write->bytes, begin - write->offset, write};
  std::vector<SectorVersion>& versions = content.pending[sector];
  const bool kept = write->op == DeviceOp::DISCARD && write->kept[index];
  if (kept || to - from < kSectorBytes) {
    // M7: the medium may show zeros until the kept content is written again.
    if (kept) versions.push_back({nullptr, 0, write});
    auto merged = std::make_shared<std::vector<uint8_t>>(kSectorBytes);
    content.visible.read(begin, merged->data(), kSectorBytes);
    if (!kept && write->bytes)
      std::memcpy(merged->data() + (from - begin), write->bytes->data() + (from - write->offset),
                  to - from);
    else if (!kept)
      std::memset(merged->data() + (from - begin), 0, to - from);
    version.bytes = std::move(merged);
    version.bytes_offset = 0;
  }
  const void* bytes = version.bytes ? version.bytes->data() + version.bytes_offset : nullptr;
  if (!kept) content.visible.write(begin, bytes, kSectorBytes);
  versions.push_back(std::move(version));
}

CrashChoice::CrashChoice(Rng& rng, uint64_t last_step) {
  static constexpr Style kStyles[] = {Style::EACH,       Style::EACH,       Style::EACH,
                                      Style::OLDER_ONLY, Style::NEWER_ONLY, Style::SECTORS};
  static constexpr uint64_t kKeep[] = {0, 1, 4, 4, 7, 8};
  style_ = kStyles[rng.below(std::size(kStyles))];
  salt_ = rng.next();
  keep_of_8_ = kKeep[rng.below(std::size(kKeep))];
  tear_of_8_ = rng.below(4);
  // Most pending writes are young; a cut anywhere in a long run would rarely part them.
  const uint64_t back = rng.below(uint64_t{1} << rng.below(12));
  cut_step_ = last_step - std::min(back, last_step);
}

bool CrashChoice::reached(const SimWrite* write, uint64_t sector, size_t version) const {
  const uint64_t sector_draw = mix64(salt_ ^ mix64(sector));
  if (write == nullptr || style_ == Style::SECTORS) {
    const uint64_t number = write == nullptr ? version : write->start_step;
    return mix64(sector_draw ^ number) % 8 < keep_of_8_;
  }
  const uint64_t draw = mix64(salt_ + write->start_step);
  if (draw % 8 < tear_of_8_) {
    if ((draw >> 8) % 2 == 0) return mix64(sector_draw ^ draw) % 2 == 0;
    // Torn in two: one side of some sector inside.
    const uint64_t cut = write->offset / kSectorBytes + (draw >> 16) % (write->sectors.size() + 1);
    return (draw >> 9) % 2 == 0 ? sector < cut : sector >= cut;
  }
  switch (style_) {
    case Style::OLDER_ONLY:
      return write->start_step < cut_step_;
    case Style::NEWER_ONLY:
      return write->start_step >= cut_step_;
    case Style::EACH:
    case Style::SECTORS:
      break;
  }
  return (draw >> 32) % 8 < keep_of_8_;
}

namespace {
// Puts one sector of a write that is still in flight on a medium.
void overlay(CowBytes& medium, const SimWrite& write, size_t index) {
  if (write.op == DeviceOp::DISCARD && write.kept[index]) return;
  const uint64_t begin = (write.offset / kSectorBytes + index) * kSectorBytes;
  const uint64_t from = std::max(begin, write.offset);
  const uint64_t to = std::min(begin + kSectorBytes, write.offset + write.length);
  medium.write(from, write.bytes ? write.bytes->data() + (from - write.offset) : nullptr,
               to - from);
}
}  // namespace

DiskContent SimDisk::crash_content(CrashLoss loss, Rng& rng) const {
  DiskContent left{content_.name, CowBytes(), content_.durable, {}};
  const CrashChoice choice(rng, host_.step());
  const auto reached = [&](const SimWrite* write, uint64_t sector, size_t version) {
    return loss == CrashLoss::NOTHING || choice.reached(write, sector, version);
  };
  if (loss != CrashLoss::EVERYTHING) {
    for (const auto& [sector, versions] : content_.pending) {
      // The newest that got there; an older one wins exactly where all newer ones are lost.
      for (size_t i = versions.size(); i > 0; i--) {
        const SectorVersion& version = versions[i - 1];
        const SimWrite* write = version.write.get();
        if (!reached(write, sector, i)) continue;
        if (loss == CrashLoss::RANDOM && write != nullptr && write->op == DeviceOp::DISCARD &&
            version.bytes && choice.shows_zeros(sector))
          continue;  // the version below is the zeros of the same discard
        left.durable.write(sector * kSectorBytes,
                           version.bytes ? version.bytes->data() + version.bytes_offset : nullptr,
                           kSectorBytes);
        break;
      }
    }
    for (const auto& write : in_flight_) {
      for (size_t i = 0; i < write->sectors.size(); i++) {
        if (write->sectors[i] == SimWrite::Sector::TO_DO &&
            reached(write.get(), write->offset / kSectorBytes + i, 0))
          overlay(left.durable, *write, i);
      }
    }
  }
  left.visible = left.durable;
  return left;
}

DiskContent SimDisk::kill_content(Rng& rng) const {
  DiskContent left = content_;
  for (const auto& write : in_flight_) {
    auto copy = std::make_shared<SimWrite>(*write);
    for (size_t i = 0; i < copy->sectors.size(); i++) {
      if (rng.coin()) apply_sector(left, copy, i);
    }
  }
  // In its next life all of it is simply written and not synced.
  for (auto& [sector, versions] : left.pending) {
    for (SectorVersion& version : versions) version.write = nullptr;
  }
  return left;
}

}  // namespace csnap
