#include "store/checker.h"

#include <cstring>
#include <set>

#include "base/crc32c.h"

namespace csnap {

void Checker::problem(const std::string& text) {
  findings_.problem_count++;
  if (findings_.problems.size() < StoreFindings::kProblemsMax) findings_.problems.push_back(text);
}

void Checker::claim(BlockNumber first, uint64_t count, const char* what) {
  for (BlockNumber block = first; block < first + count; block++) {
    if (block >= seen_.size()) {
      problem(std::string(what) + " refers to block " + std::to_string(block) + ", past the end");
      return;
    }
    if (seen_[block])
      problem("block " + std::to_string(block) + " is referred to twice (by " + what + ")");
    seen_[block] = true;
    findings_.blocks_used++;
  }
}

Result<StoreFindings> Checker::run(bool data) {
  const format::Superblock& sb = state_.superblock;
  seen_.assign(state_.space_map.block_count(), false);
  chunk_.resize(sb.chunk_bytes);
  claim(0, (format::kJournalOffset + sb.journal_bytes) / kBlockBytes, "the header");
  std::vector<BlockNumber> blocks;
  state_.space_map.pages().blocks(blocks);
  state_.snapshots.pages().blocks(blocks);
  state_.counters.pages().blocks(blocks);
  for (BlockNumber block : blocks) claim(block, 1, "a page array");
  CSNAP_TRY(state_.index.walk(
      [&](const NodeView& node) {
        findings_.index_nodes++;
        claim(node.block, 1, "the index");
        return !stop_();
      },
      [&](const Entry& entry) {
        check_entry(entry, data);
        return !stop_();
      },
      [&](const std::string& text) {
        problem(text);
        return true;
      }));
  if (stop_())
    return Status(
        Code::BUSY,
        device_.name() +
            ": the check gave way, as the snapshot store is nearly full and needs the space "
            "that a check holds back; check again when there is room");
  check_tables();
  check_space();
  check_counters();
  return std::move(findings_);
}

void Checker::check_entry(const Entry& entry, bool data) {
  const format::Superblock& sb = state_.superblock;
  const std::string what = "the exception of chunk " + std::to_string(entry.key.chunk) +
                           ", generation " + std::to_string(entry.key.generation);
  findings_.entries++;
  if (progress_ && findings_.entries % 4096 == 0)
    progress_(findings_.entries, std::max<uint64_t>(sb.exception_count, findings_.entries));
  if (former_ && former_->key >= entry.key) problem(what + " is out of order");
  const bool same_chunk = former_ && former_->key.same_chunk(entry.key);
  const Generation previous = same_chunk ? former_->key.generation : 0;
  former_ = entry;
  if (entry.key.volume == kOriginVolume) {
    if (entry.key.generation == 0 || entry.key.generation >= sb.generation)
      problem(what + " has a generation that is not over yet");
    if (entry.key.chunk >= div_up(sb.origin_bytes, sb.chunk_bytes))
      problem(what + " lies past the end of the origin");
  }
  switch (entry.location.kind()) {
    case format::LocationKind::ZERO:
      return;
    case format::LocationKind::LOST:
      findings_.lost_entries++;
      return;
    case format::LocationKind::DATA:
      break;
    default:
      problem(what + " has an unknown kind of location");
      return;
  }
  const uint64_t run = state_.space_map.chunk_blocks();
  if (entry.location.raw == 0 || entry.location.raw % run != 0) {
    problem(what + " points to block " + std::to_string(entry.location.raw) +
            ", where no chunk is");
    return;
  }
  claim(entry.location.block(), run, "an exception");
  const std::vector<Generation>& live = state_.snapshots.live(entry.key.volume);
  const Generation first = next_live(live, previous);
  const Generation last = last_live(live, entry.key.generation);
  const bool held = first != 0 && last != 0 && first <= last;
  recount_[held ? Holders{entry.key.volume, first, last} : Holders{entry.key.volume, 0, 0}]++;
  if (data) verify_chunk(entry);
}

void Checker::verify_chunk(const Entry& entry) {
  const uint64_t offset = entry.location.block() * kBlockBytes;
  if (offset + chunk_.size() > device_.size_bytes()) return;  // claim() has said so
  Status status = device_.read(offset, chunk_.data(), chunk_.size());
  findings_.chunks_verified++;
  if (!status.ok())
    problem("chunk " + std::to_string(entry.key.chunk) +
            " can't be read from the store: " + status.message());
  else if (crc32c(chunk_.data(), chunk_.size()) != entry.crc)
    problem("the stored copy of chunk " + std::to_string(entry.key.chunk) + ", generation " +
            std::to_string(entry.key.generation) + ", does not match its checksum");
}

void Checker::check_tables() {
  const format::Superblock& sb = state_.superblock;
  std::set<uint64_t> serials;
  for (const Snapshot* snapshot : state_.snapshots.all()) {
    const std::string what = "snapshot " + snapshot->name;
    if (snapshot->volume == kOriginVolume && snapshot->generation >= sb.generation)
      problem(what + " has a generation that is not over yet");
    if (snapshot->serial > sb.snapshot_serial || !serials.insert(snapshot->serial).second)
      problem(what + " has an impossible serial");
    if (snapshot->deleted() && snapshot->delete_serial > sb.delete_serial)
      problem(what + " was deleted in the future");
    if (snapshot->live() && snapshot->name.empty()) problem("a live snapshot has no name");
  }
  if (!sane_hold(sb.hold)) problem("the read-write hold makes no sense");
  if (findings_.entries != sb.exception_count)
    problem("the superblock counts " + std::to_string(sb.exception_count) +
            " exceptions, there are " + std::to_string(findings_.entries));
}

void Checker::check_space() {
  uint64_t leaked = 0;
  for (BlockNumber block = 0; block < seen_.size(); block++) {
    const bool used = state_.space_map.is_used(block);
    if (used == seen_[block]) continue;
    if (!used)
      problem("block " + std::to_string(block) + " is in use but marked free");
    else
      leaked++;
  }
  if (leaked > 0)
    problem(std::to_string(leaked) + " blocks are marked in use but nothing refers to them");
}

void Checker::check_counters() {
  if (state_.counters.inconsistent())
    problem("the space counters contradicted the exceptions since the store was opened");
  if (state_.counters.estimated()) return;
  if (state_.counters.buckets() != recount_)
    problem("the space counters do not match the exceptions");
}

// ---- The state of a checkpoint
// -------------------------------------------------------------------

CheckpointState::CheckpointState(Device& device, const format::Superblock& superblock)
    : device_(device),
      superblock_(superblock),
      space_map_(*this, superblock.store_bytes / kBlockBytes, superblock.chunk_bytes / kBlockBytes),
      snapshots_(*this),
      counters_(*this),
      index_(*this, IndexOptions()) {}

Status CheckpointState::load() {
  CSNAP_TRY(space_map_.load(superblock_.space_map));
  CSNAP_TRY(snapshots_.load(superblock_.snapshot_table, superblock_.snapshot_slots));
  CSNAP_TRY(counters_.load(superblock_.space_counters, superblock_.counter_slots,
                           superblock_.state & format::kStateCountersEstimated));
  index_.open({{superblock_.index.block, superblock_.index.crc}, superblock_.index.level},
              superblock_.exception_count);
  return Status();
}

BlockNumber CheckpointState::allocate() {
  CSNAP_ASSERT(!"a check changes nothing");
  return 0;
}

void CheckpointState::release(BlockNumber) { CSNAP_ASSERT(!"a check changes nothing"); }

uint32_t CheckpointState::seal(BlockNumber, BlockImage&) {
  CSNAP_ASSERT(!"a check changes nothing");
  return 0;
}

Status CheckpointState::read(BlockRef ref, format::BlockKind kind, uint8_t level,
                             BlockImage& image) {
  if (ref.block == 0 || ref.block >= superblock_.store_bytes / kBlockBytes)
    return Status(Code::CORRUPT,
                  "metadata points to block " + std::to_string(ref.block) + ", which is none");
  CSNAP_TRY(device_.read(ref.block * kBlockBytes, image.bytes.data(), image.bytes.size()));
  uint64_t tag;
  std::memcpy(&tag, superblock_.store_uuid, sizeof tag);
  return validate_block(image, ref, kind, level, superblock_.sequence, tag);
}

}  // namespace csnap
