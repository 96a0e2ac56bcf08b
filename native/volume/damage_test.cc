// Stores that are damaged, cut off or of another format (W1, W9): the open says so or the use
// answers an error, and what is read is right or not at all. No damage makes the core abort.
#include <cstdlib>
#include <map>
#include <set>

#include "base/crc32c.h"
#include "store/checker.h"
#include "store/superblock.h"
#include "volume/damage_test_rig.h"

namespace csnap {

using namespace damage_rig;

namespace {

// Opens the damaged store and uses it in every way.
Verdict use(const Sample& sample, const Bytes& damaged) {
  Verdict verdict;
  MemoryDevice origin("origin", sample.origin), store("store", damaged);
  simulate([&] {
    Result<std::unique_ptr<Volume>> opened = Volume::open(options_for(origin, store));
    verdict.opened = opened.status();
    if (!opened.ok()) {
      if (!honest(opened.status())) verdict.wrong = "open: " + opened.status().to_text();
      return;
    }
    Volume& volume = *opened.value();
    read_snapshots(volume, sample, verdict);
    Result<CheckReport> report = volume.check(true, nullptr);
    verdict.check_clean = report.ok() && report.value().clean && report.value().lost_entries == 0;
    (void)volume.list_snapshots();
    (void)volume.diff(sample.snapshots[0].uuid, Uuid(), [](ChunkIndex, uint64_t) { return true; });
    (void)volume.dump([](const std::string&) { return true; });
    for (ChunkIndex chunk = 0; chunk < kChunks; chunk += 3) (void)fill(volume, chunk, 99);
    (void)volume.create_snapshot("new", false, 0, {});
    for (ChunkIndex chunk = 0; chunk < kChunks; chunk += 2) (void)fill(volume, chunk, 101);
    (void)volume.checkpoint();
    const Verdict before = verdict;
    read_snapshots(volume, sample, verdict);
    (void)volume.delete_snapshot(sample.snapshots[0].uuid);
    (void)volume.wait_reclaimed();
    (void)volume.close();
    verdict.all_read = before.all_read;
    verdict.failed_chunks = before.failed_chunks;
  });
  return verdict;
}

std::set<BlockNumber> blocks_in_use(const Bytes& image) {
  std::set<BlockNumber> used;
  MemoryDevice store("store", image);
  Result<SuperblockFound> found = load_superblock(store);
  REQUIRE(found.ok());
  CheckpointState state(store, *found.value().superblock);
  REQUIRE(state.load().ok());
  for (BlockNumber block = 0; block < kStoreBytes / kBlockBytes; block++)
    if (state.state().space_map.is_used(block)) used.insert(block);
  return used;
}

// The block of the journal's last record.
BlockNumber last_append(const Bytes& image) {
  MemoryDevice store("store", image);
  Result<SuperblockFound> found = load_superblock(store);
  REQUIRE(found.ok());
  const format::Superblock& sb = *found.value().superblock;
  Journal journal(store, sb.journal_bytes);
  Result<JournalEnd> end = journal.scan(sb.journal_tail, sb.tail_sequence, sb.confirmed_sequence,
                                        chain_of(sb), [](const RecordView&) { return Status(); });
  REQUIRE(end.ok());
  REQUIRE(end.value().records > 10);
  return (format::kJournalOffset + (end.value().position - 1) % sb.journal_bytes) / kBlockBytes;
}

void damage(Bytes& store, BlockNumber block, int how, Rng& rng) {
  uint8_t* bytes = store.data() + block * kBlockBytes;
  switch (how) {
    case 0:  // one bit
      bytes[rng.below(kBlockBytes)] ^= static_cast<uint8_t>(1u << rng.below(8));
      break;
    case 1:  // one bit of what is read first
      bytes[rng.below(128)] ^= static_cast<uint8_t>(1u << rng.below(8));
      break;
    case 2:
      std::memset(bytes, 0, kBlockBytes);
      break;
    case 3:  // a misdirected write
      std::memmove(bytes, store.data() + rng.below(kStoreBytes / kBlockBytes) * kBlockBytes,
                   kBlockBytes);
      break;
    default:
      for (uint64_t i = 0; i < kBlockBytes; i++) bytes[i] = static_cast<uint8_t>(rng.next());
  }
}

}  // namespace

TEST_CASE("damage: each block of a store that was closed, in every way") {
  const uint64_t seed = seed_from_environment(0xda3a6e);
  Rng rng(seed);
  const Sample sample = make_sample(true);
  const std::set<BlockNumber> used = blocks_in_use(sample.store);
  const BlockNumber data_area = (format::kJournalOffset + kJournalBytes) / kBlockBytes;
  uint64_t refused = 0, noticed = 0, harmless = 0;
  const bool one_way_each = std::getenv("CSNAP_SANITIZED") != nullptr;
  for (BlockNumber block = 0; block < kStoreBytes / kBlockBytes; block++) {
    for (int how = 0; how < 5; how++) {
      if (one_way_each && block % 5 != static_cast<BlockNumber>(how)) continue;
      Bytes damaged = sample.store;
      damage(damaged, block, how, rng);
      if (damaged == sample.store) continue;
      const Verdict verdict = use(sample, damaged);
      INFO("CSNAP_SEED=" << seed << ", block " << block << ", damage " << how);
      CHECK_MESSAGE(verdict.wrong.empty(), verdict.wrong);
      if (!verdict.opened.ok()) {
        refused++;
        continue;
      }
      verdict.check_clean ? harmless++ : noticed++;
      // A whole store: what a check finds clean is all there.
      if (verdict.check_clean) CHECK(verdict.all_read);
      // Every block that matters is noticed at the latest by a check.
      if (block >= data_area && used.contains(block)) CHECK_FALSE(verdict.check_clean);
    }
  }
  MESSAGE("CSNAP_SEED=" << seed << ": " << refused << " refused, " << noticed << " noticed in use, "
                        << harmless << " in blocks of no use");
  CHECK(refused > 0);
  CHECK(noticed > 0);
  CHECK(harmless > 0);
}

TEST_CASE("damage: each block of a store whose server was killed") {
  const uint64_t seed = seed_from_environment(0xda3a6f);
  Rng rng(seed);
  const Sample sample = make_sample(false);
  const BlockNumber last = last_append(sample.store);
  uint64_t refused = 0, opened = 0;
  for (BlockNumber block = 0; block < kStoreBytes / kBlockBytes; block++) {
    for (int how = 0; how < (std::getenv("CSNAP_SANITIZED") ? 1 : 5); how++) {
      Bytes damaged = sample.store;
      damage(damaged, block, how, rng);
      if (damaged == sample.store) continue;
      const Verdict verdict = use(sample, damaged);
      INFO("CSNAP_SEED=" << seed << ", block " << block << ", damage " << how);
      // The last append alone can't be told from one that never was synced.
      if (block != last) CHECK_MESSAGE(verdict.wrong.empty(), verdict.wrong);
      (verdict.opened.ok() ? opened : refused)++;
    }
  }
  MESSAGE("CSNAP_SEED=" << seed << ": " << refused << " refused, " << opened << " opened");
  CHECK(refused > 0);
}

TEST_CASE("damage: a rotten store chunk is an error for its snapshots alone (W1)") {
  const Sample sample = make_sample(true);
  // Where chunks are, from the dump.
  std::map<BlockNumber, ChunkIndex> chunks;
  {
    MemoryDevice origin("origin", sample.origin), store("store", sample.store);
    VolumeOptions options = options_for(origin, store);
    options.look_only = true;
    std::unique_ptr<Volume> volume = open(std::move(options));
    REQUIRE(volume);
    CHECK(volume
              ->dump([&](const std::string& line) {
                const auto number = [&](const char* key) {
                  const size_t at = line.find(key);
                  return at == std::string::npos
                             ? 0
                             : std::strtoull(line.c_str() + at + std::strlen(key), nullptr, 10);
                };
                if (line.find("\"location\":\"data\"") != std::string::npos)
                  chunks[number("\"block\":")] = number("\"chunk\":");
                return true;
              })
              .ok());
  }
  REQUIRE(chunks.size() > 10);
  for (const auto& [block, chunk] : chunks) {
    MemoryDevice origin("origin", sample.origin), store("store", sample.store);
    store.bytes()[block * kBlockBytes + 700] ^= 16;
    simulate([&] {
      uint64_t events = 0;
      VolumeOptions options = options_for(origin, store);
      options.on_event = [&](const VolumeEvent& event) {
        CHECK(event.kind == VolumeEvent::Kind::CHECKSUM_ERROR);
        events++;
      };
      std::unique_ptr<Volume> volume = open(std::move(options));
      uint64_t failed = 0;
      for (const Sample::Snapshot& snapshot : sample.snapshots) {
        const std::shared_ptr<View> view = volume->open_snapshot(snapshot.uuid).take();
        for (ChunkIndex at = 0; at < kChunks; at++) {
          Bytes data(std::min(kChunk, kOriginBytes - at * kChunk));
          const Status status =
              io(*volume, *view, IoOp::READ, at * kChunk, data.size(), data.data());
          if (!status.ok()) {
            CHECK(status.code() == Code::CORRUPT);
            CHECK(at == chunk);
            failed++;
          } else {
            CHECK(std::memcmp(data.data(), snapshot.content.data() + at * kChunk, data.size()) ==
                  0);
          }
        }
      }
      CHECK(failed > 0);
      CHECK(failed < sample.snapshots.size() + 1);
      CHECK(events > 0);
      Result<CheckReport> quick = volume->check(false, nullptr);
      CHECK((quick.ok() && quick.value().clean));
      Result<CheckReport> report = volume->check(true, nullptr);
      CHECK((report.ok() && report.value().problem_count == 1));
      CHECK(volume->close().ok());
    });
  }
}

// The last group of a journal has no later record that says it was synced.
TEST_CASE("unconfirmed: an entry without its content is dropped only on the origin's word (W1)") {
  for (const bool origin_overwritten : {false, true}) {
    MemoryDevice origin("origin", kOriginBytes), store("store", kStoreBytes);
    REQUIRE(create(store).ok());
    Bytes first;
    simulate([&] {
      std::unique_ptr<Volume> volume = open(options_for(origin, store));
      for (ChunkIndex chunk = 0; chunk < kChunks; chunk++) CHECK(fill(*volume, chunk, 1).ok());
      CHECK(volume->create_snapshot("s", false, 0, {}).ok());
      first = origin.bytes();
      CHECK(fill(*volume, 5, 2).ok());
    });
    if (!origin_overwritten)
      std::copy_n(first.begin() + 5 * kChunk, kChunk, origin.bytes().begin() + 5 * kChunk);
    // The chunk's store copy never got to the medium.
    const auto at = std::search(store.bytes().begin(), store.bytes().end(),
                                first.begin() + 5 * kChunk, first.begin() + 6 * kChunk);
    REQUIRE(at != store.bytes().end());
    std::fill_n(at, kChunk, 0);
    for (int round = 0; round < 3; round++) {
      simulate([&] {
        std::unique_ptr<Volume> volume = open(options_for(origin, store));
        const VolumeInfo info = volume->info();
        CHECK(info.lost_entries == (round == 0 && origin_overwritten ? 1 : 0));
        CHECK(info.dropped_entries == (round == 0 && !origin_overwritten ? 1 : 0));
        // What is lost stays lost, over opens and checkpoints.
        const Uuid uuid = volume->list_snapshots().value().at(0).uuid;
        const std::shared_ptr<View> view = volume->open_snapshot(uuid).take();
        for (ChunkIndex chunk = 0; chunk < kChunks; chunk++) {
          Bytes data(std::min(kChunk, kOriginBytes - chunk * kChunk));
          const Status status =
              io(*volume, *view, IoOp::READ, chunk * kChunk, data.size(), data.data());
          if (chunk == 5 && origin_overwritten) {
            CHECK(status.code() == Code::IO_ERROR);
          } else {
            CHECK_MESSAGE(status.ok(), status.to_text());
            CHECK(std::memcmp(data.data(), first.data() + chunk * kChunk, data.size()) == 0);
          }
        }
        CHECK(fill(*volume, 5, static_cast<uint8_t>(10 + round)).ok());
        Result<CheckReport> report = volume->check(true, nullptr);
        CHECK((report.ok() && report.value().clean));
        CHECK(report.value().lost_entries == (origin_overwritten ? 1 : 0));
        if (round == 1) CHECK(volume->close().ok());
      });
    }
  }
}

TEST_CASE("damage: superblocks, one or both, cut off, of a newer format") {
  const Sample sample = make_sample(true);
  const auto sealed = [](Bytes& store, int slot,
                         const std::function<void(format::Superblock&)>& edit) {
    format::Superblock sb;
    std::memcpy(&sb, store.data() + format::kSuperblockOffset[slot], sizeof sb);
    edit(sb);
    sb.crc = 0;
    sb.crc = crc32c(&sb, sizeof sb);
    std::memcpy(store.data() + format::kSuperblockOffset[slot], &sb, sizeof sb);
  };
  for (int slot = 0; slot < 2; slot++) {
    Bytes damaged = sample.store;
    damaged[format::kSuperblockOffset[slot] + 300] ^= 1;
    const Verdict verdict = use(sample, damaged);
    CHECK_MESSAGE(verdict.wrong.empty(), verdict.wrong);
    // The older slot alone tells of the same state: nothing was written after the newer one.
    CHECK_MESSAGE(verdict.opened.ok(), verdict.opened.to_text());
    CHECK(verdict.all_read);
    damaged[format::kSuperblockOffset[1 - slot] + 300] ^= 1;
    CHECK(use(sample, damaged).opened.code() == Code::CORRUPT);

    // A newer format in either slot: hands off.
    damaged = sample.store;
    sealed(damaged, slot, [](format::Superblock& sb) { sb.version = format::kFormatVersion + 1; });
    CHECK(use(sample, damaged).opened.code() == Code::NEWER_FORMAT);
    damaged = sample.store;
    sealed(damaged, slot, [](format::Superblock& sb) { sb.incompat = uint64_t{1} << 63; });
    CHECK(use(sample, damaged).opened.code() == Code::NEWER_FORMAT);
  }
  // Confirmed records that the journal does not have are lost ones, in a store that was closed too.
  for (const bool closed : {true, false}) {
    const Sample made = make_sample(closed);
    Bytes damaged = made.store;
    for (int slot = 0; slot < 2; slot++)
      sealed(damaged, slot,
             [](format::Superblock& sb) { sb.confirmed_sequence = sb.confirmed_sequence + 1000; });
    CHECK(use(made, damaged).opened.code() == Code::CORRUPT);
  }
  Bytes cut(sample.store.begin(), sample.store.end() - 4096);
  CHECK(use(sample, cut).opened.code() == Code::TRUNCATED);
  CHECK(use(sample, Bytes(kStoreBytes, 0)).opened.code() == Code::NOT_A_STORE);
  CHECK(use(sample, Bytes(4096, 0)).opened.code() == Code::NOT_A_STORE);
}

TEST_CASE("damage: after an append the older superblock alone is refused (W5)") {
  const Sample sample = make_sample(false);
  uint64_t refused = 0;
  for (int slot = 0; slot < 2; slot++) {
    Bytes damaged = sample.store;
    damaged[format::kSuperblockOffset[slot] + 300] ^= 1;
    const Verdict verdict = use(sample, damaged);
    CHECK_MESSAGE(verdict.wrong.empty(), verdict.wrong);
    refused += verdict.opened.code() == Code::CORRUPT;
  }
  CHECK(refused == 1);  // the newer one is missed, the older is not
}

}  // namespace csnap
