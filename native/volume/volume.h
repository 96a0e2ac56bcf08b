// A volume: one origin and one snapshot store, open. The face of the core: the NBD connections, the
// addon and the tests drive it through this file only.
//
// Data requests are asynchronous: submit() does what needs no waiting inline and hands the rest to
// the volume's own threads; no thread is held by a parked request. Everything else blocks its
// caller; the addon calls it from worker threads.
//
// Callbacks run on volume threads, must not block, and may call submit().
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/gate.h"
#include "base/status.h"
#include "base/units.h"
#include "io/device.h"
#include "store/format.h"
#include "store/index.h"
#include "volume/uuid.h"

namespace csnap {

// ---- What an export shows --------------------------------------------------------------------

// One export as the data path sees it: the origin or one snapshot. Shared by the connections that
// serve it; stays valid after the snapshot is deleted (requests then fail with SNAPSHOT_DELETED).
class View {
 public:
  virtual ~View() = default;
  uint64_t size_bytes = 0;
  bool read_only = true;
  Uuid uuid;  // of the snapshot; nil: the origin

 protected:
  View() = default;
};

enum class IoOp : uint8_t { READ, WRITE, FLUSH, TRIM, WRITE_ZEROES, CACHE };

// One data request. The owner keeps it and `data` alive until completion.
struct IoRequest {
  IoOp op = IoOp::READ;
  bool fua = false;        // W3: on stable storage before the reply
  bool no_hole = false;    // WRITE_ZEROES: keep the range allocated
  bool fast_zero = false;  // WRITE_ZEROES: NOT_SUPPORTED unless faster than writing
  View* view = nullptr;
  uint64_t offset = 0;  // inside the view; whoever submits has checked range and read-only
  uint64_t length = 0;
  void* data = nullptr;  // READ: filled; WRITE: source
  // READ: the volume may say where the content is instead of filling `data`: in the page cache, at
  // `offset` of that file. Whoever sends it from there sends what is there by then, as if it had
  // read later. -1: it is in `data`.
  bool takes_cached_file = false;
  int cached_file = -1;

  // Called once iff submit() returned false. `status` is set before.
  void (*done)(IoRequest&) = nullptr;
  void* owner = nullptr;
  Status status;

  // The volume's own bookkeeping while the request is under way.
  struct {
    IoRequest* next = nullptr;
    uint32_t waits_for = 0;  // parked: chunks still to be copied
    uint64_t progress = 0;   // bytes done, of requests that are worked off in pieces
    uint64_t piece = 0;      // bytes of the piece under way
    bool in_place = false;   // something of it is in the origin, not in the journal
  } internal;
};

struct BlockStatusExtent {
  uint64_t length;
  bool hole;
  bool zero;
};

// ---- Looks -----------------------------------------------------------------------------------

struct SnapshotInfo {
  Uuid uuid;
  std::string name;
  format::SnapshotState state;
  Generation generation = 0;
  uint64_t created_ns = 0;
  uint64_t size_bytes = 0;
  uint8_t priority = 0;
  bool pinned = false;
  bool suspect = false;
  uint32_t use_count = 0;  // open views
  std::vector<std::pair<std::string, std::string>> labels;
  // Bytes of store chunks: held by this snapshot alone; held with others.
  uint64_t unique_bytes = 0;
  uint64_t shared_bytes = 0;
  bool estimated = false;  // beyond the exact counters' bound
};

// The read-write hold of an attachment (design section 3). Nil attachment: nobody has it.
struct HoldInfo {
  Uuid attachment;
  std::string host;
  uint64_t since_ns = 0;  // Unix time
  bool held() const { return !attachment.is_nil(); }
};

struct VolumeInfo {
  std::string name;
  Uuid volume_uuid, store_uuid, durability_id;
  Epoch epoch = 0;
  uint64_t superblock_sequence = 0;
  format::DurabilityMode durability;
  format::OnFull on_full;
  uint64_t origin_bytes = 0, store_bytes = 0, chunk_bytes = 0, journal_bytes = 0;
  std::string origin_path, origin_identity;
  uint64_t created_ns = 0;
  Generation generation = 0;
  HoldInfo hold;
  bool clean = false;  // how the store was found: closed in order
  bool sync_failed = false;
  bool suspect = false;
  bool failed = false;  // W9 stop; `failure` says why
  bool fenced = false;  // it stopped because the grant had ended (F2)
  std::string failure;
  uint64_t gate_refusals = 0;  // what the gate held back: device changes, requests, replies
  uint64_t exceptions = 0;
  uint64_t blocks_total = 0, blocks_free = 0, blocks_metadata = 0, blocks_data = 0,
           blocks_reserve = 0;
  uint64_t journal_used_bytes = 0;
  uint64_t replayed_records = 0;                   // at open
  uint64_t dropped_entries = 0, lost_entries = 0;  // W1, at open
  bool reclaim_active = false;
  uint64_t reclaim_rate_bytes = 0, staged_limit_bytes = 0, cache_limit_bytes = 0;
  uint32_t snapshots_live = 0, snapshots_deleting = 0;
  // Counters since open.
  uint64_t reads = 0, writes = 0, flushes = 0, read_bytes = 0, write_bytes = 0;
  uint64_t copy_outs = 0, zero_chunks = 0, commits = 0, checkpoints = 0, parked = 0;
  uint64_t staged = 0, applied = 0;  // writes; chunks
  uint64_t staged_bytes = 0;         // now, in RAM
  uint64_t checksum_errors = 0, chunks_freed = 0;
};

struct CheckReport {
  bool clean = true;
  std::vector<std::string> problems;  // bounded; the first 100
  uint64_t problem_count = 0;
  uint64_t index_nodes = 0, entries = 0, chunks_verified = 0, lost_entries = 0, snapshots = 0;
  uint64_t blocks_used = 0;
};

struct VolumeEvent {
  enum class Kind : uint8_t {
    SNAPSHOT_CREATED,
    SNAPSHOT_DELETED,
    SNAPSHOT_DROPPED,
    SNAPSHOT_RECLAIMED,
    LOW_WATER,    // free space fell below the low-water mark; decide_drop() may be answered
    HIGH_WATER,   // and rose again
    STORE_FULL,   // a write was refused
    COPY_FAILED,  // acknowledged writes wait in the store, as a device fails; tried again
    ORIGIN_FULL,  // acknowledged writes wait in the store for room in the origin's file system
    CHECKSUM_ERROR,
    FAILED,
  };
  Kind kind;
  Uuid snapshot;
  std::string name;      // of the snapshot, or empty
  std::string message;   // one line for a person
  Code code = Code::OK;  // of FAILED: FENCED where the grant has ended (F2), else FAILED
};

// ---- Opening ---------------------------------------------------------------------------------

// The origin as found on this host; compared with what the superblock remembers. Filled in by
// io/identity.h, by hand in tests.
struct OriginIdentity {
  format::OriginKind kind = format::OriginKind::FILE;
  std::string text;       // what makes it this origin and no other, at most 511 bytes
  std::string path;       // a hint for import
  uint64_t mtime_ns = 0;  // files only
  uint64_t ctime_ns = 0;
};

struct CreateOptions {
  std::string volume_name;
  OriginIdentity origin;
  uint64_t origin_bytes = 0;
  uint64_t store_bytes = 0;  // of the store device, already that long
  uint64_t chunk_bytes = 16384;
  uint64_t journal_bytes = 0;  // 0: chosen by the store's size
  format::OnFull on_full = format::OnFull::DROP_SNAPSHOTS;
  uint64_t created_ns = 0;
};

// Writes an empty store: superblocks last, so that a half-made store is none. The device is not
// checked for an older store (read_superblock() tells).
Status create_store(Device& store, const CreateOptions& options);

// The newer valid superblock, without opening. NOT_A_STORE, NEWER_FORMAT, TRUNCATED, CORRUPT.
Result<std::unique_ptr<format::Superblock>> read_superblock(Device& store);

struct VolumeOptions {
  Device* origin = nullptr;  // both outlive the volume
  Device* store = nullptr;
  OriginIdentity identity;
  format::DurabilityMode durability = format::DurabilityMode::FLUSH;
  bool look_only = false;      // replay in RAM, write nothing, start no threads
  bool accept_origin = false;  // WRONG_ORIGIN and ORIGIN_CHANGED: go on; new durability id
  bool accept_loss = false;    // NEEDS_ACCEPT_LOSS: go on; new durability id
  Epoch epoch = 0;             // granted for this term, above the store's; 0: the store's + 1
  Uuid boot_id;                // of this boot of this host
  // F2: what the volume writes and what its connections answer needs an open gate; outlives the
  // volume. Null: nothing bounds the term. A closed one ends the volume as a failure does (W9),
  // with FENCED: nothing is written any more, by close() neither.
  Gate* gate = nullptr;
  uint32_t io_threads = 4;
  uint32_t group_chunks_max = 128;  // of one commit
  IndexOptions index;
  std::function<void(const VolumeEvent&)> on_event;  // from volume threads; must not block
  // How long the core waits for decide_drop() after LOW_WATER before it follows the policy itself.
  uint32_t drop_decision_ms = 0;
  std::function<uint64_t()> clock_ns;               // Unix time in ns
  std::function<Uuid()> make_uuid;                  // tests pass seeded ones
  std::function<OriginIdentity()> reread_identity;  // at a clean stop: the file's times; optional
};

class Volume {
 public:
  // Errors: those of read_superblock(), NEEDS_ACCEPT_LOSS, WRONG_ORIGIN, ORIGIN_CHANGED, CORRUPT,
  // IO_ERROR, FENCED (options.epoch is not above the store's, and nothing was written; or the gate
  // has closed). Stamps that epoch, or the store's next one (F3), unless look_only.
  static Result<std::unique_ptr<Volume>> open(VolumeOptions options);
  virtual ~Volume() = default;  // without close(): as a crash would leave it, threads ended

  // Finishes what is under way, checkpoints, marks the store clean. No request may be under way.
  // FAILED, or FENCED: the volume had stopped, or stops here; the store is not marked clean.
  virtual Status close() = 0;

  // -- data path
  virtual std::shared_ptr<View> open_origin() = 0;
  // NOT_FOUND; SNAPSHOT_DELETED.
  virtual Result<std::shared_ptr<View>> open_snapshot(const Uuid& uuid) = 0;
  // True: finished, request.status is set and done is not called. False: done will be called.
  // `may_block`: the caller has nothing else to do and lets the request run on its own thread where
  // that spares a hand-over.
  virtual bool submit(IoRequest& request, bool may_block) = 0;
  // Small writes to the origin that came together: those that are staged whole, within a chunk,
  // are so in one append; the others take their turns. Bit i is set: requests[i] is finished, as
  // submit() says by true. At most kWritesTogetherMax.
  virtual uint64_t submit_writes(std::span<IoRequest* const> requests) = 0;
  static constexpr size_t kWritesTogetherMax = 64;
  // Submits and waits.
  virtual Status run(IoRequest& request) = 0;
  // Extents from `offset`, contiguous, until `length` is covered or `max_extents` are there.
  virtual Status block_status(View& view, uint64_t offset, uint64_t length, size_t max_extents,
                              std::vector<BlockStatusExtent>& out) = 0;
  // Who answers a request asks it before it submits and before it tells (F2). May be null.
  virtual Gate* gate() = 0;
  // Runs `task` on an I/O thread (what a connection must not wait for itself).
  virtual void run_on_pool(std::function<void()> task) = 0;

  // -- snapshots
  // W6, W7. ALREADY_EXISTS, LIMIT, NO_SPACE.
  virtual Result<SnapshotInfo> create_snapshot(
      const std::string& name, bool pinned, uint8_t priority,
      const std::vector<std::pair<std::string, std::string>>& labels) = 0;
  virtual Status delete_snapshot(const Uuid& uuid, bool dropped = false) = 0;
  struct SnapshotChanges {
    int pinned = -1;  // -1: as it is
    int priority = -1;
    std::vector<std::pair<std::string, std::string>> set_labels;  // empty value: removes the label
  };
  virtual Result<SnapshotInfo> update_snapshot(const Uuid& uuid,
                                               const SnapshotChanges& changes) = 0;
  // Live ones and those waiting for reclaim, oldest first.
  virtual Result<std::vector<SnapshotInfo>> list_snapshots() = 0;
  struct Settings {
    int on_full = -1;  // format::OnFull
    int64_t staged_limit_bytes = -1, cache_limit_bytes = -1, reclaim_rate_bytes = -1;
  };
  virtual Status update_settings(const Settings& settings) = 0;
  // -- the read-write hold
  // Durable when it returns; the hold as it then is. A hold that the attachment has already stays
  // as it is. BUSY while another attachment has it; INVALID_ARGUMENT: no attachment, or a host that
  // has not 1 to 63 bytes.
  virtual Result<HoldInfo> set_hold(const Uuid& attachment, const std::string& host) = 0;
  // Ends the attachment's hold, or with `force` whosever it is; the one that was ended, durably.
  // Held by nobody, or by another attachment: nothing happens, and the answer is not held().
  virtual Result<HoldInfo> clear_hold(const Uuid& attachment, bool force) = 0;
  virtual HoldInfo hold() = 0;

  // Answers LOW_WATER: drop this snapshot now, or (nil) follow the policy now.
  virtual void decide_drop(const Uuid& uuid) = 0;

  // Bytes that come free if exactly these snapshots go (shared chunks counted once).
  virtual Result<uint64_t> freed_if_deleted(const std::vector<Uuid>& uuids) = 0;
  // Changed extents of snapshot a (inclusive) to b, or to the live volume (b nil): chunk ranges.
  virtual Status diff(const Uuid& a, const Uuid& b,
                      const std::function<bool(ChunkIndex first, uint64_t count)>& out) = 0;

  // -- looks and care
  virtual VolumeInfo info() = 0;
  // The same for a thread that must not wait for a disk: while a transaction holds its lock over a
  // sync, the figures are those of the last look.
  virtual VolumeInfo recent_info() = 0;
  virtual Status checkpoint() = 0;
  // Verifies metadata; with `data` every checksum too. On a served volume it looks at the state of
  // a checkpoint of its own and holds the blocks that state needs meanwhile.
  virtual Result<CheckReport> check(bool data,
                                    const std::function<void(uint64_t, uint64_t)>& progress) = 0;
  // Metadata as JSON lines, each without newline; stops early when `line` returns false.
  virtual Status dump(const std::function<bool(const std::string&)>& line) = 0;
  // Waits until no deleted snapshot waits for reclaim.
  virtual Status wait_reclaimed() = 0;
};

}  // namespace csnap
