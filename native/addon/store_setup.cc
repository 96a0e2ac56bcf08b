#include "addon/store_setup.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <vector>

#include "io/identity.h"

namespace csnap::addon {
namespace {

// Both superblock slots; the journal begins behind.
constexpr uint64_t kHeadBytes = format::kJournalOffset;

std::string absolute(const std::string& path) {
  const std::unique_ptr<char, void (*)(void*)> real(realpath(path.c_str(), nullptr), free);
  return real ? std::string(real.get()) : path;
}

// From the medium: this host's page cache may show what another host has overwritten since (F8).
// Only the head is dropped, a server that is at work here keeps the rest.
Result<SuperblockPtr> read_superblock_anew(FileDevice& store) {
  (void)posix_fadvise(store.fd(), 0, kHeadBytes, POSIX_FADV_DONTNEED);
  return read_superblock(store);
}

Status erase_head(FileDevice& store) {
  const std::vector<char> zeros(std::min(kHeadBytes, store.size_bytes()));
  CSNAP_TRY(store.write(0, zeros.data(), zeros.size()));
  return store.sync();
}

// STORE_IN_USE where the device holds a store, a damaged or newer one included.
Status refuse_store(FileDevice& store) {
  if (store.size_bytes() < kBlockBytes) return Status();
  const Result<SuperblockPtr> found = read_superblock_anew(store);
  if (!found.ok() && found.status().code() == Code::NOT_A_STORE) return Status();
  if (!found.ok() && found.status().code() == Code::IO_ERROR) return found.status();
  std::string what = found.ok() ? "a csnap store" : "a csnap store that can't be used as it is";
  if (found.ok()) what += " of volume " + std::string(found.value()->volume_name);
  return Status(Code::STORE_IN_USE, store.name() + " already holds " + what +
                                        ": use it with csnap import, or overwrite it with --force");
}

Result<std::unique_ptr<FileDevice>> open_origin(const std::string& path) {
  FileDeviceOptions options;
  options.read_only = true;
  CSNAP_TRY_ASSIGN(auto origin, FileDevice::open(path, options));
  if (origin->size_bytes() < kSectorBytes)
    return Status(Code::INVALID_ARGUMENT, path + " is smaller than a sector (512 bytes): nothing " +
                                              "to keep snapshots of");
  return origin;
}

// Checks an existing target and makes it as long as wanted.
Status prepare_existing(const MakeStoreOptions& options) {
  if (same_object(options.store_path, options.origin_path))
    return Status(Code::INVALID_ARGUMENT, options.store_path +
                                              " is the origin itself: the store needs a file or "
                                              "device of its own");
  CSNAP_TRY_ASSIGN(const auto store, FileDevice::open(options.store_path, {}));
  if (!options.force) CSNAP_TRY(refuse_store(*store));
  if (store->size_bytes() > 0) CSNAP_TRY(erase_head(*store));
  if (!store->is_block()) {
    bool created = false;
    return allocate_in_full(options.store_path, options.store_bytes, options.progress, created);
  }
  if (options.store_bytes <= store->size_bytes()) return Status();
  return Status(Code::NO_SPACE, options.store_path + " is only " +
                                    std::to_string(store->size_bytes()) + " bytes long");
}

Result<SuperblockPtr> write_store(const MakeStoreOptions& options, const FileDevice& origin) {
  CSNAP_TRY_ASSIGN(const auto store, FileDevice::open(options.store_path, {}));
  CreateOptions create;
  create.volume_name = options.volume_name;
  CSNAP_TRY_ASSIGN(create.origin, identity_of(origin));
  create.origin_bytes = origin.size_bytes();
  create.store_bytes = options.store_bytes > 0 ? options.store_bytes : store->size_bytes();
  create.store_bytes = round_down(create.store_bytes, kBlockBytes);
  create.chunk_bytes = options.chunk_bytes;
  create.on_full = options.on_full;
  create.created_ns = now_ns();
  CSNAP_TRY(create_store(*store, create));
  CSNAP_TRY(store->sync());
  if (!store->is_block()) CSNAP_TRY(sync_directory_of(options.store_path));
  return read_superblock(*store);
}

}  // namespace

uint64_t now_ns() {
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000 + static_cast<uint64_t>(now.tv_nsec);
}

Result<OriginIdentity> identity_of(const FileDevice& origin) {
  CSNAP_TRY_ASSIGN(DeviceIdentity found, read_identity(origin.fd(), origin.name()));
  OriginIdentity identity;
  switch (found.kind) {
    case DeviceIdentity::Kind::FILE:
      identity.kind = format::OriginKind::FILE;
      break;
    case DeviceIdentity::Kind::BLOCK:
      identity.kind = format::OriginKind::BLOCK;
      break;
    case DeviceIdentity::Kind::LOOP:
      identity.kind = format::OriginKind::LOOP;
      break;
  }
  identity.text = std::move(found.text);
  identity.path = absolute(origin.name());
  identity.mtime_ns = found.mtime_ns;
  identity.ctime_ns = found.ctime_ns;
  return identity;
}

Result<SuperblockPtr> make_store(const MakeStoreOptions& options) {
  CSNAP_TRY_ASSIGN(const auto origin, open_origin(options.origin_path));
  bool created = false;
  struct stat info;
  if (stat(options.store_path.c_str(), &info) == 0)
    CSNAP_TRY(prepare_existing(options));
  else
    CSNAP_TRY(allocate_in_full(options.store_path, options.store_bytes, options.progress, created));
  Result<SuperblockPtr> made = write_store(options, *origin);
  if (!made.ok() && created) unlink(options.store_path.c_str());
  return made;
}

Result<SuperblockPtr> look_at_store(const std::string& path) {
  FileDeviceOptions options;
  options.read_only = true;
  options.lock = false;
  CSNAP_TRY_ASSIGN(const auto store, FileDevice::open(path, options));
  return read_superblock_anew(*store);
}

Status wipe_store(const std::string& path) {
  CSNAP_TRY_ASSIGN(const auto store, FileDevice::open(path, {}));
  const Result<SuperblockPtr> found = read_superblock_anew(*store);
  if (!found.ok() &&
      (found.status().code() == Code::NOT_A_STORE || found.status().code() == Code::IO_ERROR))
    return found.status();
  return erase_head(*store);
}

}  // namespace csnap::addon
