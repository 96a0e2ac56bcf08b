// The numbers of the design by name, so that a signature says what it takes.
#pragma once

#include <cstdint>

namespace csnap {

using ChunkIndex = uint64_t;   // a chunk of a volume: byte offset / chunk size
using BlockNumber = uint64_t;  // a 4 KiB block of the store: byte offset / kBlockBytes
using Generation = uint64_t;   // a volume's snapshot counter, starts at 1
using Epoch = uint64_t;        // fencing number of one server term, starts at 1
using Sequence = uint64_t;     // of a journal record, or of a superblock
using VolumeId = uint32_t;     // within one store: 0 is the origin, clones count from 1

constexpr uint64_t kSectorBytes = 512;
constexpr uint64_t kBlockBytes = 4096;
constexpr VolumeId kOriginVolume = 0;
// The key of a clone's head entries; larger than any snapshot's generation.
constexpr Generation kHeadGeneration = ~uint64_t{0};

constexpr uint64_t round_up(uint64_t value, uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}
constexpr uint64_t round_down(uint64_t value, uint64_t unit) { return value / unit * unit; }
constexpr uint64_t div_up(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit; }
constexpr bool is_power_of_two(uint64_t value) { return value != 0 && (value & (value - 1)) == 0; }

}  // namespace csnap
