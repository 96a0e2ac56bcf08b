// Every byte of a snapshot store. The prose twin is FORMAT.md, and a test compares its tables with
// these structs. All integers little endian, reserved bytes zero (and refused when they are not).
//
// Layout of a store, in blocks of 4 KiB:
//   superblock slot 0 at byte 0, slot 1 at byte 32768; journal from byte 65536; then the data area
//   (index nodes, pages of space map and snapshot table, chunks) up to store_bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/endian.h"
#include "base/units.h"

namespace csnap::format {

constexpr char kSuperblockMagic[8] = {'c', 's', 'n', 'a', 'p', 'S', 'B', '1'};
constexpr uint32_t kFormatVersion = 1;
constexpr uint64_t kSuperblockOffset[2] = {0, 32768};
constexpr uint64_t kJournalOffset = 65536;
constexpr uint64_t kJournalBytesMin = 65536;
constexpr uint64_t kChunkBytesMin = 4096;
constexpr uint64_t kChunkBytesMax = 1048576;
constexpr uint64_t kNameBytesMax = 128;
constexpr uint32_t kEpochChainMax = 16;

using Uuid = uint8_t[16];

// ---- Superblock ------------------------------------------------------------------------------

// Feature bits. An unknown compat bit is ignored, an unknown ro_compat bit allows looks only, an
// unknown incompat bit refuses the store.
constexpr uint64_t kIncompatStaging = 1 << 0;  // journal may hold DATA and APPLIED records
constexpr uint64_t kIncompatClones = 1 << 1;   // CLONE_PAIR records, INHERIT entries
constexpr uint64_t kIncompatSupported = kIncompatStaging;

constexpr uint32_t kStateClean = 1 << 0;       // closed in order: origin current, nothing to replay
constexpr uint32_t kStateSyncFailed = 1 << 1;  // W9: only --accept-loss opens it

constexpr uint32_t kStateCountersEstimated = 1 << 2;  // more kinds of sharing than counters

enum class DurabilityMode : uint8_t { FLUSH = 0, SYNC = 1 };
enum class OnFull : uint8_t { DROP_SNAPSHOTS = 0, REFUSE_WRITES = 1 };

// One server term: records with sequence >= first_sequence (and below the next term's) count only
// with this epoch and salt (W5).
struct EpochTerm {
  le64 epoch;
  le64 salt;
  le64 first_sequence;
};
static_assert(sizeof(EpochTerm) == 24);

// A copy-on-write tree's root. block 0: empty.
struct TreeRoot {
  le64 block;
  le32 crc;       // of the root block
  uint8_t level;  // 0: the root is a leaf
  uint8_t reserved[3];
};
static_assert(sizeof(TreeRoot) == 16);

struct IndexKey {
  le32 volume;
  le64 chunk;
  le64 generation;
};
static_assert(sizeof(IndexKey) == 20);

struct Hold {
  Uuid attachment;  // all zero: none
  le64 since_ns;
  char host[64];
};
static_assert(sizeof(Hold) == 88);

struct Superblock {
  char magic[8];
  le32 version;
  le32 crc;  // CRC32C of the 4096 bytes with this field zero
  le64 compat;
  le64 ro_compat;
  le64 incompat;
  Uuid store_uuid;
  Uuid volume_uuid;
  Uuid durability_id;
  Uuid boot_id;  // of the host of the running term, from /proc/sys/kernel/random/boot_id
  le64 sequence;
  le64 store_bytes;
  le64 origin_bytes;
  le64 journal_bytes;
  le32 chunk_bytes;
  le32 state;  // kState*
  uint8_t durability_mode;
  uint8_t on_full;
  uint8_t origin_kind;  // OriginKind
  uint8_t reserved0[5];
  le64 created_ns;       // Unix time
  le64 generation;       // the origin volume's current generation; the next snapshot gets it
  le64 snapshot_serial;  // grows with each snapshot and clone ever made
  le32 next_volume_id;
  le32 reserved1;
  TreeRoot index;
  TreeRoot space_map;
  TreeRoot snapshot_table;
  TreeRoot space_counters;
  le64 snapshot_slots;   // slots of the table that may be in use
  le64 counter_slots;    // the same of the space counters
  le64 exception_count;  // entries of the index without counters
  le64 journal_tail;     // byte position (counted from init, not wrapped) of the first record kept
  le64 tail_sequence;    // sequence of that record
  le64 confirmed_sequence;
  IndexKey reclaim_cursor;
  le32 reclaim_active;  // 1: a pass stands at reclaim_cursor
  le64 reclaim_pass;    // serial: snapshots deleted at or before this serial are served by the pass
  le64 delete_serial;   // serial of the latest deletion
  le64 staged_limit_bytes;
  le64 cache_limit_bytes;
  le64 reclaim_rate_bytes;  // per second; 0: default
  le64 window_start_block;  // F8: where the running term may write; 0 and 0: anywhere
  le64 window_block_count;
  // Snapshots up to this serial are suspect: the origin had changed unseen (--accept-origin).
  le64 suspect_serial;
  le64 origin_mtime_ns;  // of a file, at a clean stop
  le64 origin_ctime_ns;
  Hold hold;
  uint8_t reserved2[4];
  le32 epoch_count;
  EpochTerm epochs[kEpochChainMax];
  char volume_name[kNameBytesMax];  // NUL padded
  char origin_identity[512];        // text, NUL padded; see io/identity.h
  char origin_path[1024];           // a hint for import, NUL padded; empty where longer
  // Under kIncompatStaging: records of transactions up to this one are in this superblock's state,
  // though replay starts before it.
  le64 state_sequence;
  uint8_t reserved3[1544];
};
static_assert(sizeof(Superblock) == 4096);

enum class OriginKind : uint8_t { FILE = 1, BLOCK = 2, LOOP = 3 };

// ---- Metadata blocks ---------------------------------------------------------------------------

enum class BlockKind : uint8_t {
  INDEX_LEAF = 1,
  INDEX_INNER = 2,
  SPACE_PAGE = 3,
  SNAPSHOT_PAGE = 4,
  DIRECTORY = 5,  // inner block of a page array
  COUNTER_PAGE = 6,
};
constexpr uint32_t kBlockMagic = 0x6b627363;  // "csbk"

// Every metadata block proves itself: what it is, where it belongs, when it was written.
struct BlockHeader {
  le32 magic;
  le32 crc;  // CRC32C of the 4096 bytes with this field zero; the parent stores the same
  uint8_t kind;
  uint8_t level;
  le16 count;  // entries in use
  le32 reserved0;
  le64 block;                // its own number
  le64 superblock_sequence;  // of the first superblock that can refer to it
  le64 store_tag;            // first 8 bytes of store_uuid
  uint8_t reserved1[24];
};
static_assert(sizeof(BlockHeader) == 64);
constexpr size_t kBlockPayloadBytes = kBlockBytes - sizeof(BlockHeader);  // 4032

// Where an exception's content is: two bits of kind above the first block's number.
enum class LocationKind : uint8_t {
  DATA = 0,     // a store chunk
  ZERO = 1,     // all zero, no space
  INHERIT = 2,  // of a clone: the base snapshot's content
  LOST = 3,     // W1: the content is gone; reads answer EIO
  ERASED = 15,  // only in RECOVERED records: the entry was dropped
};
constexpr int kLocationKindShift = 60;

// An entry of an index leaf, and of EXCEPTION, FREE and RECOVERED records. Keys are ordered by
// (volume, chunk, generation).
struct IndexEntry {
  le32 volume;
  le32 crc;  // CRC32C of the whole store chunk; 0 where location is not DATA
  le64 chunk;
  le64 generation;
  le64 location;
};
static_assert(sizeof(IndexEntry) == 32);
constexpr size_t kLeafEntriesMax = kBlockPayloadBytes / sizeof(IndexEntry);  // 126

// An entry of an inner node. Its key is a lower bound of the child's keys and an upper bound of all
// before it; the first entry's key is ignored (minus infinity).
struct IndexChild {
  le32 volume;
  le32 crc;  // of the child block
  le64 chunk;
  le64 generation;
  le64 block;
  le64 generation_min;  // smallest and largest generation below
  le64 generation_max;
};
static_assert(sizeof(IndexChild) == 48);
constexpr size_t kInnerEntriesMax = kBlockPayloadBytes / sizeof(IndexChild);  // 84

// A page array: pages of kBlockPayloadBytes under directories. Block 0: the page is all zero.
struct DirectoryEntry {
  le64 block;
  le32 crc;
  le32 reserved;
};
static_assert(sizeof(DirectoryEntry) == 16);
constexpr size_t kDirectoryEntriesMax = kBlockPayloadBytes / sizeof(DirectoryEntry);  // 252

// Space map page i: bit b (byte b/8, bit b%8) set: block i * kSpacePageBits + b is in use.
constexpr uint64_t kSpacePageBits = kBlockPayloadBytes * 8;  // 32256

enum class SnapshotState : uint8_t {
  FREE = 0,      // slot unused
  CREATING = 1,  // no completion record yet: deleted at open (W6)
  LIVE = 2,
  DELETED = 3,  // waits for reclaim
  DROPPED = 4,  // deleted by the store-full policy; waits for reclaim
};
constexpr uint8_t kSnapshotPinned = 1 << 0;
constexpr uint8_t kSnapshotIsClone = 1 << 1;
constexpr size_t kLabelBytesMax = 1024;

struct SnapshotSlot {
  uint8_t state;
  uint8_t flags;
  uint8_t priority;  // 0..100
  uint8_t name_bytes;
  le32 volume;  // whose snapshot; of a clone: its own volume id
  le64 generation;
  le64 serial;
  le64 delete_serial;  // 0 while live
  le64 created_ns;
  le64 size_bytes;  // of the volume at creation
  Uuid uuid;
  Uuid base_uuid;  // of a clone: the snapshot it was born from
  char name[kNameBytesMax];
  le16 label_bytes;
  uint8_t labels[kLabelBytesMax];  // "key\0value\0" repeated, label_bytes of it
  uint8_t reserved[110];
};
static_assert(sizeof(SnapshotSlot) == 1344);
// Live ones and those that wait for reclaim.
constexpr uint64_t kSnapshotsMax = 262144;
constexpr size_t kSnapshotsPerPage = kBlockPayloadBytes / sizeof(SnapshotSlot);  // 3

// How many store chunks are held by exactly the live snapshots from `first` to `last` of a volume
// (both generations); first and last 0: by none, waiting for reclaim. count 0: slot unused.
struct CounterSlot {
  le32 volume;
  le32 reserved;
  le64 first;
  le64 last;
  le64 count;
};
static_assert(sizeof(CounterSlot) == 32);
constexpr size_t kCountersPerPage = kBlockPayloadBytes / sizeof(CounterSlot);  // 126

// ---- Journal -----------------------------------------------------------------------------------

enum class RecordKind : uint16_t {
  EXCEPTION = 1,          // EntryList
  DATA = 2,               // DataRecord + bytes
  ZERO_RANGE = 3,         // ZeroRangeRecord
  SNAPSHOT = 4,           // SnapshotSlot in state CREATING
  SNAPSHOT_COMPLETE = 5,  // SnapshotCompleteRecord
  SNAPSHOT_UPDATE = 6,    // SnapshotSlot: new properties
  DELETE = 7,             // DeleteRecord
  CLONE_PAIR = 8,         // ClonePairRecord
  HOLD = 9,               // Hold
  APPLIED = 10,           // AppliedRecord
  RECOVERED = 11,         // EntryList: entries turned to LOST or ERASED
  CHECKPOINT = 12,        // CheckpointRecord
  FREE = 13,              // EntryList: entries removed, their chunks free
  RECLAIM = 14,           // ReclaimRecord
  SETTINGS = 15,          // SettingsRecord
};
constexpr uint32_t kRecordMagic = 0x6e6a7363;  // "csjn"
constexpr uint64_t kRecordAlignBytes = 8;
constexpr uint64_t kAppendAlignBytes = 512;
constexpr uint64_t kAppendUnitBytesMax = 4096;

struct RecordHeader {
  le32 magic;
  le32 crc;  // CRC32C of length_bytes with this field zero
  le16 kind;
  le16 reserved0;
  le32 length_bytes;  // header and payload
  le64 salt;
  le64 epoch;
  le64 sequence;
  le64 superblock_sequence;
  le64 confirmed_sequence;  // every record up to this one had its sync when this one was written
  le64 reserved1;
};
static_assert(sizeof(RecordHeader) == 64);

struct EntryList {
  le32 count;
  le32 more;  // of RECOVERED: 1: the verdict goes on in the next record
  // IndexEntry entries[count]
};
static_assert(sizeof(EntryList) == 8);

struct DataRecord {
  le32 volume;
  le32 length_bytes;
  le64 generation;
  le64 offset;  // bytes, within the volume; the range lies in one chunk
  le64 reserved;
};
static_assert(sizeof(DataRecord) == 32);

struct ZeroRangeRecord {
  le32 volume;
  le32 flags;  // bit 0: trim
  le64 generation;
  le64 offset;
  le64 length_bytes;
};
static_assert(sizeof(ZeroRangeRecord) == 32);

struct SnapshotCompleteRecord {
  Uuid uuid;
  le64 generation;
};
static_assert(sizeof(SnapshotCompleteRecord) == 24);

struct DeleteRecord {
  Uuid uuid;
  le64 delete_serial;
  uint8_t dropped;  // 1: by the store-full policy
  uint8_t reserved[7];
};
static_assert(sizeof(DeleteRecord) == 32);

// First write to a clone's chunk after a snapshot of it: (head -> X) becomes (generation -> X, or
// INHERIT) and (head -> Y), both or neither.
struct ClonePairRecord {
  IndexEntry frozen;
  IndexEntry head;
};
static_assert(sizeof(ClonePairRecord) == 64);

struct AppliedRecord {
  le64 sequence;  // staged records of the chunks up to this one are in place and synced
  le32 volume;
  le32 count;
  // le64 chunks[count]
};
static_assert(sizeof(AppliedRecord) == 16);

struct CheckpointRecord {
  le64 superblock_sequence;
  le64 tail_sequence;
};
static_assert(sizeof(CheckpointRecord) == 16);

// A reclaim pass ended: slots deleted at or before `pass` are free.
struct ReclaimRecord {
  le64 pass;
  le64 reserved;
};
static_assert(sizeof(ReclaimRecord) == 16);

struct SettingsRecord {
  uint8_t on_full;
  uint8_t reserved[7];
  le64 staged_limit_bytes;
  le64 cache_limit_bytes;
  le64 reclaim_rate_bytes;
};
static_assert(sizeof(SettingsRecord) == 32);

}  // namespace csnap::format
