// Reading, judging and writing the two superblock slots. Callers: Store, read_superblock().
//
// Invariants
//  B1  A superblock is written with the next sequence, into slot sequence % 2, and synced; so the
//      slot of the one in use is never overwritten by its successor.
//  B2  A slot counts only if magic, checksum, version and reserved bytes are right.
//  B3  Sequence, epoch, generation and serials never fall from one write to the next (W5).
#pragma once

#include <memory>
#include <string>

#include "base/status.h"
#include "io/device.h"
#include "store/format.h"

namespace csnap {

struct SuperblockFound {
  std::unique_ptr<format::Superblock> superblock;
  // The other slot is damaged, so this one may be the older of the two. Then the journal must not
  // know of a newer one (W5).
  bool may_be_older = false;
};

// The valid slot with the greater sequence. NOT_A_STORE, NEWER_FORMAT, CORRUPT, TRUNCATED,
// IO_ERROR.
Result<SuperblockFound> load_superblock(Device& store);

// Gives `superblock` the next sequence, seals, writes and syncs it (B1). `former` is the one in
// use. `sync_failed`, if given: whether it was the sync that failed (W9), not the write.
Status write_superblock(Device& store, const format::Superblock& former,
                        format::Superblock& superblock, bool* sync_failed = nullptr);

// Both slots of a new store, the sequences 1 and 2, each synced.
Status write_first_superblocks(Device& store, format::Superblock& superblock);

// Text of a NUL padded field.
template <size_t N>
std::string field_text(const char (&field)[N]) {
  return std::string(field, strnlen(field, N));
}
// Fills a NUL padded field; false where the text does not fit (the field is left empty).
template <size_t N>
bool set_field_text(char (&field)[N], const std::string& text) {
  memset(field, 0, N);
  if (text.size() >= N) return false;
  memcpy(field, text.data(), text.size());
  return true;
}

// Whether the bytes are what a hold may be: none and all zero, or an attachment with a host.
bool sane_hold(const format::Hold& hold);

}  // namespace csnap
