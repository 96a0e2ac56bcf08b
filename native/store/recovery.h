// Opening a store: replay (replay.cc), verification, the new epoch (recovery.cc). Caller:
// Store::open.
//
// Order: judge the superblock; load tables; read the journal; (unless only looking) make sure that
// all of this is on the medium; stamp the new epoch in both slots, which closes the former term at
// its last valid record (F3, W5); work out the net effect of the records and put it into RAM;
// verify what was never confirmed (W1); delete snapshots without completion (W6); say all that in
// the new term's first records.
//
// Invariants
//  V1  Nothing is written before the stamp, and the stamp changes no state but the term. It goes
//      over the older slot only when the newer one is durable: a kill may have come before its
//      sync.
//  V2  Opening again after a crash at any point of this gives the same result.
//  V3  Damaged input is an error, never an abort: everything read from the device is checked.
#pragma once

#include <map>
#include <optional>

#include "store/store.h"

namespace csnap {

class Recovery {
 public:
  Recovery(Store& store, const SuperblockFound& found) : store_(store), found_(found) {}
  Status run();
  // Whether run() failed because a sync did (W9): what a killed server had acknowledged may be lost
  // with it.
  bool sync_failed() const { return sync_failed_; }

 private:
  // The last word of the journal on one key.
  struct Change {
    std::optional<Entry> entry;  // nullopt: erased
    Sequence sequence = 0;
  };

  Status load_state();
  Status read_journal();
  Status take_record(const RecordView& record);
  Status take_entries(const RecordView& record, std::vector<Entry>& out);
  Status take_staged(const RecordView& record);
  Status take_applied(const RecordView& record);
  Status take_snapshot(const RecordView& record);
  Status check_granted_epoch();
  Status secure_former_term();
  Status sync(Device& device);
  Status stamp();
  Status apply_net_changes();
  Status delete_incomplete();
  // After it: what no snapshot holds any more may be lost.
  Status verify_unconfirmed();
  Status write_findings();
  Result<uint32_t> crc_of(Device& device, uint64_t offset, uint64_t available);

  Store& store_;
  const SuperblockFound& found_;
  JournalEnd end_{};
  std::map<Key, Change> changes_;
  Sequence state_sequence_ = 0;          // transactions up to here are in the superblock's state
  Sequence verified_upto_ = 0;           // every group up to here was confirmed or verified
  std::vector<Entry> findings_;          // for the RECOVERED record
  std::vector<BlockNumber> quarantine_;  // chunks of findings_: held until the verdict is durable
  std::vector<format::DeleteRecord> deletes_;
  bool sync_failed_ = false;
  bool checkpoint_due_ = false;  // the epoch chain is nearly full
};

}  // namespace csnap
