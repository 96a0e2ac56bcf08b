// Key, Location and Entry: the exception index's values in RAM, and their disk form.
#pragma once

#include <compare>

#include "base/assert.h"
#include "base/units.h"
#include "store/format.h"

namespace csnap {

struct Key {
  VolumeId volume = 0;
  ChunkIndex chunk = 0;
  Generation generation = 0;

  auto operator<=>(const Key&) const = default;
  bool same_chunk(const Key& other) const { return volume == other.volume && chunk == other.chunk; }
};

// Largest possible key.
constexpr Key kKeyEnd{~VolumeId{0}, ~ChunkIndex{0}, ~Generation{0}};

// Where a chunk's content is. `raw` is the disk form; a counter's raw is its count.
struct Location {
  uint64_t raw = 0;

  static Location data(BlockNumber block) {
    CSNAP_ASSERT(block != 0 && block >> format::kLocationKindShift == 0);
    return {block};
  }
  static Location of(format::LocationKind kind) {
    return {static_cast<uint64_t>(kind) << format::kLocationKindShift};
  }
  format::LocationKind kind() const {
    return static_cast<format::LocationKind>(raw >> format::kLocationKindShift);
  }
  bool is_data() const { return kind() == format::LocationKind::DATA; }
  BlockNumber block() const {
    CSNAP_ASSERT(is_data());
    return raw;
  }
  bool operator==(const Location&) const = default;
};

struct Entry {
  Key key;
  Location location;
  uint32_t crc = 0;

  static Entry from_disk(const format::IndexEntry& disk) {
    return {{disk.volume, disk.chunk, disk.generation}, {disk.location}, disk.crc};
  }
  format::IndexEntry to_disk() const {
    format::IndexEntry disk;
    disk.volume = key.volume;
    disk.crc = crc;
    disk.chunk = key.chunk;
    disk.generation = key.generation;
    disk.location = location.raw;
    return disk;
  }
  bool operator==(const Entry&) const = default;
};

}  // namespace csnap
