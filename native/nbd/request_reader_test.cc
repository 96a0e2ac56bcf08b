// Requests out of bytes, and the protocol's rules for one header. Numbers in names are the checks
// of the conformance list that test/wire/ runs against the whole server.
#include "nbd/request_reader.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "testing/rng.h"

namespace csnap::nbd {
namespace {

Request make(Command command, uint64_t offset, uint32_t length, uint16_t flags = 0) {
  Request request;
  request.magic = kRequestMagic;
  request.flags = flags;
  request.command = static_cast<uint16_t>(command);
  request.cookie = 7;
  request.offset = offset;
  request.length = length;
  return request;
}

constexpr uint64_t kSize = uint64_t{6} << 30;
const ExportRules kPlain = {kSize, false, false, false};
const ExportRules kStructured = {kSize, false, true, true};
const ExportRules kReadOnly = {kSize, true, true, true};

Error judged(const Request& request, const ExportRules& rules) {
  return judge(request, rules).error;
}

TEST_CASE("every command is taken with every flag that it has, and with no other") {
  const struct {
    Command command;
    uint16_t flags;
  } all[] = {
      {Command::READ, kFlagFua | kFlagDf},
      {Command::WRITE, kFlagFua},
      {Command::DISC, kFlagFua},
      {Command::FLUSH, kFlagFua},
      {Command::TRIM, kFlagFua},
      {Command::CACHE, kFlagFua},
      {Command::WRITE_ZEROES, kFlagFua | kFlagNoHole | kFlagFastZero},
      {Command::BLOCK_STATUS, kFlagFua | kFlagReqOne},
  };
  for (const auto& [command, allowed] : all) {
    for (int bit = 0; bit < 16; bit++) {
      const auto flag = static_cast<uint16_t>(1 << bit);
      CAPTURE(static_cast<int>(command));
      CAPTURE(bit);
      const Error wanted = (allowed & flag) != 0 ? Error::NONE : Error::INVAL;
      CHECK(judged(make(command, 0, 4096, flag), kStructured) == wanted);
    }
  }
  // 35
  CHECK(judged(make(Command::READ, 0, 4096, kFlagDf), kPlain) == Error::INVAL);
}

TEST_CASE("20: an unknown command is refused and has no payload") {
  for (const uint16_t number : {8, 9, 99, 0xffff}) {
    Request request = make(Command::READ, 0, 4096);
    request.command = number;
    const Judgement judgement = judge(request, kPlain);
    CHECK(judgement.error == Error::INVAL);
    CHECK(judgement.payload_bytes == 0);
  }
}

TEST_CASE("22, 28-30: ranges beyond the end, ends that cross it, offsets that wrap") {
  const struct {
    uint64_t offset;
    uint32_t length;
    bool fits;
  } ranges[] = {
      {0, 4096, true},
      {kSize - 1, 1, true},
      {kSize, 0, true},
      {kSize, 1, false},
      {kSize - 1, 2, false},
      {kSize + 1, 0, false},
      {~uint64_t{0}, 1, false},
      {~uint64_t{0} - 4095, 4096, false},
      {uint64_t{1} << 63, 1, false},
  };
  for (const auto& [offset, length, fits] : ranges) {
    CAPTURE(offset);
    CAPTURE(length);
    const auto expect = [&](Command command, Error error) {
      if (length == 0 && command == Command::BLOCK_STATUS) return;
      CHECK(judged(make(command, offset, length), kStructured) == (fits ? Error::NONE : error));
    };
    expect(Command::READ, Error::INVAL);
    expect(Command::TRIM, Error::INVAL);
    expect(Command::CACHE, Error::INVAL);
    expect(Command::BLOCK_STATUS, Error::INVAL);
    expect(Command::WRITE, Error::NOSPC);
    expect(Command::WRITE_ZEROES, Error::NOSPC);
    CHECK(judge(make(Command::WRITE, offset, length), kPlain).payload_bytes == length);
  }
}

TEST_CASE("25-27, 31: payloads are bounded, effect lengths are not") {
  const uint32_t most = ~uint32_t{0};
  for (const uint32_t length : {kPayloadBytesMax + 1, 33u << 20, most}) {
    CHECK(judged(make(Command::READ, 0, length), kPlain) == Error::INVAL);
    const Judgement write = judge(make(Command::WRITE, 0, length), kPlain);
    CHECK(write.error == Error::INVAL);
    CHECK(write.payload_bytes == length);
  }
  CHECK(judged(make(Command::READ, 0, kPayloadBytesMax), kPlain) == Error::NONE);
  CHECK(judged(make(Command::WRITE, 0, kPayloadBytesMax), kPlain) == Error::NONE);
  for (const Command command :
       {Command::TRIM, Command::WRITE_ZEROES, Command::CACHE, Command::BLOCK_STATUS})
    CHECK(judged(make(command, 0, most), kStructured) == Error::NONE);
}

TEST_CASE("23, 24, 32, 36: empty requests, a flush with a range, block status without context") {
  for (const Command command : {Command::READ, Command::WRITE, Command::TRIM, Command::CACHE,
                                Command::WRITE_ZEROES, Command::FLUSH})
    CHECK(judged(make(command, 0, 0), kPlain) == Error::NONE);
  CHECK(judged(make(Command::FLUSH, ~uint64_t{0}, 4096), kPlain) == Error::NONE);
  CHECK(judged(make(Command::BLOCK_STATUS, 0, 4096), kPlain) == Error::INVAL);
  CHECK(judged(make(Command::BLOCK_STATUS, 0, 0), kStructured) == Error::INVAL);
}

TEST_CASE("43: a read-only export refuses what writes, and takes the rest") {
  for (const Command command : {Command::WRITE, Command::TRIM, Command::WRITE_ZEROES}) {
    CHECK(judged(make(command, 0, 4096), kReadOnly) == Error::PERM);
    CHECK(judged(make(command, kSize, 4096), kReadOnly) == Error::PERM);
  }
  CHECK(judge(make(Command::WRITE, 0, 4096), kReadOnly).payload_bytes == 4096);
  for (const Command command :
       {Command::READ, Command::FLUSH, Command::CACHE, Command::BLOCK_STATUS})
    CHECK(judged(make(command, 0, 4096), kReadOnly) == Error::NONE);
}

// ---- The stream --------------------------------------------------------------------------------

struct Sent {
  Request header;
  std::vector<uint8_t> payload;
  bool skip;
};

// Feeds `stream` in pieces that the generator chooses and checks that what comes out is `all`.
void feed(const std::vector<uint8_t>& stream, size_t initial, const std::vector<Sent>& all,
          Rng& rng) {
  RequestReader reader({stream.data(), initial});
  size_t fed = initial;
  size_t seen = 0;
  std::vector<uint8_t> payload;
  bool in_payload = false;
  while (true) {
    if (in_payload && reader.payload_missing() == 0) {
      if (!all[seen].skip) REQUIRE(payload == all[seen].payload);
      in_payload = false;
      seen++;
    }
    if (const Request* header = in_payload ? nullptr : reader.peek()) {
      REQUIRE(seen < all.size());
      REQUIRE(std::memcmp(header, &all[seen].header, sizeof *header) == 0);
      reader.consume();
      const size_t length = all[seen].payload.size();
      payload.assign(length, 0);
      in_payload = true;
      if (all[seen].skip)
        reader.skip_payload(length);
      else
        reader.take_payload(payload.data(), length);
      continue;
    }
    if (fed == stream.size()) break;
    iovec pieces[2];
    const int count = reader.receive_into(pieces);
    size_t room = 0;
    for (int i = 0; i < count; i++) room += pieces[i].iov_len;
    REQUIRE(room > 0);
    const size_t bytes =
        std::min({stream.size() - fed, room, size_t{1} + rng.below(rng.coin() ? 40 : 200000)});
    size_t done = 0;
    for (int i = 0; i < count; i++) {
      const size_t part = std::min(bytes - done, pieces[i].iov_len);
      if (part > 0) std::memcpy(pieces[i].iov_base, stream.data() + fed + done, part);
      done += part;
    }
    fed += bytes;
    reader.received(bytes);
  }
  CHECK(seen == all.size());
  CHECK(reader.buffered() == 0);
}

TEST_CASE("requests come out of a stream as they went in, however it is cut") {
  const uint64_t seed = seed_from_environment(1);
  CAPTURE(seed);
  Rng rng(seed);
  for (int round = 0; round < 60; round++) {
    std::vector<Sent> all;
    std::vector<uint8_t> stream;
    const size_t count = 1 + rng.below(60);
    for (size_t i = 0; i < count; i++) {
      const uint32_t sizes[] = {0, 1, 512, 4096, 70000, 300000};
      Sent sent;
      const uint32_t length = rng.coin() ? 0 : sizes[rng.below(6)];
      sent.header = make(Command::WRITE, rng.next(), length);
      sent.header.cookie = rng.next();
      sent.payload.resize(length);
      for (uint8_t& byte : sent.payload) byte = static_cast<uint8_t>(rng.next());
      sent.skip = rng.one_in(4);
      const auto* raw = reinterpret_cast<const uint8_t*>(&sent.header);
      stream.insert(stream.end(), raw, raw + sizeof(Request));
      stream.insert(stream.end(), sent.payload.begin(), sent.payload.end());
      all.push_back(std::move(sent));
    }
    feed(stream, rng.coin() ? 0 : rng.below(stream.size() + 1), all, rng);
  }
}

}  // namespace
}  // namespace csnap::nbd
