// Connections of a server whose grant ends (F2, N5): not a byte is answered past it, and the
// clients are sent away.
#include "nbd/connection_test_rig.h"

namespace csnap::nbd {
namespace {

using Bytes = std::vector<uint8_t>;

struct Ask {
  const char* name;
  Command command;
  uint64_t offset;
  uint32_t length;
  bool asks_device;
};
constexpr uint64_t kOriginBytes = 4 << 20;
constexpr Ask kAll[] = {
    {"read", Command::READ, 0, 4096, true},
    {"write", Command::WRITE, 0, 4096, true},
    {"flush", Command::FLUSH, 0, 0, true},
    {"trim", Command::TRIM, 0, 65536, true},
    {"zeroing", Command::WRITE_ZEROES, 0, 65536, true},
    {"block status", Command::BLOCK_STATUS, 0, 65536, true},
    {"cache", Command::CACHE, 0, 4096, false},
    {"empty read", Command::READ, 0, 0, false},
    {"read that is refused", Command::READ, kOriginBytes, 4096, false},
    {"write that is refused", Command::WRITE, kOriginBytes, 4096, false},
    {"unknown", static_cast<Command>(99), 0, 4096, false},
};

void send(Client& client, const Ask& ask) {
  const bool payload = ask.command == Command::WRITE;
  client.request(ask.command, 1, ask.offset, ask.length, 0, Bytes(payload ? ask.length : 0, 9));
}

bool ended_by_grant(Rig& rig, uint64_t id) {
  return rig.wait_closed(id).find("grant has ended") != std::string::npos;
}

TEST_CASE("gate: a request past the grant gets no byte, and reaches no device") {
  for (const Ask& ask : kAll) {
    CAPTURE(ask.name);
    for (const bool shut : {false, true}) {
      Rig rig(kOriginBytes);
      Client client = rig.connect_structured();
      const uint64_t uses = rig.lapse.uses;
      rig.grant.extend(Lapse::kDeadlineNs);
      if (shut)
        rig.grant.shut();
      else
        rig.lapse.lapse();
      send(client, ask);
      REQUIRE(client.at_end());
      CHECK(ended_by_grant(rig, rig.last_id));
      CHECK(rig.lapse.uses == uses);
      CHECK(rig.origin_memory.bytes() == Bytes(kOriginBytes, 0));
    }
  }
}

TEST_CASE("gate: a request that the grant's end passes by gets no byte") {
  for (const Ask& ask : kAll) {
    if (!ask.asks_device) continue;
    CAPTURE(ask.name);
    for (const bool structured : {false, true}) {
      if (!structured && ask.command == Command::BLOCK_STATUS) continue;
      Rig rig(kOriginBytes);
      Client client = structured ? rig.connect_structured() : rig.connect();
      rig.grant.extend(Lapse::kDeadlineNs);
      rig.lapse.at_next = true;
      send(client, ask);
      REQUIRE(client.at_end());
      rig.wait_closed(rig.last_id);
      CHECK(rig.lapse.lapsed());
      CHECK(rig.grant.refusals() > 0);
    }
  }
}

TEST_CASE("gate: a device's error past the grant is not told") {
  Rig rig(kOriginBytes);
  Client client = rig.connect();
  rig.grant.extend(Lapse::kDeadlineNs);
  rig.origin_faults.add_fault({DeviceOp::READ, Fault::Effect::IO_ERROR});
  rig.lapse.at_next = true;
  client.request(Command::READ, 1, 0, 4096);
  REQUIRE(client.at_end());
}

TEST_CASE("gate: what waits for a slow client when the grant ends is not sent any more") {
  Rig rig(64 << 20);
  Client client = rig.connect();
  rig.grant.extend(Lapse::kDeadlineNs);
  constexpr uint32_t kReadBytes = 8 << 20;
  client.request(Command::READ, 1, 0, kReadBytes);
  client.request(Command::READ, 2, 0, kReadBytes);
  // The first byte says that both were performed or are about to be; no socket takes all of that.
  uint8_t byte;
  REQUIRE(client.receive(&byte, 1));
  rig.lapse.lapse();
  uint64_t received = 1;
  Bytes more(4096);
  for (ssize_t n; (n = recv(client.fd(), more.data(), more.size(), 0)) > 0;)
    received += static_cast<uint64_t>(n);
  // At most what one flush had begun to send.
  CHECK(received <= kReadBytes + sizeof(SimpleReply));
  CHECK(ended_by_grant(rig, rig.last_id));
}

TEST_CASE("gate: a write that was parked when the grant ended gets no byte and changes nothing") {
  Rig rig(kOriginBytes);
  Client client = rig.connect();
  CHECK(client.write(0, 4096, 1) == 0);
  rig.snapshot("s");
  rig.grant.extend(Lapse::kDeadlineNs);
  rig.store_gate.close_gate();
  // A whole chunk: a smaller one would be staged.
  client.request(Command::WRITE, 1, 0, Rig::kChunkBytes, 0, Bytes(Rig::kChunkBytes, 2));
  rig.store_gate.wait_for_sync();
  rig.lapse.lapse();
  rig.store_gate.open_gate();
  REQUIRE(client.at_end());
  CHECK(rig.origin_memory.bytes()[0] == 1);
  CHECK(rig.volume->info().fenced);
  // W9's way: the grant is back, the volume stays stopped and answers nobody.
  rig.grant.extend(2 * Lapse::kDeadlineNs);
  for (const Ask& ask : {kAll[0], kAll[1], kAll[2], kAll[3], kAll[4]}) {
    CAPTURE(ask.name);
    Client late = rig.connect();
    send(late, ask);
    REQUIRE(late.at_end());
  }
  CHECK(rig.volume->close().code() == Code::FENCED);
}

TEST_CASE("gate: an extended grant goes on serving") {
  Rig rig(kOriginBytes);
  Client client = rig.connect();
  rig.grant.extend(Lapse::kDeadlineNs);
  CHECK(client.write(0, 4096, 1) == 0);
  rig.grant.extend(2 * Lapse::kDeadlineNs);
  rig.lapse.now_ns = Lapse::kDeadlineNs + 1;
  CHECK(client.write(0, 4096, 2) == 0);
  CHECK(client.ask(Command::FLUSH, 0, 0).error == 0);
  CHECK(rig.grant.refusals() == 0);
}

}  // namespace
}  // namespace csnap::nbd
