#include "bench/lmdb_index.h"

#include <endian.h>
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace csnap::bench {
namespace {

constexpr size_t kKeyBytes = 16;
constexpr size_t kValueBytes = 12;

void must(int status, const char* what) {
  if (status == MDB_SUCCESS) return;
  std::fprintf(stderr, "bench: LMDB: %s: %s\n", what, mdb_strerror(status));
  std::exit(1);
}

struct Bytes {
  explicit Bytes(const LmdbIndex::Key& key) {
    const uint64_t words[] = {htobe64(key.first), htobe64(key.second)};
    static_assert(sizeof words == kKeyBytes);
    std::memcpy(bytes, words, sizeof words);
  }
  MDB_val val() { return {kKeyBytes, bytes}; }
  unsigned char bytes[kKeyBytes];
};

MDB_val value() {
  static unsigned char bytes[kValueBytes] = {1};
  return {kValueBytes, bytes};
}

std::optional<Generation> successor(MDB_cursor* cursor, const LmdbIndex::Key& key) {
  Bytes wanted(key);
  MDB_val found = wanted.val();
  MDB_val data;
  const int status = mdb_cursor_get(cursor, &found, &data, MDB_SET_RANGE);
  if (status == MDB_NOTFOUND) return std::nullopt;
  must(status, "lookup");
  uint64_t words[2];
  std::memcpy(words, found.mv_data, sizeof words);
  if (be64toh(words[0]) != key.first) return std::nullopt;
  return be64toh(words[1]);
}

}  // namespace

LmdbIndex::LmdbIndex(const std::string& directory, uint64_t map_bytes)
    : path_(directory + "/lmdb"), map_bytes_(map_bytes) {
  open(true);
}

LmdbIndex::~LmdbIndex() {
  close();
  ::unlink(path_.c_str());
  ::unlink((path_ + "-lock").c_str());
}

void LmdbIndex::open(bool readahead) {
  // The reader is renewed and writers run in the same thread.
  const unsigned flags = MDB_NOSUBDIR | MDB_NOTLS | (readahead ? 0 : MDB_NORDAHEAD);
  must(mdb_env_create(&environment_), "create");
  must(mdb_env_set_mapsize(environment_, map_bytes_), "map size");
  must(mdb_env_open(environment_, path_.c_str(), flags, 0600), "open");
  MDB_txn* transaction = nullptr;
  must(mdb_txn_begin(environment_, nullptr, 0, &transaction), "begin");
  must(mdb_dbi_open(transaction, nullptr, 0, &dbi_), "database");
  must(mdb_txn_commit(transaction), "commit");
  must(mdb_txn_begin(environment_, nullptr, MDB_RDONLY, &reader_), "read");
  must(mdb_cursor_open(reader_, dbi_, &cursor_), "cursor");
}

void LmdbIndex::close() {
  mdb_cursor_close(cursor_);
  mdb_txn_abort(reader_);
  mdb_env_close(environment_);
}

void LmdbIndex::cool(bool readahead) {
  close();
  const int fd = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0 || ::fdatasync(fd) != 0 || ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0) {
    std::fprintf(stderr, "bench: %s: can't be dropped from the page cache\n", path_.c_str());
    std::exit(1);
  }
  ::close(fd);
  open(readahead);
}

LmdbIndex::Loader::Loader(LmdbIndex& index) : dbi_(index.dbi_) {
  must(mdb_txn_begin(index.environment_, nullptr, 0, &transaction_), "begin");
  must(mdb_cursor_open(transaction_, dbi_, &cursor_), "cursor");
}

LmdbIndex::Loader::~Loader() {
  mdb_cursor_close(cursor_);
  must(mdb_txn_commit(transaction_), "commit");
}

void LmdbIndex::Loader::add(const Key& key) {
  Bytes bytes(key);
  MDB_val name = bytes.val();
  MDB_val data = value();
  must(mdb_cursor_put(cursor_, &name, &data, MDB_APPEND), "append");
}

std::optional<Generation> LmdbIndex::at_or_after(const Key& key) { return successor(cursor_, key); }

std::optional<Generation> LmdbIndex::at_or_after_now(const Key& key) {
  mdb_txn_reset(reader_);
  must(mdb_txn_renew(reader_), "renew");
  must(mdb_cursor_renew(reader_, cursor_), "renew");
  return successor(cursor_, key);
}

void LmdbIndex::commit(const std::vector<Key>& keys) {
  // A reader of an old state would keep its pages from being used again.
  mdb_txn_reset(reader_);
  MDB_txn* transaction = nullptr;
  must(mdb_txn_begin(environment_, nullptr, 0, &transaction), "begin");
  for (const Key& key : keys) {
    Bytes bytes(key);
    MDB_val name = bytes.val();
    MDB_val data = value();
    must(mdb_put(transaction, dbi_, &name, &data, 0), "put");
  }
  must(mdb_txn_commit(transaction), "commit");
}

}  // namespace csnap::bench
