// Reading and writing around the page cache (O_DIRECT), for callers that know nothing of alignment:
// any offset, length and memory. FileDevice's way where another host may take the object over (F8):
// a lost host's cache would write back late, a new host's cache could hold what was there before.
//
// Invariants
//  DIO1  Every system call's offset, length and memory are aligned as the object asks. Edges of
//        reads are widened; edges of writes are read, changed and written back as whole blocks,
//        under a claim that keeps every other write of those blocks out (WriteClaims).
//  DIO2  Whoever changes the object in another way (zeroing, discarding) claims the blocks too.
//  DIO3  Nothing is read or written beyond `size_bytes`, which is whole blocks: a write never
//        makes the object longer.
//  DIO4  Buffers are at most kBufferCountMax x kBufferBytes for each object. Whoever holds one
//        waits for nothing but the medium, so whoever waits for one gets it, a claim held or not.
//
// A block that is written back holds its neighbours' bytes as they are, so a write that is torn
// at a sector (D2) leaves those alone; a medium that fails may lose the widened range.
#pragma once

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "io/write_claims.h"

namespace csnap {

struct DirectAlignment {
  uint64_t unit_bytes;    // of offsets and lengths
  uint64_t memory_bytes;  // of addresses
};

class DirectIo {
 public:
  static constexpr size_t kBufferBytes = 256 * 1024;
  static constexpr uint32_t kBufferCountMax = 8;

  // `fd` is open with O_DIRECT and stays the caller's. Finds the alignment and tries it. Errors:
  // NOT_SUPPORTED, with the remedy.
  static Result<std::unique_ptr<DirectIo>> make(int fd, const std::string& name,
                                                uint64_t size_bytes);
  DirectIo(int fd, std::string name, uint64_t size_bytes, DirectAlignment alignment);
  ~DirectIo();

  const DirectAlignment& alignment() const { return alignment_; }
  // Of ranges that the file system or device may zero or discard: no partly covered block or page
  // is left to the page cache.
  uint64_t hole_unit_bytes() const { return hole_unit_bytes_; }
  WriteClaims& claims() { return claims_; }

  // Errors: SHORT_IO at the end, IO_ERROR.
  Status read(uint64_t offset, void* data, size_t length);
  // Errors: NO_SPACE, beyond the end too; IO_ERROR, SHORT_IO.
  Status write(uint64_t offset, const void* data, size_t length);

 private:
  class Buffer;
  bool within(uint64_t offset, size_t length) const {
    return offset <= size_bytes_ && length <= size_bytes_ - offset;
  }
  size_t buffered_bytes(uint64_t offset, const void* memory, size_t length) const;
  Status read_through(Buffer& buffer, uint64_t offset, char* target, size_t length);
  Status write_through(Buffer& buffer, uint64_t offset, const char* source, size_t length);
  Status read_aligned(uint64_t offset, char* target, size_t length);
  Status write_aligned(uint64_t offset, const char* source, size_t length);
  Status short_io(const char* verb, uint64_t offset, size_t length) const;
  Status error(const char* verb, uint64_t offset, size_t length, int error_number) const;
  bool accepts(DirectAlignment alignment);

  const int fd_;
  const std::string name_;
  const uint64_t size_bytes_;
  DirectAlignment alignment_;
  uint64_t hole_unit_bytes_;
  WriteClaims claims_;

  struct Free {
    void operator()(char* bytes) const { std::free(bytes); }
  };
  using AlignedBytes = std::unique_ptr<char[], Free>;

  Mutex buffers_mutex_;
  CondVar buffer_free_cond_;
  std::vector<AlignedBytes> buffers_free_;
  uint32_t buffers_made_ = 0;
};

// NOT_SUPPORTED: what lies at `fd` goes through the page cache of this host in spite of O_DIRECT.
Status check_nothing_caches(int fd, const std::string& name);

// Writes back what this kernel's page cache holds of the object from buffered use, and lets it go.
Status empty_page_cache(int fd, const std::string& name);

}  // namespace csnap
