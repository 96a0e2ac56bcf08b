// Replies as bytes, decoded by a reader that knows only the protocol document.
#include "nbd/reply.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <cstring>
#include <string>
#include <vector>

#include "base/is_zero.h"
#include "io/unique_fd.h"
#include "nbd/wire_error.h"
#include "testing/rng.h"

namespace csnap::nbd {
namespace {

std::vector<uint8_t> bytes_of(const Reply& reply) {
  std::vector<iovec> pieces(5000);
  bool in_file;
  pieces.resize(reply.gather(pieces.data(), pieces.size(), in_file));
  std::vector<uint8_t> bytes;
  for (const iovec& piece : pieces) {
    const auto* start = static_cast<const uint8_t*>(piece.iov_base);
    bytes.insert(bytes.end(), start, start + piece.iov_len);
  }
  Reply::FilePart part = {};
  Reply rest = reply;
  if (in_file) {
    rest.sent(bytes.size());
    REQUIRE(rest.next_in_file(part));
    bytes.resize(bytes.size() + part.bytes);
    CHECK(pread(part.file, bytes.data() + bytes.size() - part.bytes, part.bytes,
                static_cast<off_t>(part.offset)) == static_cast<ssize_t>(part.bytes));
  }
  CHECK(bytes.size() == reply.bytes_left());
  return bytes;
}

uint64_t number(const uint8_t* bytes, size_t count) {
  uint64_t value = 0;
  for (size_t i = 0; i < count; i++) value = value << 8 | bytes[i];
  return value;
}

struct Decoded {
  std::vector<uint8_t> content;
  size_t chunks = 0;
  size_t holes = 0;
};

// Decodes the chunks of a READ and checks P3.
Decoded decode_read(const std::vector<uint8_t>& bytes, uint64_t cookie, uint64_t offset,
                    size_t length) {
  Decoded out;
  out.content.assign(length, 0xee);
  uint64_t next = offset;
  bool done = false;
  for (size_t at = 0; at < bytes.size();) {
    REQUIRE(!done);
    REQUIRE(bytes.size() - at >= 20);
    CHECK(number(&bytes[at], 4) == 0x668e33ef);
    done = number(&bytes[at + 4], 2) == 1;
    const uint64_t type = number(&bytes[at + 6], 2);
    CHECK(number(&bytes[at + 8], 8) == cookie);
    const uint64_t payload = number(&bytes[at + 16], 4);
    at += 20;
    REQUIRE(bytes.size() - at >= payload);
    out.chunks++;
    if (type == 0) {
      CHECK(payload == 0);
      CHECK(done);
      CHECK(length == 0);
      continue;
    }
    CHECK(number(&bytes[at], 8) == next);
    if (type == 1) {
      REQUIRE(payload >= 9);
      REQUIRE(next + payload - 8 <= offset + length);
      std::memcpy(&out.content[next - offset], &bytes[at + 8], payload - 8);
      next += payload - 8;
    } else {
      REQUIRE(type == 2);
      REQUIRE(payload == 12);
      const uint64_t size = number(&bytes[at + 8], 4);
      REQUIRE(size > 0);
      REQUIRE(next + size <= offset + length);
      std::memset(&out.content[next - offset], 0, size);
      next += size;
      out.holes++;
    }
    at += payload;
  }
  CHECK(done);
  CHECK(next == offset + length);
  return out;
}

TEST_CASE("a simple reply is 16 bytes and the data") {
  Reply reply;
  reply.simple(0x1122334455667788, Error::NONE, "data", 4);
  const std::vector<uint8_t> wanted = {0x67, 0x44, 0x66, 0x98, 0,    0,    0,   0,   0x11, 0x22,
                                       0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 'd', 'a', 't',  'a'};
  CHECK(bytes_of(reply) == wanted);
  reply.simple(1, Error::NOSPC, nullptr, 0);
  CHECK(number(&bytes_of(reply)[4], 4) == 28);
  CHECK(bytes_of(reply).size() == 16);
}

TEST_CASE("an error chunk carries number and text, the text bounded") {
  Reply reply;
  reply.error_chunk(9, Error::INVAL, "why");
  const std::vector<uint8_t> bytes = bytes_of(reply);
  REQUIRE(bytes.size() == 20 + 6 + 3);
  CHECK(number(&bytes[4], 4) == 0x00018001);
  CHECK(number(&bytes[16], 4) == 9);
  CHECK(number(&bytes[20], 4) == 22);
  CHECK(number(&bytes[24], 2) == 3);
  CHECK(std::memcmp(&bytes[26], "why", 3) == 0);
  reply.error_chunk(9, Error::IO, std::string(100000, 'x'));
  CHECK(bytes_of(reply).size() == 20 + 6 + Reply::kMessageBytesMax);
}

TEST_CASE("reads as chunks: content is whole whatever lies where, DF makes one chunk") {
  const uint64_t seed = seed_from_environment(2);
  CAPTURE(seed);
  Rng rng(seed);
  Reply reply;
  for (int round = 0; round < 2000; round++) {
    const uint64_t offset = rng.below(3) * 4096 + (rng.coin() ? 0 : rng.below(5000));
    const size_t length = rng.one_in(10) ? 0 : 1 + rng.below(rng.coin() ? 6000 : 100000);
    std::vector<uint8_t> data(length, 0);
    for (uint64_t n = rng.below(6); n > 0 && length > 0; n--) {
      const size_t start = rng.below(length);
      const size_t bytes = std::min(length - start, size_t{1} + rng.below(20000));
      std::memset(&data[start], static_cast<int>(1 + rng.below(255)), bytes);
    }
    const bool one = rng.coin();
    reply.read_chunks(round, offset, data.data(), length, one);
    const Decoded decoded = decode_read(bytes_of(reply), round, offset, length);
    CHECK(decoded.content == data);
    if (one) CHECK(decoded.chunks == 1);
    if (length > 0 && is_zero(data.data(), length)) {
      CHECK(decoded.chunks == 1);
      CHECK(decoded.holes == 1);
    }
  }
}

TEST_CASE("the number of chunks is bounded even if every other block is zero") {
  std::vector<uint8_t> data(kPayloadBytesMax, 0);
  for (size_t i = 0; i < data.size(); i += 8192) data[i] = 1;
  Reply reply;
  reply.read_chunks(1, 0, data.data(), data.size(), false);
  const Decoded decoded = decode_read(bytes_of(reply), 1, 0, data.size());
  CHECK(decoded.chunks >= Reply::kRunsMax - 1);
  CHECK(decoded.chunks <= Reply::kRunsMax);
  CHECK(decoded.content == data);
  reply.trim();
  reply.simple(1, Error::NONE, nullptr, 0);
  CHECK(bytes_of(reply).size() == 16);
}

TEST_CASE("53: block status extents are merged, contiguous, not empty, cut to the request") {
  const std::vector<BlockStatusExtent> extents = {{4096, false, false},
                                                  {0, true, true},
                                                  {8192, false, false},
                                                  {4096, true, true},
                                                  {1 << 20, false, true}};
  Reply reply;
  reply.block_status(3, 17, extents, 20000, false);
  std::vector<uint8_t> bytes = bytes_of(reply);
  REQUIRE(bytes.size() == 20 + 4 + 3 * 8);
  CHECK(number(&bytes[6], 2) == 5);
  CHECK(number(&bytes[16], 4) == 4 + 3 * 8);
  CHECK(number(&bytes[20], 4) == 17);
  CHECK(number(&bytes[24], 4) == 12288);
  CHECK(number(&bytes[28], 4) == 0);
  CHECK(number(&bytes[32], 4) == 4096);
  CHECK(number(&bytes[36], 4) == 3);
  CHECK(number(&bytes[40], 4) == 20000 - 16384);
  CHECK(number(&bytes[44], 4) == 2);
  reply.block_status(3, 17, extents, 20000, true);
  bytes = bytes_of(reply);
  REQUIRE(bytes.size() == 20 + 4 + 8);
  CHECK(number(&bytes[24], 4) == 12288);
}

TEST_CASE("replies arrive whole and in order through a socket that takes little at a time") {
  const uint64_t seed = seed_from_environment(3);
  CAPTURE(seed);
  Rng rng(seed);
  int fds[2];
  REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
  const UniqueFd near(fds[0]);
  const UniqueFd far(fds[1]);
  const int small = 4096;
  setsockopt(near.get(), SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
  fcntl(near.get(), F_SETFL, O_NONBLOCK);
  const UniqueFd file(memfd_create("content", MFD_CLOEXEC));
  std::vector<uint8_t> file_bytes(100'000);
  for (uint8_t& byte : file_bytes) byte = static_cast<uint8_t>(rng.below(256));
  REQUIRE(write(file.get(), file_bytes.data(), file_bytes.size()) == 100'000);
  std::vector<Reply> replies(300);
  std::vector<std::vector<uint8_t>> data(replies.size());
  std::vector<uint8_t> wanted;
  ReplyQueue queue;
  for (size_t i = 0; i < replies.size(); i++) {
    data[i].assign(rng.below(9000), static_cast<uint8_t>(i));
    if (rng.one_in(3))
      replies[i].read_file(i, rng.coin(), rng.below(file_bytes.size() - data[i].size()), file.get(),
                           1 + data[i].size());
    else if (rng.coin())
      replies[i].simple(i, Error::NONE, data[i].data(), data[i].size());
    else
      replies[i].read_chunks(i, rng.below(8192), data[i].data(), data[i].size(), false);
    const std::vector<uint8_t> bytes = bytes_of(replies[i]);
    wanted.insert(wanted.end(), bytes.begin(), bytes.end());
    queue.push(replies[i]);
  }
  CHECK(queue.bytes() == wanted.size());
  std::vector<uint8_t> got;
  size_t gone = 0;
  size_t blocked = 0;
  while (!queue.empty()) {
    const auto sent = queue.flush(
        near.get(), [] { return true; },
        [&](Reply& reply) {
          CHECK(&reply == &replies[gone]);
          gone++;
        });
    REQUIRE((sent == ReplyQueue::Sent::ALL || sent == ReplyQueue::Sent::WOULD_BLOCK));
    if (sent == ReplyQueue::Sent::WOULD_BLOCK) blocked++;
    std::vector<uint8_t> piece(1 + rng.below(20000));
    const ssize_t n = recv(far.get(), piece.data(), piece.size(), MSG_DONTWAIT);
    if (n > 0) got.insert(got.end(), piece.begin(), piece.begin() + n);
  }
  CHECK(blocked > 0);
  CHECK(gone == replies.size());
  CHECK(queue.bytes() == 0);
  while (got.size() < wanted.size()) {
    std::vector<uint8_t> piece(20000);
    const ssize_t n = recv(far.get(), piece.data(), piece.size(), 0);
    REQUIRE(n > 0);
    got.insert(got.end(), piece.begin(), piece.begin() + n);
  }
  CHECK(got == wanted);
}

TEST_CASE("a file that has become shorter breaks the connection: its answer can't be kept") {
  int fds[2];
  REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
  const UniqueFd near(fds[0]);
  const UniqueFd far(fds[1]);
  fcntl(near.get(), F_SETFL, O_NONBLOCK);
  const UniqueFd file(memfd_create("content", MFD_CLOEXEC));
  REQUIRE(ftruncate(file.get(), 8192) == 0);
  Reply reply;
  reply.read_file(1, true, 4096, file.get(), 8192);
  ReplyQueue queue;
  queue.push(reply);
  CHECK(queue.flush(
            near.get(), [] { return true; }, [](Reply&) {}) == ReplyQueue::Sent::UNREADABLE);
  CHECK(errno == ENODATA);
  CHECK(queue.bytes() == 4096);
}

// The other end takes all there is, so that the socket alone would never end a flush.
TEST_CASE("whether more may be sent is asked before each piece of 1 MiB (N5)") {
  int fds[2];
  REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
  const UniqueFd near(fds[0]);
  const UniqueFd far(fds[1]);
  constexpr size_t kLarge = size_t{8} << 20;
  const int room = 32 << 20;
  setsockopt(near.get(), SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
  fcntl(near.get(), F_SETFL, O_NONBLOCK);
  const UniqueFd file(memfd_create("content", MFD_CLOEXEC));
  REQUIRE(ftruncate(file.get(), kLarge) == 0);
  Reply reply;
  reply.read_file(1, true, 0, file.get(), kLarge);
  ReplyQueue queue;
  queue.push(reply);
  const uint64_t all = queue.bytes();
  int asked = 0;
  const auto twice = [&] { return ++asked <= 2; };
  (void)queue.flush(near.get(), twice, [](Reply&) {});
  CHECK(asked > 1);
  CHECK(queue.bytes() < all);
  CHECK(queue.bytes() >= all - sizeof(OffsetData) - (1 << 20));
}

TEST_CASE("every code has a wire error of the protocol's list, and server troubles have none") {
  const auto wire = [](Code code, Command command) {
    return wire_error(Status(code, "x"), command);
  };
#define X(name, value, text)                                                           \
  {                                                                                    \
    const WireError found = wire(Code::name, Command::READ);                           \
    CHECK((found.error == Error::PERM || found.error == Error::IO ||                   \
           found.error == Error::INVAL || found.error == Error::NOSPC || found.drop)); \
  }
#include "base/error_codes.def"
#undef X
  for (const Code code : {Code::FAILED, Code::FENCED, Code::SHUTTING_DOWN}) {
    CHECK(wire(code, Command::WRITE).drop);
    CHECK(wire(code, Command::WRITE).error == Error::NONE);
  }
  CHECK(wire(Code::NOT_SUPPORTED, Command::WRITE_ZEROES).error == Error::NOTSUP);
  CHECK(wire(Code::NO_SPACE, Command::WRITE).error == Error::NOSPC);
  CHECK(wire(Code::SNAPSHOT_DELETED, Command::READ).error == Error::IO);
  CHECK(wire_error(Status(), Command::READ).error == Error::NONE);
}

}  // namespace
}  // namespace csnap::nbd
