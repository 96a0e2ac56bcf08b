// Which blocks a write may rewrite while others write. Whoever changes part of a block has to write
// all of it back, bytes of its neighbours included. Caller: DirectIo.
//
// Invariants
//  WC1  While a claim is held that covers only part of a block, no other claim is held that covers
//       any of that block. So a read-modify-write never puts back what another write has just
//       replaced: neither a neighbour's part of the block, nor the rest of it after a write of the
//       whole block.
//  WC2  Claims of whole blocks never wait for each other: overlapping ones are the caller's own
//       race, as with any device.
//  WC3  A claim waits only for claims made before it, and a thread has one at most: no wait cycle,
//       and nobody is overtaken for ever.
#pragma once

#include <cstdint>
#include <vector>

#include "base/sync.h"

namespace csnap {

class WriteClaim;

class WriteClaims {
 public:
  // `unit_bytes`: of a block, a power of two.
  explicit WriteClaims(uint64_t unit_bytes) : unit_bytes_(unit_bytes) {}

 private:
  friend class WriteClaim;
  const uint64_t unit_bytes_;
  Mutex mutex_;
  CondVar released_cond_;
  std::vector<const WriteClaim*> claims_;  // as they were made; one per thread that writes
  uint64_t waiting_count_ = 0;
};

// Held from the constructor, which waits for its turn, to the destructor.
class WriteClaim {
 public:
  // `length` > 0.
  WriteClaim(WriteClaims& claims, uint64_t offset, uint64_t length);
  ~WriteClaim();
  WriteClaim(const WriteClaim&) = delete;

 private:
  bool must_wait() const;
  bool covers(uint64_t block) const { return block >= first_ && block <= last_; }
  bool rewrites_part_within(const WriteClaim& other) const;

  WriteClaims& claims_;
  uint64_t first_, last_;  // blocks
  bool first_partial_, last_partial_;
};

}  // namespace csnap
