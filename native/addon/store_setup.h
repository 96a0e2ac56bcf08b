// Making and wiping snapshot stores on real files and devices: which checks come first, what is
// removed again on failure. Knows nothing of Node. Caller: store_calls.cc.
//
// Invariants
//  U1  Nothing is written before origin and store are locked and every refusal has been considered.
//  U2  A store file made here and not finished is removed again; an older file never is.
//  U3  Old superblocks are gone durably before anything behind them is overwritten.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/status.h"
#include "io/file_device.h"
#include "volume/volume.h"

namespace csnap::addon {

struct MakeStoreOptions {
  std::string volume_name;
  std::string origin_path;
  std::string store_path;
  uint64_t store_bytes = 0;  // of a file; 0: a block device, used whole
  uint64_t chunk_bytes = 0;
  format::OnFull on_full = format::OnFull::DROP_SNAPSHOTS;
  bool force = false;
  std::function<void(uint64_t, uint64_t)> progress;
};

using SuperblockPtr = std::unique_ptr<format::Superblock>;

// Errors: those of FileDevice::open(), allocate_in_full() and create_store(); STORE_IN_USE,
// INVALID_ARGUMENT.
Result<SuperblockPtr> make_store(const MakeStoreOptions& options);
// Without a lock. Errors: those of FileDevice::open() and read_superblock().
Result<SuperblockPtr> look_at_store(const std::string& path);
// Refuses what is no store. Errors: BUSY, NOT_A_STORE, IO_ERROR.
Status wipe_store(const std::string& path);

// The identity of an open origin as the volume wants it.
Result<OriginIdentity> identity_of(const FileDevice& origin);
// Unix time.
uint64_t now_ns();

}  // namespace csnap::addon
