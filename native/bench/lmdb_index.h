// The same entries in LMDB: a key of 16 bytes (chunk and generation, big endian, so that bytes sort
// as numbers do), a value of 12 (location and checksum). Caller: index_bench only; nothing that is
// installed links LMDB.
#pragma once

#include <lmdb.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/units.h"

namespace csnap::bench {

class LmdbIndex {
 public:
  using Key = std::pair<ChunkIndex, Generation>;

  // A file of its own in `directory`, `map_bytes` long at most. LMDB's defaults: synced commits,
  // the kernel's readahead.
  LmdbIndex(const std::string& directory, uint64_t map_bytes);
  ~LmdbIndex();

  // In ascending order, one transaction.
  class Loader {
   public:
    explicit Loader(LmdbIndex& index);
    ~Loader();  // commits
    void add(const Key& key);

   private:
    MDB_dbi dbi_;
    MDB_txn* transaction_ = nullptr;
    MDB_cursor* cursor_ = nullptr;
  };

  // The generation of the chunk's entry at or after `key`. All in one read transaction.
  std::optional<Generation> at_or_after(const Key& key);
  // The same, seeing what was committed before the call, as a reader beside writers has to.
  std::optional<Generation> at_or_after_now(const Key& key);
  // One transaction, durable at the return.
  void commit(const std::vector<Key>& keys);
  // Closes it, lets the page cache go, opens it again, with the kernel's readahead or without.
  void cool(bool readahead = true);

 private:
  void open(bool readahead);
  void close();

  const std::string path_;
  const uint64_t map_bytes_;
  MDB_env* environment_ = nullptr;
  MDB_dbi dbi_ = 0;
  MDB_txn* reader_ = nullptr;
  MDB_cursor* cursor_ = nullptr;
};

}  // namespace csnap::bench
