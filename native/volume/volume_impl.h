// VolumeImpl: the volume in parts. Each .cc is one step of a request's life:
//   open_close.cc      create, open, close, the checkpoint thread
//   volume.cc          submit (which path a request takes), failure, events, info
//   origin_write.cc    write, write-zeroes, trim: in place where copied, else staged or parked
//   staging.cc         small writes into journal and staged table
//   committer.cc       copy-out in rounds with one sync; wakes the parked
//   copy_out.cc        the copying itself: origin to a buffer to store chunks
//   applier.cc         staged content to its place in the origin
//   flusher.cc         FLUSH, FUA and mode sync: one origin sync for many
//   origin_read.cc     reads of the origin, block status
//   snapshot_read.cc   reads of a snapshot
//   snapshots.cc       create, delete, list, properties, diff
//   reclaimer.cc       frees what no snapshot holds; the store-full policy
//   hold.cc            the read-write hold of an attachment
//   care.cc            check, dump
//
// Locks, in the order they may be taken: snapshot_mutex_, the store's transaction lock, its append
// lock, then any of the leaf mutexes (pending_mutex_, flush_mutex_, space_mutex_, views_mutex_,
// state_mutex_, apply_mutex_); never two leaves at once. The staged table's own comes last. Inside
// a section only device I/O and index lookups happen.
#pragma once

#include <cstdlib>
#include <map>
#include <span>

#include "io/gated_device.h"
#include "store/store.h"
#include "volume/generation_state.h"
#include "volume/io_pool.h"
#include "volume/sections.h"
#include "volume/staged_table.h"
#include "volume/volume.h"

namespace csnap {

class VolumeView final : public View {
 public:
  Generation generation = 0;  // of the snapshot; 0: the origin
  std::atomic<bool> deleted{false};
};

class VolumeImpl final : public Volume {
 public:
  explicit VolumeImpl(VolumeOptions options);
  ~VolumeImpl() override;
  Status start();

  Status close() override;
  std::shared_ptr<View> open_origin() override;
  Result<std::shared_ptr<View>> open_snapshot(const Uuid& uuid) override;
  bool submit(IoRequest& request, bool may_block) override;
  uint64_t submit_writes(std::span<IoRequest* const> requests) override;
  Status run(IoRequest& request) override;
  Status block_status(View& view, uint64_t offset, uint64_t length, size_t max_extents,
                      std::vector<BlockStatusExtent>& out) override;
  Gate* gate() override { return options_.gate; }
  void run_on_pool(std::function<void()> task) override;
  Result<SnapshotInfo> create_snapshot(
      const std::string& name, bool pinned, uint8_t priority,
      const std::vector<std::pair<std::string, std::string>>& labels) override;
  Status delete_snapshot(const Uuid& uuid, bool dropped) override;
  Result<SnapshotInfo> update_snapshot(const Uuid& uuid, const SnapshotChanges& changes) override;
  Result<std::vector<SnapshotInfo>> list_snapshots() override;
  Status update_settings(const Settings& settings) override;
  Result<HoldInfo> set_hold(const Uuid& attachment, const std::string& host) override;
  Result<HoldInfo> clear_hold(const Uuid& attachment, bool force) override;
  HoldInfo hold() override;
  void decide_drop(const Uuid& uuid) override;
  Result<uint64_t> freed_if_deleted(const std::vector<Uuid>& uuids) override;
  Status diff(const Uuid& a, const Uuid& b,
              const std::function<bool(ChunkIndex first, uint64_t count)>& out) override;
  VolumeInfo info() override;
  VolumeInfo recent_info() override;
  Status checkpoint() override;
  Result<CheckReport> check(bool data,
                            const std::function<void(uint64_t, uint64_t)>& progress) override;
  Status dump(const std::function<bool(const std::string&)>& line) override;
  Status wait_reclaimed() override;

 private:
  // -- open_close.cc
  Status open_parts();
  Status judge_origin(const format::Superblock& sb, bool& accepted) const;
  std::unique_ptr<GatedDevice> gated(Device& device);  // null without a gate
  void stop_threads();
  void maintain();  // the checkpoint thread

  // -- volume.cc
  void fill_info(VolumeInfo& info);  // under the transaction lock
  void add_counters(VolumeInfo& info) const;
  void emit(VolumeEvent::Kind kind, const Snapshot* snapshot, std::string message,
            Code code = Code::OK);
  void fail(const Status& why, bool sync_failed);
  void on_failed(const Status& why);
  Status still_granted();
  void finish(IoRequest& request, Status status);  // calls done
  std::shared_ptr<GenerationState> generation_state();
  static VolumeView& view_of(const IoRequest& request) {
    return static_cast<VolumeView&>(*request.view);
  }
  uint64_t chunk_of(uint64_t offset) const { return offset / chunk_bytes_; }
  // Bytes of this chunk that the origin has.
  uint64_t chunk_length(ChunkIndex chunk) const;

  bool begin_submit(IoRequest& request);
  void count_write(const IoRequest& request);

  // -- origin_write.cc
  enum class Attempt { DONE, PARKED };
  // One go at a write-like request: does pieces until it is finished or a piece has to be parked.
  Attempt attempt_write(IoRequest& request);
  Status write_piece(IoRequest& request, GenerationState& state, uint64_t offset, uint64_t length);
  Status zero_piece(IoRequest& request, uint64_t offset, uint64_t length);
  Status trim_piece(GenerationState& state, uint64_t offset, uint64_t length);
  bool learn_copied(GenerationState& state, ChunkIndex first, ChunkIndex last);
  bool park(IoRequest& request, GenerationState& state, uint64_t offset, uint64_t length);
  bool park_till_open(IoRequest& request, const GenerationState& state);
  void release_opened();
  void resume(IoRequest& request);
  Attempt after_write(IoRequest& request, Status status);

  // -- staging.cc
  uint64_t staged_limit_bytes() const;
  Status allocate_origin(ChunkIndex chunk, uint64_t start, uint64_t length);
  void forget_allocated(uint64_t offset, uint64_t length);
  enum class Staged {
    YES,
    NO,
    LATER,  // its generation's beginning is not in the journal yet
  };
  // What staging needs for a moment, kept for the next time: else half a dozen allocations.
  struct StagingDesk {
    struct Part {
      ChunkIndex chunk;
      uint64_t start, length;  // bytes within the chunk
      const std::byte* data;
      bool copied;
      BlockNumber reserved;
    };
    std::vector<Part> parts;
    std::vector<IoRequest*> planned;  // stage_together(): whose they are
    RecordBatch batch;
    std::vector<RecordPlace> places;
  };
  bool may_stage();
  Result<Staged> stage(const IoRequest& request, GenerationState& state, uint64_t offset,
                       uint64_t length);
  void stage_together(std::span<IoRequest* const> requests);
  Result<bool> plan(const IoRequest& request, GenerationState& state, uint64_t offset,
                    uint64_t length, StagingDesk& desk);
  Result<bool> enter(GenerationState& state, StagingDesk& desk);
  void give_back(StagingDesk& desk, size_t from);
  std::unique_ptr<StagingDesk> take_desk();
  void leave_desk(std::unique_ptr<StagingDesk> desk);
  Status load_recovered();

  // -- applier.cc
  void wake_applier();
  void apply_loop();
  Result<bool> apply_round(bool all);
  Status put_in_place(const StagedTable::Content& content);
  void apply_staged();
  Status drain(bool patiently);
  bool is_staging_pressed();
  void release_applied(std::span<const ChunkIndex> chunks, const Status& status);
  void fail_waiting();

  // -- committer.cc
  void commit_loop();
  bool copies_now(size_t busy);
  bool is_burst();
  void relieve_journal();
  void copy_out_staged();
  struct CopyOut {
    Entry entry;
    Status status;                 // of reading and writing it
    size_t at = 0;                 // its chunk's among those that were to be committed
    std::byte* content = nullptr;  // of the chunk, in the round's buffer
    bool read = false;             // the content is there
    bool held = false;             // its store chunk is held and not recorded yet
    bool settles = false;          // of a staged chunk: it may be applied once this is durable
    ChunkIndex chunk() const { return entry.key.chunk; }
  };
  struct CopyRound {
    // What it is to do. Ascending, both.
    std::vector<ChunkIndex> chunks;
    std::vector<ChunkIndex> parked;  // of these: for parked writes. The others are staged
    // begin_round(): when that was.
    uint64_t progress = 0;                               // space_progress()
    std::shared_ptr<GenerationState> state;              // null: not begun
    std::vector<Generation> live;                        // the origin's snapshots
    std::vector<std::optional<StagedTable::Owed>> owed;  // of each chunk
    // copy_round(): what came of it.
    Status status;                 // of looking up; of each copy: its own
    std::vector<CopyOut> copies;   // by chunk, ascending
    size_t placed = 0;             // so many of them have a place; the store had none for the next
    std::vector<ChunkIndex> done;  // once the copies are recorded
    std::vector<ChunkIndex> starved;  // staged ones for which the store has no room
    size_t taken = 0;                 // of the chunks that were to be committed
    // Leaves the chunks from there on to a later round.
    void cut_at(size_t at) {
      copies.resize(placed);
      done.resize(at);
      taken = at;
    }
  };
  bool may_copy_staged();
  void commit_rounds();
  void end_round(CopyRound& round);
  void choose_chunks(CopyRound& round, const CopyRound* busy);
  void commit_slowly(const CopyRound& round);
  bool commit_group(std::span<const ChunkIndex> chunks, bool staged);
  bool drop_failed(CopyRound& round);
  void note_held(const Status& why);
  void tell_full(std::span<const ChunkIndex> chunks, bool staged);
  void settle_staged(std::span<const ChunkIndex> chunks);
  Status record_round(CopyRound& round);
  void release_waiters(std::span<const ChunkIndex> chunks, const Status& status);
  using Queues = std::map<ChunkIndex, std::vector<IoRequest*>>;
  void release(Queues& queues, std::span<const ChunkIndex> chunks, const Status& status);

  // -- copy_out.cc
  void begin_round(CopyRound& round);
  void copy_ahead(CopyRound& round);
  void await_copied_ahead();
  void copy_round(CopyRound& round);
  Status choose(CopyRound& round);
  void copy_group(CopyRound& round);
  uint64_t length_of(std::span<const CopyOut> copies) const;
  bool read_cached(std::span<CopyOut> copies);
  void read_copies(std::span<CopyOut> copies);
  void finish_read(std::span<CopyOut> copies);
  void place(CopyRound& round);
  void write_copies(std::span<CopyOut> copies);
  void replace_bad_chunk(CopyOut& copy);
  void give_up(CopyRound& round);
  void give_up(CopyOut& copy);
  void give_back(ChunkIndex chunk, BlockNumber block);

  // -- reclaimer.cc: room for a commit
  uint64_t space_progress();
  bool wait_for_space(uint64_t seen);

  // -- flusher.cc
  void enqueue_flush(IoRequest& request);
  void flush_round();

  // -- origin_read.cc, snapshot_read.cc
  Status read_origin(uint64_t offset, uint64_t length, void* data);
  bool lend_origin(IoRequest& request);
  bool read_origin_nowait(uint64_t offset, uint64_t length, void* data);
  Status read_snapshot(VolumeView& view, uint64_t offset, uint64_t length, void* data);
  Status read_snapshot_piece(VolumeView& view, ChunkIndex chunk, uint64_t start, uint64_t length,
                             std::byte* data);
  bool read_snapshot_nowait(VolumeView& view, uint64_t offset, uint64_t length, void* data);
  bool read_snapshot_piece_nowait(const VolumeView& view, ChunkIndex chunk, uint64_t start,
                                  uint64_t length, std::byte* data);
  Status read_entry(const Entry& entry, uint64_t start, uint64_t length, std::byte* data);
  // Where the origin's snapshot of this generation finds the chunk; none: in the origin.
  Result<std::optional<Entry>> lookup(ChunkIndex chunk, Generation generation);
  // The same for who is likely to ask again; a writer has its own bits for that.
  Result<std::optional<Entry>> lookup_for_read(ChunkIndex chunk, Generation generation);
  Status origin_extents(uint64_t offset, uint64_t length, Generation upto, size_t max_extents,
                        std::vector<BlockStatusExtent>& out);

  // -- snapshots.cc
  SnapshotInfo info_of(const Snapshot& snapshot);
  Result<Snapshot> begin_snapshot(Snapshot snapshot);
  Status complete_snapshot(const Snapshot& snapshot);
  Status remove_snapshot(const UuidBytes* uuid, bool dropped);
  void refresh_newest_live();

  // -- hold.cc
  HoldInfo hold_info();  // under the transaction lock
  Status write_hold(Store::Transaction& transaction, const format::Hold& hold);

  // -- reclaimer.cc
  void reclaim_loop();
  Status reclaim_pass();
  Status reclaim_batch(const std::vector<Entry>& scanned, uint64_t& freed);
  Status free_entries(Store::Transaction& transaction, const std::vector<Entry>& entries);
  bool freeable(const Entry& entry, const Entry* before, Status& status);
  bool low_water();
  void look_at_water();
  void follow_policy(bool urgent, bool& progressed);
  const Snapshot* choose_victim();
  void throttle(uint64_t freed_chunks);

  const VolumeOptions options_;
  // F2: between the volume and its devices.
  const std::unique_ptr<GatedDevice> gated_origin_, gated_store_;
  Device& origin_;
  Device& store_device_;
  std::unique_ptr<Store> store_;
  uint64_t chunk_bytes_ = 0;
  uint64_t chunk_count_ = 0;
  uint64_t origin_bytes_ = 0;
  bool sync_mode_ = false;
  uint64_t suspect_serial_ = 0;  // fixed at open

  Sections writers_;
  Sections readers_;
  std::atomic<GenerationState*> state_{nullptr};  // for writers inside a section
  Mutex state_mutex_;
  std::shared_ptr<GenerationState> state_owner_;  // for everybody else

  std::unique_ptr<StagedTable> staged_;
  std::atomic<uint64_t> staged_limit_{0};  // 0: the default
  std::atomic<bool> origin_dirty_{true};   // written in place since the last sync for a flush

  Mutex desks_mutex_;
  std::vector<std::unique_ptr<StagingDesk>> desks_;  // nobody's now

  // Chunks of the origin without a hole, as far as it was looked at.
  std::unique_ptr<ChunkBitmap> allocated_;
  std::atomic<uint64_t> holes_made_{0};  // counts what may have made holes

  std::unique_ptr<ChunkBitmap> verified_;  // store chunks whose checksum was seen right, by run

  Mutex snapshot_mutex_;  // one creation at a time

  Mutex views_mutex_;
  std::shared_ptr<VolumeView> origin_view_;
  std::map<UuidBytes, std::weak_ptr<VolumeView>> views_;
  struct Openable {
    Generation generation;
    uint64_t size_bytes;
  };
  std::map<UuidBytes, Openable>
      openable_;  // LIVE snapshots, so that opening waits for no transaction

  // Parked requests, by chunk. An entry lives until the chunk's waiters are released.
  Mutex pending_mutex_;
  CondVar pending_wake_;
  CondVar copied_;                   // a group of staged chunks was
  Queues pending_;                   // for a copy-out
  Queues applying_;                  // for the chunk to leave the table
  std::vector<IoRequest*> opening_;  // for their generation to be open
  // The committer's own.
  ChunkIndex commit_cursor_ = 0;
  ChunkIndex staged_cursor_ = 0;
  uint64_t copying_held_until_ms_ = 0;  // of what is staged
  uint64_t burst_look_ms_ = 0, burst_look_staged_ = 0;
  bool is_burst_ = false;
  // Of who copies a round.
  struct ReadFailures {
    int count = 0;
    uint64_t last_ms = 0;
  };
  static bool is_lost(ReadFailures& failures);
  std::map<ChunkIndex, ReadFailures> read_failures_;  // of staged chunks
  struct Free {
    void operator()(std::byte* bytes) const { std::free(bytes); }
  };
  // Of who copies a round, until it is written; group_slots_ chunks.
  std::unique_ptr<std::byte, Free> round_buffer_;
  static constexpr uint64_t kGroupBytes = uint64_t{4} << 20;
  size_t group_slots_ = 1;
  Mutex ahead_mutex_;
  CondVar copied_ahead_;
  bool copying_ahead_ = false;
  bool committer_stop_ = false;
  std::atomic<bool> committing_{false};  // it is at a round, however long a device takes
  // Why what is staged could not leave when that was last tried, whatever came of it since.
  Status held_why_;
  // Those for whom what is staged must be copied out soon.
  std::atomic<int> copy_hurry_{0};
  struct Hurry {
    explicit Hurry(std::atomic<int>& count) : count(count) { count++; }
    ~Hurry() { count--; }
    Hurry(const Hurry&) = delete;
    std::atomic<int>& count;
  };

  Mutex apply_mutex_;
  CondVar apply_wake_;
  CondVar apply_done_;
  bool apply_kicked_ = false;
  bool apply_all_ = false;
  bool apply_stop_ = false;
  uint64_t apply_rounds_ = 0;
  bool origin_full_told_ = false;        // the applier's own
  std::vector<std::byte> apply_buffer_;  // the applier's own; a chunk

  Mutex flush_mutex_;
  std::vector<IoRequest*> flush_waiting_;
  bool flush_running_ = false;

  // Reclaim and the store-full policy.
  Mutex space_mutex_;
  CondVar space_wake_;     // the reclaimer waits here
  CondVar space_changed_;  // those who wait for it wait here
  bool reclaim_kicked_ = false;
  bool reclaim_stop_ = false;
  bool reclaim_idle_ = true;
  uint64_t space_requests_ = 0;  // tickets of wait_for_space()
  uint64_t space_served_ = 0;
  uint64_t space_progress_ = 0;              // grows when something was freed or dropped
  uint64_t space_waited_seen_ = 0;           // space_progress_ when that wait began
  bool space_waited_for_ = false;            // the committer waits now
  std::atomic<bool> low_water_told_{false};  // set by the reclaimer only
  uint64_t drop_deadline_ms_ = 0;
  bool drop_answered_ = false;
  Uuid drop_answer_;

  Mutex maintain_mutex_;
  CondVar maintain_wake_;
  bool maintain_stop_ = false;

  Thread applier_;
  Thread committer_;
  Thread reclaimer_;
  Thread maintainer_;
  std::unique_ptr<IoPool> copier_;  // one thread, the committer's
  std::unique_ptr<IoPool> pool_;
  Mutex info_mutex_;
  CondVar info_pause_;  // nobody notifies: a bounded pause
  VolumeInfo last_info_;
  bool closed_ = false;

  struct {
    std::atomic<uint64_t> reads{0}, writes{0}, flushes{0}, read_bytes{0}, write_bytes{0};
    std::atomic<uint64_t> copy_outs{0}, zero_chunks{0}, commits{0}, parked{0};
    std::atomic<uint64_t> staged{0}, applied{0};
    std::atomic<uint64_t> checksum_errors{0}, chunks_freed{0};
  } counters_;
};

}  // namespace csnap
