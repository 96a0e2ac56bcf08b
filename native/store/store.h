// The snapshot store, open: superblock, journal, index, space map, snapshot table and counters as
// one transactional whole. Callers: volume/ only.
//
// Every change is a transaction: begin() makes sure that journal and space can take it, the caller
// fills the batch with records, commit() appends them and makes them durable with one sync (along
// with everything else written to the store before, such as chunk data), and then the caller
// applies the same records to RAM, still under the transaction lock. A checkpoint writes RAM's
// state to new places and flips the superblock.
//
// Invariants
//  R1  RAM is changed only by records that are durable (or by their replay); so RAM is always the
//      state that replay would build.
//  R2  All changes and the cut of a checkpoint happen under the transaction lock.
//  R3  Blocks of the last durable superblock's state are never overwritten (W4).
//  R4  After failed() is set nothing is written any more but the failed mark (W9).
//  R5  Records of staged writes are no transaction's: they change nothing in RAM here, and stay in
//      the journal until they are applied. The tail never passes one that is not (RecordPlace), so
//      replay meets records of transactions that the superblock's state holds already: those up to
//      its state_sequence.
//  R6  Staged records leave half of the journal to transactions, whatever they promised.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <random>
#include <unordered_set>
#include <vector>

#include "base/sync.h"
#include "io/device.h"
#include "store/index.h"
#include "store/journal.h"
#include "store/snapshot_table.h"
#include "store/space_counters.h"
#include "store/space_map.h"
#include "store/superblock.h"

namespace csnap {

struct StoreOptions {
  Device* store = nullptr;
  Device* origin = nullptr;  // read by recovery only (W1)
  bool look_only = false;
  bool accept_loss = false;
  // Granted for this term; must be above the store's. 0: the next one, as the lock alone allows.
  Epoch epoch = 0;
  // The caller found the origin changed and goes on: new durability id, the snapshots so far are
  // suspect, and this writes the new origin into the superblock. Empty otherwise.
  std::function<void(format::Superblock&)> accept_origin;
  format::DurabilityMode durability = format::DurabilityMode::FLUSH;
  UuidBytes boot_id{};
  IndexOptions index;
  std::function<UuidBytes()> make_uuid;
  // Told once, by whichever thread meets the failure, when the mark is written; must not block.
  std::function<void(const Status&)> on_failed;
};

// What recovery did, for info().
struct RecoveryReport {
  bool was_clean = false;
  uint64_t records = 0;
  uint64_t dropped_entries = 0;
  uint64_t lost_entries = 0;
};

// A staged write that recovery found not applied.
struct RecoveredWrite {
  format::DataRecord record;
  RecordPlace place;
  std::vector<std::byte> data;
};

enum class Priority {
  DATA,      // fails with NO_SPACE rather than touch the reserves
  RESERVED,  // delete, free, settings: may use them, but for the last of the journal
  COPY,      // as DATA, but WOULD_BLOCK where staged writes fill the journal
  APPLIED,   // not of a transaction: that staged writes are in place
  STAGED,    // what staged writes owe, without which the journal's tail can't move: may use all
};

class Store final : public MetadataIo {
 public:
  // Writes an empty store; see create_store() in volume/volume.h.
  static Status format(Device& device, format::Superblock& superblock);
  // `superblock` as found by load_superblock(). Replays, and unless look_only claims and stamps the
  // next epoch (F3, W5). Errors: CORRUPT, IO_ERROR, NEEDS_ACCEPT_LOSS, FENCED.
  static Result<std::unique_ptr<Store>> open(StoreOptions options, SuperblockFound found);
  ~Store() override = default;

  // -- transactions
  struct Transaction {
    MutexLock checkpoint;  // held by one that has no record
    MutexLock lock;
    RecordBatch batch;
  };
  // Takes the transaction lock when `record_bytes` of records and `index_changes` changes fit; runs
  // a checkpoint to make room. Errors: NO_SPACE, FAILED.
  Result<Transaction> begin(Priority priority, uint64_t record_bytes, uint64_t index_changes);
  // One without a record, for what staged writes owe while they fill the journal: what is applied
  // becomes durable by finish(), which writes a checkpoint under the lock, so that no record can be
  // about what is not durable yet. Nobody may rely on it before. Errors: NO_SPACE, FAILED.
  Result<Transaction> begin_checkpointed(uint64_t index_changes);
  Status finish(Transaction& transaction);
  // Appends and syncs. On failure the volume has failed (W9) and nothing may be applied. `appended`
  // is called in between: from then on what is appended comes after the transaction's records.
  Status commit(Transaction& transaction, const std::function<void()>& appended = nullptr);
  // The most index changes that one transaction may make.
  uint64_t changes_max();

  // -- staged writes. The append lock comes after the transaction lock.
  MutexLock append_lock() { return MutexLock(append_); }
  // Under the append lock: writes the records, not synced, and tells where each stands.
  // WOULD_BLOCK: half of the journal is in use (R6). Errors: FAILED.
  Status append_staged(RecordBatch& batch, std::vector<RecordPlace>& places);
  // All records appended before the call are on stable storage when it returns. Errors: FAILED.
  Status sync_journal();
  // Staged records of `chunks` up to `upto` are in place and synced.
  struct Applied {
    Sequence upto = 0;
    std::vector<ChunkIndex> chunks;
  };
  // Appends and syncs an APPLIED record of each. Errors: NO_SPACE (a checkpoint makes room),
  // FAILED.
  Status commit_applied(std::span<const Applied> groups);
  // `oldest` is asked under the append lock at each checkpoint: the oldest staged record that is
  // not applied. `relieve` has staged writes applied, where the journal is too full for a
  // transaction.
  void keep_from(std::function<std::optional<RecordPlace>()> oldest,
                 std::function<void(bool copy)> relieve) {
    oldest_ = std::move(oldest);
    relieve_ = std::move(relieve);
  }
  // What was staged and not applied when the store was opened, in order. Once.
  std::vector<RecoveredWrite> take_recovered() { return std::move(recovered_); }

  // -- applying durable records; under the transaction lock
  Status apply_exceptions(const std::vector<Entry>& entries);
  // The entries' chunks are held; give them to unhold_chunks() when no reader can know them any
  // more.
  Status apply_free(const std::vector<Entry>& entries);
  void apply_snapshot(const Snapshot& snapshot);
  void apply_delete(const UuidBytes& uuid, bool dropped, uint64_t delete_serial);
  void apply_reclaimed(uint64_t pass);
  void apply_hold(const format::Hold& hold);
  // Whether this hold may come after the present one: never another attachment's after one that was
  // not ended.
  bool may_follow(const format::Hold& hold) const;

  // -- space
  // A store chunk for an exception to come, held. Errors: NO_SPACE.
  Result<BlockNumber> allocate_chunk();
  void abandon_chunk(BlockNumber block) { space_map_->unhold(block, space_map_->chunk_blocks()); }
  void unhold_chunks(const std::vector<BlockNumber>& blocks);
  uint64_t reserve_blocks() const;
  // Space that chunks can still use, in blocks.
  uint64_t available_blocks() const;

  // -- checkpoint
  // Writes everything and flips the superblock. `clean`: last act of a close; no change may come
  // after it. `edit` may change the superblock that is written.
  Status checkpoint(bool clean = false,
                    const std::function<void(format::Superblock&)>& edit = nullptr);
  bool wants_checkpoint();
  // While pinned, nothing that the superblock in use refers to is overwritten or reused. The pin
  // starts with a checkpoint of its own. Returns that superblock. The holder must unpin soon after
  // pins_revoked() turns true: the space that it holds back is needed.
  Result<format::Superblock> pin_checkpoint();
  void unpin_checkpoint();
  bool pinned();
  bool pins_revoked() const { return pins_revoked_.load(std::memory_order_relaxed); }
  // Waits until nothing is pinned; false: nothing was.
  bool revoke_pins();

  // F3: reads the superblocks again. FENCED, and the store has failed: a newer term has stamped it.
  // What can't be read tells nothing.
  Status check_term();

  // -- failure (W9). failure() is FAILED; FENCED where the term has lost its grant (F2), and then
  // nothing is written at all.
  void fail(const Status& why, bool sync_failed);
  bool failed() const { return failed_.load(std::memory_order_acquire); }
  Status failure();

  // -- the parts; changed only under the transaction lock
  MutexLock lock() { return MutexLock(transaction_); }
  MutexLock try_lock() { return MutexLock(transaction_, std::try_to_lock); }
  format::Superblock& superblock() { return superblock_; }
  Index& index() { return *index_; }
  SpaceMap& space_map() { return *space_map_; }
  SnapshotTable& snapshots() { return *snapshots_; }
  SpaceCounters& counters() { return *counters_; }
  uint64_t journal_used_bytes();
  // A few more crashes, and no term could be stamped (W5).
  bool chain_is_long();
  uint64_t journal_bytes() const { return superblock_.journal_bytes; }
  Device& device() { return device_; }
  const RecoveryReport& recovery() const { return recovery_; }
  Epoch epoch() const { return superblock_.epochs[superblock_.epoch_count - 1].epoch; }
  uint64_t chunk_bytes() const { return superblock_.chunk_bytes; }
  uint64_t checkpoints() const { return checkpoint_count_.load(std::memory_order_relaxed); }
  // A location as read from disk may be used only if it is inside the data area and aligned.
  Status check_location(const Entry& entry) const;

  // -- MetadataIo
  BlockNumber allocate() override;
  void release(BlockNumber block) override;
  Status read(BlockRef ref, format::BlockKind kind, uint8_t level, BlockImage& image) override;
  uint32_t seal(BlockNumber block, BlockImage& image) override;

 private:
  friend class Recovery;
  Store(StoreOptions options, const format::Superblock& superblock);

  uint64_t dirty_limit() const;
  uint64_t page_blocks_needed() const;
  uint64_t journal_reserve(Priority priority) const;
  Result<Sequence> append(RecordBatch& batch);
  Status confirm(Sequence upto);
  void fill_superblock(format::Superblock& next);
  Status write_sealed(std::vector<SealedBlock>& blocks);
  void let_go(const std::vector<BlockNumber>& blocks, uint64_t run,
              std::vector<BlockNumber>& pinned);
  Status flip_superblock(format::Superblock& next, bool& sync_failed);
  // `hold`: the lock is kept all the time.
  Status write_state(bool clean, const std::function<void(format::Superblock&)>& edit,
                     MutexLock& lock, bool hold = false);

  StoreOptions options_;
  Device& device_;
  // The one in use with what records have changed since. Guarded by transaction_.
  format::Superblock superblock_;
  Mutex superblock_mutex_;      // guards written_ and the writing of superblocks
  format::Superblock written_;  // exactly as last written
  std::atomic<uint64_t> sequence_in_use_;
  std::vector<EpochTermInfo> chain_;
  RecoveryReport recovery_;

  Mutex checkpoint_mutex_;  // one checkpoint at a time; taken before transaction_
  Mutex transaction_;
  Mutex append_;  // guards journal_ and confirmed_; the last lock to be taken
  std::unique_ptr<SpaceMap> space_map_;
  std::unique_ptr<SnapshotTable> snapshots_;
  std::unique_ptr<SpaceCounters> counters_;
  std::unique_ptr<Index> index_;
  std::unique_ptr<Journal> journal_;

  // Guarded by transaction_.
  std::unordered_set<BlockNumber> fresh_;  // allocated since the last freeze
  std::vector<BlockNumber> released_;      // held until the next flip
  Sequence confirmed_ = 0;                 // guarded by append_
  uint64_t promised_bytes_ = 0;  // of the journal, to the transaction that has begun; so, too
  std::function<std::optional<RecordPlace>()> oldest_;
  std::function<void(bool)> relieve_;
  std::vector<RecoveredWrite> recovered_;
  bool checkpoint_record_due_ = false;
  uint32_t pins_ = 0;
  std::atomic<bool> pins_revoked_{false};
  CondVar unpinned_;
  std::vector<bool> pinned_state_;          // blocks that a pinned state refers to
  std::vector<BlockNumber> pinned_blocks_;  // to be unheld when the last pin is gone
  std::vector<BlockNumber> pinned_chunks_;

  std::atomic<bool> failed_{false};
  Mutex failure_mutex_;
  Status failure_;
  std::atomic<uint64_t> checkpoint_count_{0};
  std::atomic<uint64_t> reserve_{0};  // reserve_blocks() as last worked out under transaction_
};

std::vector<EpochTermInfo> chain_of(const format::Superblock& superblock);

}  // namespace csnap
