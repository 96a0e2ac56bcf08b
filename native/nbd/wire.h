// NBD's transmission phase as bytes: what stands on the wire after the handshake. Big endian, no
// padding, every struct asserted. The protocol document calls the cookie "handle" in older texts.
// Callers: nbd/ only.
#pragma once

#include <cstdint>

#include "base/endian.h"

namespace csnap::nbd {

constexpr uint32_t kRequestMagic = 0x25609513;
constexpr uint32_t kSimpleReplyMagic = 0x67446698;
constexpr uint32_t kChunkMagic = 0x668e33ef;

// Largest payload of one READ or WRITE, as announced with NBD_INFO_BLOCK_SIZE.
constexpr uint32_t kPayloadBytesMax = 32u << 20;

enum class Command : uint16_t {
  READ = 0,
  WRITE = 1,
  DISC = 2,
  FLUSH = 3,
  TRIM = 4,
  CACHE = 5,
  WRITE_ZEROES = 6,
  BLOCK_STATUS = 7,
};

constexpr uint16_t kFlagFua = 1 << 0;
constexpr uint16_t kFlagNoHole = 1 << 1;    // WRITE_ZEROES
constexpr uint16_t kFlagDf = 1 << 2;        // READ: do not fragment
constexpr uint16_t kFlagReqOne = 1 << 3;    // BLOCK_STATUS: one extent
constexpr uint16_t kFlagFastZero = 1 << 4;  // WRITE_ZEROES

struct Request {
  be32 magic;
  be16 flags;
  be16 command;
  be64 cookie;
  be64 offset;
  be32 length;
};
static_assert(sizeof(Request) == 28);

struct SimpleReply {
  be32 magic;
  be32 error;
  be64 cookie;
};
static_assert(sizeof(SimpleReply) == 16);

constexpr uint16_t kChunkFlagDone = 1 << 0;

enum class ChunkType : uint16_t {
  NONE = 0,
  OFFSET_DATA = 1,
  OFFSET_HOLE = 2,
  BLOCK_STATUS = 5,
  ERROR = 0x8001,
};

struct Chunk {
  be32 magic;
  be16 flags;
  be16 type;
  be64 cookie;
  be32 length;  // of what follows
};
static_assert(sizeof(Chunk) == 20);

struct OffsetData {
  Chunk chunk;
  be64 offset;
  // data
};
static_assert(sizeof(OffsetData) == 28);

struct OffsetHole {
  Chunk chunk;
  be64 offset;
  be32 size;
};
static_assert(sizeof(OffsetHole) == 32);

struct BlockStatusHead {
  Chunk chunk;
  be32 context;
  // Extent[]
};
static_assert(sizeof(BlockStatusHead) == 24);

struct Extent {
  be32 length;
  be32 flags;
};
static_assert(sizeof(Extent) == 8);
constexpr uint32_t kExtentHole = 1 << 0;
constexpr uint32_t kExtentZero = 1 << 1;

struct ErrorHead {
  Chunk chunk;
  be32 error;
  be16 message_bytes;
  // message
};
static_assert(sizeof(ErrorHead) == 26);

// What a client may be told. NONE is success.
enum class Error : uint32_t {
  NONE = 0,
  PERM = 1,
  IO = 5,
  INVAL = 22,
  NOSPC = 28,
  NOTSUP = 95,
};

}  // namespace csnap::nbd
