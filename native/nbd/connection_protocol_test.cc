// Whole connections, one client at a time: what the protocol demands of each request. The numbers
// are the checks of the conformance list.
#include "nbd/connection_test_rig.h"

namespace csnap::nbd {
namespace {

constexpr uint32_t kPerm = 1, kIo = 5, kInval = 22, kNospc = 28;
using Bytes = std::vector<uint8_t>;

TEST_CASE("every command works, with FUA too (33)") {
  Rig rig;
  Client client = rig.connect();
  for (const uint16_t fua : {uint16_t{0}, kFlagFua}) {
    const Bytes payload(5000, static_cast<uint8_t>(1 + fua));
    CHECK(client.ask(Command::WRITE, 100, 5000, fua, payload).error == 0);
    CHECK(client.ask(Command::READ, 100, 5000, fua).data == payload);
    CHECK(client.ask(Command::READ, 0, 100, fua).data == Bytes(100, 0));
    CHECK(client.ask(Command::FLUSH, 0, 0, fua).error == 0);
    CHECK(client.ask(Command::WRITE_ZEROES, 1000, 100, fua | kFlagNoHole).error == 0);
    CHECK(client.ask(Command::READ, 1000, 100).data == Bytes(100, 0));
    CHECK(client.ask(Command::TRIM, 200, 500, fua).error == 0);
    CHECK(client.ask(Command::CACHE, 0, 1 << 20, fua).error == 0);
  }
  const ConnectionStats stats = rig.stats(rig.last_id);
  CHECK(stats.requests == 16);
  CHECK(stats.write_bytes == 10000);
  client.request(Command::DISC, 1, 0, 0);
  CHECK(client.at_end());
  CHECK(rig.wait_closed(rig.last_id) == "the client disconnected");
}

TEST_CASE("19: a wrong magic number ends the connection without an answer") {
  Rig rig;
  Client client = rig.connect();
  Request request = Client::header(Command::READ, 1, 0, 512);
  request.magic = kRequestMagic + 1;
  client.send(&request, sizeof request);
  CHECK(client.at_end());
  CHECK(rig.wait_closed(rig.last_id).find("magic") != std::string::npos);
}

TEST_CASE("20-32: refused requests leave the stream in step") {
  Rig rig;
  const uint64_t size = rig.origin_memory.size_bytes();
  Client client = rig.connect();
  CHECK(client.write(0, 4096, 7) == 0);
  const auto in_step = [&] { return client.ask(Command::READ, 0, 4096).data == Bytes(4096, 7); };
  const struct {
    Command command;
    uint64_t offset;
    uint32_t length;
    uint16_t flags;
    uint32_t payload;
    uint32_t error;
  } all[] = {
      {static_cast<Command>(99), 0, 4096, 0, 0, kInval},
      {Command::READ, 0, 4096, 0x8000, 0, kInval},
      {Command::READ, size, 1, 0, 0, kInval},
      {Command::READ, size - 1, 2, 0, 0, kInval},
      {Command::READ, ~uint64_t{0}, 2, 0, 0, kInval},
      {Command::READ, 0, 33 << 20, 0, 0, kInval},
      {Command::READ, 0, ~uint32_t{0}, 0, 0, kInval},
      {Command::WRITE, 0, 4096, 0x8000, 4096, kInval},
      {Command::WRITE, 0, 33 << 20, 0, 33 << 20, kInval},
      {Command::WRITE, size, 70000, 0, 70000, kNospc},
      {Command::WRITE, ~uint64_t{0} - 1, 512, 0, 512, kNospc},
      {Command::TRIM, size, 1, 0, 0, kInval},
      {Command::WRITE_ZEROES, size - 1, 2, 0, 0, kNospc},
      {Command::CACHE, size, 1, 0, 0, kInval},
      {Command::READ, 0, 4096, kFlagDf, 0, kInval},
      {Command::BLOCK_STATUS, 0, 4096, 0, 0, kInval},
      {Command::READ, 0, 0, 0, 0, 0},
      {Command::WRITE, 0, 0, 0, 0, 0},
      {Command::TRIM, 0, 0, 0, 0, 0},
      {Command::WRITE_ZEROES, size, 0, 0, 0, 0},
      {Command::FLUSH, 4096, 4096, 0, 0, 0},
  };
  for (const auto& [command, offset, length, flags, payload, error] : all) {
    CAPTURE(static_cast<int>(command));
    CAPTURE(offset);
    CAPTURE(length);
    CHECK(client.ask(command, offset, length, flags, Bytes(payload, 9)).error == error);
    CHECK(in_step());
  }
}

TEST_CASE("31: zeroing the whole export of more than 4 GiB goes in requests of 2^32-1 bytes") {
  const uint64_t size = uint64_t{5} << 30;
  Rig rig(size, 64 << 20);
  Client client = rig.connect();
  CHECK(client.write(size - 4096, 4096, 3) == 0);
  CHECK(client.write(1 << 20, 4096, 3) == 0);
  const uint32_t most = ~uint32_t{0};
  CHECK(client.ask(Command::WRITE_ZEROES, 0, most).error == 0);
  CHECK(client.ask(Command::WRITE_ZEROES, most, static_cast<uint32_t>(size - most)).error == 0);
  CHECK(client.ask(Command::READ, 1 << 20, 4096).data == Bytes(4096, 0));
  CHECK(client.ask(Command::READ, size - 4096, 4096).data == Bytes(4096, 0));
  CHECK(client.ask(Command::TRIM, 0, most).error == 0);
}

TEST_CASE("38: two requests with one cookie are both answered") {
  Rig rig;
  Client client = rig.connect();
  client.request(Command::READ, 5, 0, 512);
  client.request(Command::READ, 5, 0, 512);
  Answer answer;
  for (int i = 0; i < 2; i++) {
    CHECK(client.simple(answer, {{5, 512}}) == 5);
    CHECK(answer.error == 0);
  }
}

TEST_CASE("39, 40: a disconnect or a half close behind a pending request: answer, then end") {
  for (const bool half : {false, true}) {
    Rig rig;
    Client client = rig.connect();
    rig.snapshot("s");
    rig.store_gate.close_gate();
    client.request(Command::WRITE, 1, 0, Rig::kChunkBytes, 0, Bytes(Rig::kChunkBytes, 1));
    client.request(Command::READ, 2, 65536, 4096);
    if (half)
      client.half_close();
    else
      client.request(Command::DISC, 3, 0, 0);
    Answer answer;
    CHECK(client.simple(answer, {{2, 4096}}) == 2);
    rig.store_gate.open_gate();
    CHECK(client.simple(answer) == 1);
    CHECK(answer.error == 0);
    CHECK(client.at_end());
    CHECK(rig.wait_closed(rig.last_id) == (half ? "the client closed" : "the client disconnected"));
  }
}

TEST_CASE("41: single bytes at odd offsets, across chunk borders") {
  Rig rig;
  Client client = rig.connect();
  const uint64_t offset = Rig::kChunkBytes - 1;
  CHECK(client.write(offset - 10, 20, 1) == 0);
  rig.snapshot("s");
  CHECK(client.write(offset, 1, 2) == 0);
  CHECK(client.write(offset + 1, 1, 3) == 0);
  Bytes wanted(20, 1);
  wanted[10] = 2;
  wanted[11] = 3;
  CHECK(client.ask(Command::READ, offset - 10, 20).data == wanted);
}

TEST_CASE("42: a client that closes inside a payload has written nothing") {
  Rig rig;
  Client other = rig.connect();
  for (const size_t sent : {size_t{0}, size_t{1}, size_t{4096}, size_t{199999}}) {
    Client client = rig.connect();
    const uint64_t id = rig.last_id;
    client.request(Command::WRITE, 1, 0, 200000, 0, Bytes(sent, 9));
    client.close();
    CHECK(rig.wait_closed(id) == "the client closed in the middle of a request");
    CHECK(other.ask(Command::READ, 0, 200000).data == Bytes(200000, 0));
  }
}

TEST_CASE("43: a snapshot, and an export that the handshake made read-only, refuse writes") {
  Rig rig;
  Client writer = rig.connect();
  CHECK(writer.write(0, 8192, 4) == 0);
  for (const bool snapshot : {true, false}) {
    ConnectionOptions options = rig.options();
    if (snapshot)
      options.view = rig.snapshot("s");
    else
      options.read_only = true;
    Client client = rig.connect(std::move(options));
    CHECK(client.write(0, 8192, 5) == kPerm);
    CHECK(client.ask(Command::READ, 0, 8192).data == Bytes(8192, 4));
    CHECK(client.ask(Command::TRIM, 0, 8192).error == kPerm);
    CHECK(client.ask(Command::WRITE_ZEROES, 0, 8192).error == kPerm);
    CHECK(client.ask(Command::FLUSH, 0, 0).error == 0);
    CHECK(client.ask(Command::READ, 0, 8192).data == Bytes(8192, 4));
  }
}

TEST_CASE("bytes that came with the handshake are the first request") {
  Rig rig;
  const Request header = Client::header(Command::WRITE, 77, 512, 300000);
  Bytes stream(sizeof header);
  std::memcpy(stream.data(), &header, sizeof header);
  stream.resize(sizeof header + 200000, 6);
  ConnectionOptions options = rig.options();
  options.initial_bytes = stream;
  Client client = rig.connect(std::move(options));
  const Bytes rest(100000, 6);
  client.send(rest.data(), rest.size());
  Answer answer;
  CHECK(client.simple(answer) == 77);
  CHECK(answer.error == 0);
  CHECK(client.ask(Command::READ, 512, 300000).data == Bytes(300000, 6));
}

// ---- Structured replies ------------------------------------------------------------------------

TEST_CASE("37: once structured, a READ is answered by chunks whatever becomes of it") {
  Rig rig;
  Client client = rig.connect_structured();
  uint64_t cookie;
  bool done;
  Bytes payload;
  client.request(Command::READ, 1, rig.origin_memory.size_bytes(), 1);
  CHECK(client.chunk(cookie, done, payload) == 0x8001);
  CHECK(cookie == 1);
  CHECK(done);
  REQUIRE(payload.size() > 6);
  CHECK(payload[3] == kInval);
  client.request(Command::READ, 2, 0, 0);
  CHECK(client.chunk(cookie, done, payload) == 0);
  CHECK(done);
  client.request(Command::READ, 3, 0, 100);
  CHECK(client.chunk(cookie, done, payload) == 2);
  CHECK(payload.size() == 12);
  CHECK(done);

  Fault fault;
  fault.op = DeviceOp::READ;
  fault.effect = Fault::Effect::IO_ERROR;
  rig.origin_faults.add_fault(fault);
  client.request(Command::READ, 4, 0, 4096);
  CHECK(client.chunk(cookie, done, payload) == 0x8001);
  CHECK(cookie == 4);
  CHECK(payload[3] == kIo);
}

TEST_CASE("holes of a read: zero runs are not sent, DF makes one chunk") {
  Rig rig;
  Client client = rig.connect_structured();
  Answer answer;
  client.request(Command::WRITE, 1, 8192, 4096, 0, Bytes(4096, 8));
  CHECK(client.simple(answer) == 1);
  uint64_t cookie;
  bool done;
  Bytes payload;
  client.request(Command::READ, 2, 0, 65536);
  CHECK(client.chunk(cookie, done, payload) == 2);
  CHECK(!done);
  CHECK(client.chunk(cookie, done, payload) == 1);
  CHECK(payload.size() == 8 + 4096);
  CHECK(payload[8] == 8);
  CHECK(!done);
  CHECK(client.chunk(cookie, done, payload) == 2);
  CHECK(done);
  client.request(Command::READ, 3, 0, 65536, kFlagDf);
  CHECK(client.chunk(cookie, done, payload) == 1);
  CHECK(payload.size() == 8 + 65536);
  CHECK(done);
}

TEST_CASE("36, 53: block status covers the request; what it calls zero reads as zeros") {
  Rig rig;
  Client client = rig.connect_structured();
  Answer answer;
  for (uint64_t offset = 0; offset < (1 << 20); offset += 3 * Rig::kChunkBytes) {
    client.request(Command::WRITE, 1, offset, 4096, 0, Bytes(4096, 8));
    CHECK(client.simple(answer) == 1);
  }
  uint64_t cookie;
  bool done;
  Bytes payload;
  for (const uint16_t flags : {uint16_t{0}, kFlagReqOne}) {
    client.request(Command::BLOCK_STATUS, 9, 100, 1 << 20, flags);
    CHECK(client.chunk(cookie, done, payload) == 5);
    CHECK(cookie == 9);
    CHECK(done);
    REQUIRE(payload.size() >= 12);
    CHECK(payload[3] == 5);
    const size_t count = (payload.size() - 4) / 8;
    if (flags != 0) CHECK(count == 1);
    uint64_t covered = 0;
    for (size_t i = 0; i < count; i++) {
      Extent extent;
      std::memcpy(&extent, &payload[4 + i * 8], sizeof extent);
      CHECK(extent.length > 0);
      if ((extent.flags & kExtentZero) != 0) {
        Bytes content(extent.length);
        CHECK(rig.origin_memory.read(100 + covered, content.data(), content.size()).ok());
        CHECK(content == Bytes(extent.length, 0));
      }
      covered += extent.length;
    }
    CHECK(covered > 0);
    CHECK(covered <= 1 << 20);
  }
  client.request(Command::BLOCK_STATUS, 10, 0, 0);
  CHECK(client.chunk(cookie, done, payload) == 0x8001);
}

}  // namespace
}  // namespace csnap::nbd
