#include "store/superblock.h"

#include <algorithm>
#include <cstring>

#include "base/crc32c.h"

namespace csnap {
namespace {

using format::Superblock;

uint32_t superblock_crc(const Superblock& superblock) {
  Superblock copy = superblock;
  copy.crc = 0;
  return crc32c(&copy, sizeof copy);
}

bool all_zero(const void* data, size_t length) {
  const auto* p = static_cast<const unsigned char*>(data);
  return std::all_of(p, p + length, [](unsigned char byte) { return byte == 0; });
}

Status bad(Device& store, Code code, const std::string& why) {
  return Status(code, store.name() + ": " + why);
}

// B2, and that the geometry makes sense.
Status judge(Device& store, const Superblock& sb) {
  if (std::memcmp(sb.magic, format::kSuperblockMagic, sizeof sb.magic) != 0)
    return bad(store, Code::NOT_A_STORE, "holds no csnap snapshot store (no superblock)");
  if (sb.crc != superblock_crc(sb))
    return bad(store, Code::CORRUPT, "a superblock's checksum does not match");
  if (sb.version > format::kFormatVersion || (sb.incompat & ~format::kIncompatSupported) != 0)
    return bad(store, Code::NEWER_FORMAT,
               "was written by a newer csnap (format " + std::to_string(sb.version) +
                   "); use that version or a later one");
  if (!all_zero(sb.reserved0, sizeof sb.reserved0) || sb.reserved1 != 0 ||
      !all_zero(sb.reserved2, sizeof sb.reserved2) || !all_zero(sb.reserved3, sizeof sb.reserved3))
    return bad(store, Code::CORRUPT, "a superblock's reserved bytes are in use");
  const uint64_t chunk = sb.chunk_bytes;
  const bool sane = is_power_of_two(chunk) && chunk >= format::kChunkBytesMin &&
                    chunk <= format::kChunkBytesMax &&
                    sb.journal_bytes >= format::kJournalBytesMin &&
                    sb.journal_bytes % kBlockBytes == 0 && sb.store_bytes % kBlockBytes == 0 &&
                    sb.store_bytes > format::kJournalOffset &&
                    sb.journal_bytes < sb.store_bytes - format::kJournalOffset &&
                    sb.epoch_count >= 1 && sb.epoch_count <= format::kEpochChainMax &&
                    sb.generation >= 1 && sb.sequence >= 1 && sb.origin_bytes > 0;
  if (!sane) return bad(store, Code::CORRUPT, "a superblock's geometry makes no sense");
  // Nothing that only grows comes near its end, in anybody's life.
  constexpr uint64_t kNever = uint64_t{1} << 62;
  for (uint64_t number :
       {uint64_t{sb.sequence}, uint64_t{sb.generation}, uint64_t{sb.snapshot_serial},
        uint64_t{sb.delete_serial}, uint64_t{sb.tail_sequence}, uint64_t{sb.confirmed_sequence},
        uint64_t{sb.journal_tail}, uint64_t{sb.state_sequence},
        uint64_t{sb.epochs[sb.epoch_count - 1].epoch},
        uint64_t{sb.epochs[sb.epoch_count - 1].first_sequence}})
    if (number >= kNever) return bad(store, Code::CORRUPT, "a superblock's numbers make no sense");
  for (uint32_t i = 1; i < sb.epoch_count; i++)
    if (sb.epochs[i].epoch <= sb.epochs[i - 1].epoch ||
        sb.epochs[i].first_sequence < sb.epochs[i - 1].first_sequence)
      return bad(store, Code::CORRUPT, "a superblock's epoch chain is out of order");
  return Status();
}

// B3.
void assert_grows(const Superblock& former, const Superblock& next) {
  CSNAP_RULE(W5, next.sequence > former.sequence);
  CSNAP_RULE(W5, next.generation >= former.generation);
  CSNAP_RULE(W5, next.snapshot_serial >= former.snapshot_serial);
  CSNAP_RULE(W5, next.delete_serial >= former.delete_serial);
  CSNAP_RULE(W5, next.next_volume_id >= former.next_volume_id);
  CSNAP_RULE(W5, next.tail_sequence >= former.tail_sequence);
  CSNAP_RULE(
      W5, next.epochs[next.epoch_count - 1].epoch >= former.epochs[former.epoch_count - 1].epoch);
  CSNAP_RULE(W5, next.confirmed_sequence >= former.confirmed_sequence);
}

Status write_slot(Device& store, Superblock& superblock, bool* sync_failed = nullptr) {
  superblock.crc = 0;
  superblock.crc = superblock_crc(superblock);
  const uint64_t slot = superblock.sequence % 2;
  CSNAP_TRY(store.write(format::kSuperblockOffset[slot], &superblock, sizeof superblock));
  Status status = store.sync();
  if (!status.ok() && sync_failed) *sync_failed = true;
  return status;
}

}  // namespace

bool sane_hold(const format::Hold& hold) {
  static const format::Hold kNone{};
  const auto is_nil = [](const format::Uuid& uuid) {
    return std::all_of(std::begin(uuid), std::end(uuid), [](uint8_t byte) { return byte == 0; });
  };
  if (is_nil(hold.attachment)) return std::memcmp(&hold, &kNone, sizeof hold) == 0;
  const size_t length = strnlen(hold.host, sizeof hold.host);
  return length > 0 && length < sizeof hold.host &&
         std::all_of(hold.host + length, std::end(hold.host), [](char c) { return c == '\0'; });
}

Result<SuperblockFound> load_superblock(Device& store) {
  if (store.size_bytes() < format::kJournalOffset + format::kJournalBytesMin)
    return bad(store, Code::NOT_A_STORE, "is too small to be a snapshot store");
  Superblock slots[2];
  Status judged[2];
  for (int i = 0; i < 2; i++) {
    CSNAP_TRY(store.read(format::kSuperblockOffset[i], &slots[i], sizeof slots[i]));
    judged[i] = judge(store, slots[i]);
  }
  // A newer format in either slot: hands off, even if an older superblock is still readable.
  for (const Status& status : judged)
    if (status.code() == Code::NEWER_FORMAT) return status;
  int best = -1;
  for (int i = 0; i < 2; i++)
    if (judged[i].ok() && (best < 0 || slots[i].sequence > slots[best].sequence)) best = i;
  if (best < 0) return judged[judged[0].code() == Code::NOT_A_STORE ? 1 : 0];
  if (slots[best].store_bytes > store.size_bytes())
    return bad(store, Code::TRUNCATED,
               "is shorter (" + std::to_string(store.size_bytes()) +
                   " bytes) than its superblock says (" + std::to_string(slots[best].store_bytes) +
                   "); it was truncated: restore it whole");
  SuperblockFound found;
  found.superblock = std::make_unique<Superblock>(slots[best]);
  found.may_be_older = !judged[1 - best].ok();
  return found;
}

Status write_superblock(Device& store, const Superblock& former, Superblock& superblock,
                        bool* sync_failed) {
  superblock.sequence = former.sequence + 1;
  assert_grows(former, superblock);
  return write_slot(store, superblock, sync_failed);
}

Status write_first_superblocks(Device& store, Superblock& superblock) {
  std::memcpy(superblock.magic, format::kSuperblockMagic, sizeof superblock.magic);
  superblock.version = format::kFormatVersion;
  for (uint64_t sequence = 1; sequence <= 2; sequence++) {
    superblock.sequence = sequence;
    CSNAP_TRY(write_slot(store, superblock));
  }
  return Status();
}

}  // namespace csnap
